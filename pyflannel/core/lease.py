"""Leases: who owns which subnet, and how the set of them changes.

A *lease* is a dated claim of one node on one subnet, with the attributes its peers need to reach
it. `LeaseTable` is the one place where a snapshot or a batch of changes becomes the difference that
backends are told about. It compares by value, so a peer that came back with another public IP or
VTEP MAC while we were not looking is a change; it never reports our own lease, under whatever key
(a former one, one that was overwritten for a moment): a route to ourselves would stand in the way
of our own containers; and it drops what lies outside the network, so that no node can draw a route
of ours to somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeVar

from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.gocompat.json import JsonError, JsonObject, loads_go
from pyflannel.records import dataclass

T = TypeVar("T")

VTEP_BACKEND = "vxlan"
"""The backend type whose data name a VTEP MAC; a MAC tells one machine from another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAttrs:
    """What a node publishes about itself; the value of its etcd key."""

    public_ip: IPv4Address | None = None
    """Underlay address the peers send to; `None` is written as `0.0.0.0`."""
    public_ipv6: IPv6Address | None = None
    """The same for IPv6; written as `null` when missing."""
    backend_type: str = ""
    """Canonical backend name; empty (and not written) for udp, alloc and tencent-vpc."""
    backend_data: str | None = None
    """Raw compact JSON text of the backend's own data for IPv4, `None` if there is none."""
    backend_v6_data: str | None = None
    """The same for IPv6."""

    def underlay(self, family: Family) -> IPAddress | None:
        """The public address of one family."""
        return self.public_ip if family is Family.V4 else self.public_ipv6

    def data(self, family: Family) -> str | None:
        """The raw backend data of one family."""
        return self.backend_data if family is Family.V4 else self.backend_v6_data

    def macs(self) -> frozenset[str]:
        """The VTEP MACs in the backend data, as 12 hexadecimal digits in lower case."""
        if self.backend_type != VTEP_BACKEND:
            return frozenset()
        found = (_vtep_mac(text) for text in (self.backend_data, self.backend_v6_data))
        return frozenset(mac for mac in found if mac)

    def has_mac_of(self, macs: frozenset[str]) -> bool:
        """Whether one of these MACs is published here; quick if not, as with nearly all leases."""
        return any(
            text is not None and any(mac in _bare(text) for mac in macs)
            for text in (self.backend_data, self.backend_v6_data)
        ) and not macs.isdisjoint(self.macs())


_SEPARATORS = str.maketrans("", "", ":-.")


def _bare(mac: str) -> str:
    return mac.lower().translate(_SEPARATORS)


def _vtep_mac(data: str | None) -> str:
    try:
        value = loads_go(data or "")
    except JsonError:
        return ""
    mac = value.find("VtepMAC") if isinstance(value, JsonObject) else None
    return _bare(mac) if isinstance(mac, str) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One node's claim on one subnet (or pair of subnets)."""

    key: SubnetKey
    attrs: LeaseAttrs
    expires: float | None = field(default=None, compare=False)
    """Seconds since the epoch; `None` for a reservation, or when it was not asked for. Not
    compared: a renewal is not a change."""
    store_lease: int = field(default=0, compare=False)
    """Id of the etcd lease the key hangs on; 0 means no time limit, a *reservation*."""
    revision: int = field(default=0, compare=False)
    """Store revision of the last write of the key (`mod_revision`)."""
    ours: bool = field(default=False, compare=False)
    """Whether the store knows it as this node's, by the node's name or as what it is writing. Then
    it is no peer's, whatever subnet and attributes it has. Not compared: the lease is the same."""

    def subnet(self, family: Family) -> IPNetwork | None:
        """The subnet of one family, or `None`."""
        return self.key.subnet(family)

    @property
    def is_reservation(self) -> bool:
        """Whether the lease has no time limit and belongs to its public IP without end."""
        return self.store_lease == 0


@dataclass(frozen=True, slots=True)
class LeaseAdded:
    """A peer's lease is new, or its attributes changed (then `previous` is what they were)."""

    lease: Lease
    previous: Lease | None = None


@dataclass(frozen=True, slots=True)
class LeaseRemoved:
    """A peer's lease is gone; `lease` is what we knew of it, attributes included."""

    lease: Lease


LeaseEvent = LeaseAdded | LeaseRemoved


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All leases at one revision. Whatever is not in it is gone."""

    leases: Sequence[Lease]
    revision: int


@dataclass(frozen=True, slots=True)
class LeasePut:
    """One key was written."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseDeleted:
    """One key was deleted or expired; the store tells only which."""

    key: SubnetKey


@dataclass(frozen=True, slots=True)
class Changes:
    """Every event of one answer of the store, in order."""

    events: Sequence[LeasePut | LeaseDeleted]
    revision: int


LeaseUpdate = Snapshot | Changes
"""What `LeaseStore.watch_leases` yields; the first one is always a `Snapshot`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """By what a lease is known to be this node's, and so is never a peer's."""

    key: SubnetKey
    public: frozenset[IPAddress] = frozenset()
    """The addresses that this node publishes."""
    macs: frozenset[str] = frozenset()
    """Its VTEP MACs, as `LeaseAttrs.macs` gives them."""
    store_lease: int = 0
    """Its etcd lease; 0 if it has none."""

    @classmethod
    def of(cls, lease: Lease, *attrs: LeaseAttrs) -> Identity:
        """What a lease says of its node.

        Args:
            lease: ours, as it stands in the store.
            attrs: what it is going to carry, while that is not written yet.
        """
        every = (lease.attrs, *attrs)
        addresses = {ip for one in every for ip in (one.public_ip, one.public_ipv6)}
        return cls(
            key=lease.key,
            public=frozenset(ip for ip in addresses if ip is not None and not ip.is_unspecified),
            macs=frozenset().union(*(one.macs() for one in every)),
            store_lease=lease.store_lease,
        )

    def why_ours(self, lease: Lease) -> str:
        """Why another lease than the one of our key is ours; empty if it is not."""
        for ip in (lease.attrs.public_ip, lease.attrs.public_ipv6):
            if ip in self.public:
                return f"it has this node's own public IP {ip}"
        if lease.attrs.has_mac_of(self.macs):
            return "it has this node's own VTEP MAC"
        if self.store_lease and lease.store_lease == self.store_lease:
            return "it hangs on this node's own etcd lease"
        return ""


PART: Final = 200
"""Leases that are judged at once: 2 ms, and as much for who is told of them."""


class LeaseTable:
    """The peers we know. Feed it what the store says, get what is different.

    A hundred thousand leases take a second to judge. Who must not be held up for that long asks for
    parts (`parts`, `set_own_in_parts`) and has others take their turn in between.

    Not thread-safe; belongs to the driver.
    """

    def __init__(self, *, network: IPv4Network | None, network6: IPv6Network | None) -> None:
        self._network = network
        self._network6 = network6
        self._own: Identity | None = None
        self._stored: dict[SubnetKey, Lease] = {}
        self._peers: dict[SubnetKey, Lease] = {}
        self.rejected: dict[SubnetKey, str] = {}
        """Leases that are not peers, each with the reason; for `status`."""
        self._unsaid: dict[SubnetKey, str] = {}

    @property
    def peers(self) -> dict[SubnetKey, Lease]:
        """The known peers. The caller must not change it."""
        return self._peers

    def new_rejections(self) -> list[tuple[SubnetKey, str]]:
        """Rejections since the last call, each subnet once, also if it was rejected before."""
        fresh, self._unsaid = list(self._unsaid.items()), {}
        return fresh

    def set_own(self, own: Identity | None) -> list[LeaseEvent]:
        """Tells what is ours; it is never reported.

        A peer that turns out to be this node goes. And what is no longer ours is a peer from now
        on: the holder of the key that was ours until now (that is why we lost it), or an address
        that we have given up.
        """
        return [event for part in self.set_own_in_parts(own) for event in part]

    def set_own_in_parts(self, own: Identity | None) -> Iterator[list[LeaseEvent]]:
        """As `set_own`; the first part has what is ours, and was, by its key."""
        if own == self._own:
            return iter(())
        keys = [identity.key for identity in (own, self._own) if identity is not None]
        self._own = own
        return self._judge_again(keys)

    def _judge_again(self, first: Sequence[SubnetKey]) -> Iterator[list[LeaseEvent]]:
        for keys in _in_parts([*first, *self._stored]):
            # What is gone meanwhile has been said to be.
            found = [self._stored[key] for key in keys if key in self._stored]
            yield self._difference(self._judge(found))

    def parts(self, update: LeaseUpdate) -> Iterator[LeaseUpdate]:
        """The same update in parts, each to be applied before the next is asked for.

        What is gone comes first. A part may be empty: then it is a pause.
        """
        if isinstance(update, Changes):
            yield from _changes_in_parts(update)
            return
        if len(update.leases) + len(self._stored) <= PART:
            yield update
            return
        gone = dict(self._stored)
        for leases in _in_parts(update.leases):
            for lease in leases:
                gone.pop(lease.key, None)
            yield Changes((), update.revision)
        for keys in _in_parts(list(gone)):
            yield Changes([LeaseDeleted(key) for key in keys], update.revision)
        for leases in _in_parts(update.leases):
            yield Changes([LeasePut(lease) for lease in leases], update.revision)

    def apply(self, update: LeaseUpdate) -> list[LeaseEvent]:
        """Takes one update and returns what changed, removals first.

        Removals come first so that a subnet which moved from one key to another (`10.5.1.0-24` to
        `10.5.1.0-24&fd00::-64`) ends up present.
        """
        wanted: dict[SubnetKey, Lease | None]
        if isinstance(update, Snapshot):
            wanted = dict.fromkeys(self._peers)
            self._stored = {lease.key: lease for lease in update.leases}
            self.rejected = {}
            wanted |= self._judge(update.leases)
            return self._difference(wanted)
        wanted = {}
        for event in update.events:
            if isinstance(event, LeaseDeleted):
                wanted[event.key] = None
                self._stored.pop(event.key, None)
                self.rejected.pop(event.key, None)
            else:
                self._stored[event.lease.key] = event.lease
                wanted |= self._judge((event.lease,))
        return self._difference(wanted)

    def _judge(self, leases: Iterable[Lease]) -> dict[SubnetKey, Lease | None]:
        return {lease.key: lease if self._accept(lease) else None for lease in leases}

    def _difference(self, wanted: Mapping[SubnetKey, Lease | None]) -> list[LeaseEvent]:
        removed: list[LeaseEvent] = []
        added: list[LeaseEvent] = []
        for key, lease in wanted.items():
            known = self._peers.get(key)
            if lease is None:
                if known is not None:
                    del self._peers[key]
                    removed.append(LeaseRemoved(known))
                continue
            self._peers[key] = lease
            if known != lease:
                added.append(LeaseAdded(lease, known))
        return removed + added

    def _accept(self, lease: Lease) -> bool:
        if lease.ours or (self._own is not None and lease.key == self._own.key):
            self.rejected.pop(lease.key, None)
            return False
        reason = self._why_not(lease)
        if reason:
            self._unsaid[lease.key] = reason
            self.rejected[lease.key] = reason
            return False
        self.rejected.pop(lease.key, None)
        return True

    def _why_not(self, lease: Lease) -> str:
        key = lease.key
        if key.v4 is not None and (self._network is None or not key.v4.subnet_of(self._network)):
            return f"{key.v4} is outside the network {self._network}"
        if key.v4 is not None and key.v4 == self._network:
            return f"{key.v4} is the whole network"
        if key.v6 is not None and self._network6 is not None:
            if not key.v6.subnet_of(self._network6):
                return f"{key.v6} is outside the IPv6 network {self._network6}"
        elif key.v4 is None:
            return f"{key.describe()} has no subnet of a family that this network uses"
        return self._own.why_ours(lease) if self._own is not None else ""


def _changes_in_parts(update: Changes) -> Iterator[Changes]:
    if len(update.events) <= PART:
        yield update
        return
    last: dict[SubnetKey, LeasePut | LeaseDeleted] = {}
    for events in _in_parts(update.events):
        for event in events:
            last[event.key if isinstance(event, LeaseDeleted) else event.lease.key] = event
        yield Changes((), update.revision)
    order: list[LeasePut | LeaseDeleted] = []
    for kind in (LeaseDeleted, LeasePut):
        order += [event for event in last.values() if isinstance(event, kind)]
    for events in _in_parts(order):
        yield Changes(events, update.revision)


def _in_parts(things: Sequence[T]) -> Iterator[Sequence[T]]:
    return (things[start : start + PART] for start in range(0, len(things), PART))
