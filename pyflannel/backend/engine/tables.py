"""The state of one kernel table, as the engine keeps it: who wants what, and what is there.

Between the peers and the kernel stands the *key*: the kernel holds one object under it, but two
peers may want different ones (a node that has a new lease, and its old one with the same VTEP MAC
and its former address; a subnet that moves from one lease to another). So a key has an owner, the
one whose lease was written last, and rivals that wait. And the kernel sometimes holds two
objects under what we take for one key (`ip route append`, `bridge fdb append`): the wrong ones are
*surplus*. So is an IPv6 route with a better metric than ours, which has none, beside one of ours:
another key, and the packets follow it.

Routes of the kernel and of routing daemons (`kernel/ownership.py`) are not looked at: they are
neither ours nor surplus, whatever they lead to. Where one is in the way, the engine leaves the peer
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from pyflannel.backend.plan import TableEntry
from pyflannel.core.delta import AT_ONCE, DeltaMap
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import SubnetKey
from pyflannel.kernel.base import (
    IPV6_DEFAULT_METRIC,
    FdbEntry,
    KernelObject,
    Neighbour,
    Route,
)
from pyflannel.kernel.ownership import is_protected

Key = tuple[object, ...]
"""`KernelObject.key`."""
Owner = SubnetKey | None
"""The peer an object belongs to, or `None` for the node."""
TableId = tuple[str, int, int]
"""Kind, IP version (0 for the FDB), ifindex (0 for routes)."""

KIND: Final[Mapping[type[KernelObject], str]] = {
    Neighbour: "neighbour",
    FdbEntry: "fdb",
    Route: "route",
}
"""In the order of dependence: a route is of use when its neighbour and FDB entry are there."""
RANK: Final = {kind: rank for rank, kind in enumerate(KIND.values())}


def table_id(thing: TableEntry) -> TableId:
    """The table an object lies in."""
    match thing:
        case Route():
            return ("route", thing.dst.version, 0)
        case Neighbour():
            return ("neighbour", thing.ip.version, thing.index)
        case FdbEntry():
            return ("fdb", 0, thing.index)


def overrules(thing: TableEntry, desired: Mapping[Key, TableEntry]) -> bool:
    """Whether a route is in force in the place of a wanted one although its key is another."""
    return (
        isinstance(thing, Route)
        and thing.dst.version == 6
        and 0 < thing.metric < IPV6_DEFAULT_METRIC
        and not is_protected(thing)
        and replace(thing, metric=0).key in desired
    )


class TableState:
    """One table: the difference, who wants what, and what the last listing said."""

    __slots__ = (
        *("_current", "delta", "drifted", "held", "listing", "not_ours", "owners", "ranks"),
        "rivals",
        "surplus",
    )

    def __init__(self) -> None:
        self.delta: DeltaMap[Key, TableEntry] = DeltaMap()
        self.owners: dict[Key, Owner] = {}
        self.ranks: dict[Key, int] = {}
        """The owner's rank: the store revision of its lease, 0 for the node."""
        self.rivals: dict[Key, dict[Owner, tuple[int, TableEntry]]] = {}
        """Owners that want something else under the same key and have to wait, with their rank."""
        self.drifted: set[Key] = set()
        """Pending because another program changed the kernel."""
        self.held: dict[Key, KernelError] = {}
        """Failed; not tried again until there is a reason to."""
        self.surplus: list[tuple[TableEntry, bool]] = []
        """Second and further objects under one key; `True` if the key is one we want."""
        self.not_ours: list[TableEntry] = []
        """What the last listing had of others; protected routes are left out."""
        self.listing: list[TableEntry] | None = None
        """The last listing; `None` before the first one."""
        self._current = False
        """Whether neither side has changed since that listing."""

    def want(self, owner: Owner, thing: TableEntry, rank: int = 0) -> None:
        """Puts a claim in.

        Of two owners the one with the higher rank has the key, with equal ones the later; the other
        waits until the key is free again.
        """
        key = thing.key
        holder = self.owners.get(key, owner)
        if holder != owner:
            rivals = self.rivals.setdefault(key, {})
            rivals.pop(owner, None)
            if self.ranks[key] > rank:
                rivals[owner] = (rank, thing)
                return
            rivals[holder] = (self.ranks[key], self.delta.desired[key])
        self._hand_to(owner, thing, rank)
        heir = self._heir(key)
        if heir is not None and self.rivals[key][heir[0]][0] > rank:
            self.rivals[key][owner] = (rank, thing)
            self._inherit(*heir)

    def unwant(self, owner: Owner, key: Key) -> None:
        """Takes a claim back; of those who waited the one with the highest rank gets the key."""
        self._give_up(owner, key)
        if key not in self.owners or self.owners[key] != owner:
            return
        heir = self._heir(key)
        if heir is not None:
            self._inherit(*heir)
        else:
            del self.owners[key], self.ranks[key]
            self.delta.unwant(key)
            self._touched(key)

    def _heir(self, key: Key) -> tuple[Owner, Key] | None:
        """Who has the key next, and the key; of equals the one that came last."""
        rivals = self.rivals.get(key)
        if not rivals:
            return None
        return max(reversed(rivals), key=lambda rival: rivals[rival][0]), key

    def _inherit(self, heir: Owner, key: Key) -> None:
        rank, thing = self.rivals[key][heir]
        self._give_up(heir, key)
        self._hand_to(heir, thing, rank)

    def _hand_to(self, owner: Owner, thing: TableEntry, rank: int) -> None:
        key = thing.key
        self.owners[key], self.ranks[key] = owner, rank
        if self.delta.desired.get(key) != thing:
            self.delta.want(key, thing)
            self._touched(key)

    def _give_up(self, owner: Owner, key: Key) -> None:
        waiting = self.rivals.get(key)
        if waiting is not None:
            waiting.pop(owner, None)
            if not waiting:
                del self.rivals[key]

    def _touched(self, key: Key) -> None:
        self.drifted.discard(key)
        self.held.pop(key, None)
        self.forget_listing()

    def forget_listing(self) -> None:
        """The next listing must be looked at even if it is like the last one."""
        self._current = False

    def take(self, listing: list[TableEntry], is_ours: Callable[[TableEntry], bool]) -> None:
        """Takes a complete listing of the table.

        One that equals the last is done with at once; this is what a table costs at rest.
        """
        for _ in self.taking(listing, is_ours):
            pass

    def taking(
        self, listing: list[TableEntry], is_ours: Callable[[TableEntry], bool]
    ) -> Iterator[None]:
        """As `take`, with pauses in which others may have their turn, but not touch this table.

        The listing becomes the table's; what it takes the place of is empty afterwards.
        """
        former = self.listing
        if former is not None and self._current and len(listing) == len(former):
            for start in range(0, len(listing), AT_ONCE):
                if listing[start : start + AT_ONCE] != former[start : start + AT_ONCE]:
                    break
                yield
            else:
                yield from _emptying(listing)
                return
        desired, known = self.delta.desired, self.delta.actual
        actual: dict[Key, TableEntry] = {}
        self.surplus, self.not_ours = [], []
        for count, thing in enumerate(listing, 1):
            if count % AT_ONCE == 0:
                yield
            if isinstance(thing, Route) and is_protected(thing):
                continue
            key = thing.key
            wanted = desired.get(key)
            # What we put there and no longer want stays ours, unless it was replaced.
            if wanted is None and overrules(thing, desired):
                self.surplus.append((thing, True))
                continue
            if wanted is None and known.get(key) != thing and not is_ours(thing):
                self.not_ours.append(thing)
                continue
            if key not in actual:
                actual[key] = thing
            elif wanted == thing:
                self.surplus.append((actual[key], True))
                actual[key] = thing
            else:
                self.surplus.append((thing, wanted is not None))
        drifted = yield from self.delta.replacing_actual(actual)
        if former is not None:
            self.drifted.update(drifted)
        self.listing, self._current = listing, True
        yield from _emptying(former or [])


def _emptying(listing: list[TableEntry]) -> Iterator[None]:
    """Freeing is work too."""
    while listing:
        listing.pop()
        if len(listing) % AT_ONCE == 0:
            yield
