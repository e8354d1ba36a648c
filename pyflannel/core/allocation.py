"""Which subnet this node asks for: the one it holds, the one it had, else a free one.

1. A lease is *recognised* as ours: it is one that our own record names (subnet, etcd lease, and
   an address that we published), or it has our VTEP MAC. Its public IP may be a former one; the
   containers of this node live in it. The record names the one that we had, and the one that we
   were about to write when we were killed.
2. A lease has our public IP: it is ours, no matter who wrote it (a former run, an operator's
   reservation). But an address may come to this node from another one (a virtual address that
   failed over), and with it the other one's lease. So where we have a record, only a reservation,
   or the lease of a subnet that was ours, is taken for ours by its address.
3. `subnet.env`, a lost lease or the record names a *previous* subnet: it is taken back if it is
   free and fits.
4. A free one is drawn at random among the lowest hundred.

What is ours and does not fit the config has to go, and so has a second one that was recognised.
A subnet that this node is connected to otherwise (`core.overlap.Obstacles`) is not taken in any of
these steps: a lease of ours is given back then, and a reservation left to its author. Steps 2 (for
every lease), 3 and 4 are upstream's.

Everything here is a function of the config and of the leases read; nothing is written. Between the
decision and the write somebody else may take the subnet: the write is conditional, and after a lost
race the caller reads and plans again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from random import Random
from typing import Final

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import SubnetsExhausted, SubnetsOverlap
from pyflannel.core.ip import (
    Family,
    IPAddress,
    IPNetwork,
    SubnetKey,
    format_ip,
    format_network,
)
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.overlap import CHANGE_NETWORK, Conflict, Obstacles
from pyflannel.records import dataclass

CANDIDATES: Final = 100
"""How many free subnets are drawn from. Upstream's number: enough that nodes which start together
seldom want the same one, few enough that the network fills from the bottom."""
MOST_DOUBLINGS: Final = 7
"""A node that lost a race draws from twice as many, up to 12,800: each doubling halves the chance
to lose the next one. A thousand nodes that start at once are ten rivals for each of a hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """A lease of this node's former run, as the state directory remembers it."""

    key: SubnetKey
    store_lease: int
    """Id of its etcd lease; 0 for a reservation, which an address tells, not a record."""
    public: frozenset[IPAddress] = frozenset()
    """The addresses it was published with; empty if the record does not say."""

    def is_of(self, lease: Lease, attrs: LeaseAttrs) -> bool:
        """Whether this is the very lease, and not one that another node has put in its place.

        Args:
            lease: what stands in the store.
            attrs: ours now: we may have been ended between publishing an address and noting it.
        """
        if lease.key != self.key or lease.store_lease != self.store_lease or not self.store_lease:
            return False
        ours = self.public | {attrs.public_ip, attrs.public_ipv6}
        theirs = {lease.attrs.public_ip, lease.attrs.public_ipv6} - {None}
        return not self.public or any(ip in ours for ip in theirs if ip and not ip.is_unspecified)


@dataclass(frozen=True, slots=True)
class Reuse:
    """A lease of ours fits: keep its key, put our attributes there."""

    lease: Lease

    @property
    def key(self) -> SubnetKey:
        """The subnet it is about."""
        return self.lease.key


@dataclass(frozen=True, slots=True)
class TakePrevious:
    """No lease is ours, but the subnet we had before is free and fits."""

    key: SubnetKey


@dataclass(frozen=True, slots=True)
class TakeFree:
    """A subnet that is free."""

    key: SubnetKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do about our lease."""

    step: Reuse | TakePrevious | TakeFree
    incompatible: tuple[Lease, ...] = ()
    """Leases of ours that the config does not allow (any more), to be deleted first. Reservations
    too: left in place, peers would go on sending us packets for a subnet that we do not have."""
    superseded: tuple[Lease, ...] = ()
    """Further leases that were recognised as ours, to be deleted when we have the one of `step`:
    two with one VTEP MAC contradict each other."""
    overlapping: tuple[tuple[Lease, Conflict], ...] = ()
    """Leases of ours that are in the way of what this node is connected to, to be deleted first,
    but for reservations."""
    previous_refused: str = ""
    """Why the previous subnet was not taken, as a sentence for the log; empty if there was no need
    to look at it."""

    @property
    def key(self) -> SubnetKey:
        """The subnet that this node is going to have."""
        return self.step.key

    @property
    def reuse(self) -> Lease | None:
        """The lease to be kept, if there is one."""
        return self.step.lease if isinstance(self.step, Reuse) else None

    @property
    def is_previous(self) -> bool:
        """Whether the previous subnet is taken back."""
        return isinstance(self.step, TakePrevious)


def plan(
    config: NetworkConfig,
    leases: Iterable[Lease],
    attrs: LeaseAttrs,
    *,
    previous: SubnetKey | None,
    rng: Random,
    former: Former | None = None,
    intended: Former | None = None,
    foreign: Collection[SubnetKey] = (),
    obstacles: Obstacles | None = None,
    races_lost: int = 0,
) -> Plan:
    """Decides which subnet this node asks for.

    Args:
        config: a valid config; at least one family is enabled.
        leases: all leases in the store.
        attrs: ours; only the public addresses and VTEP MACs are looked at.
        previous: the subnet that this node had before, if it remembers one.
        rng: draws among the free ones.
        former: the lease that our own record says we had.
        intended: the one that it says we were about to write.
        foreign: keys that looked like ours, and whose holder has turned out to be alive.
        obstacles: what this node is connected to; `None` if that is not known.
        races_lost: how often a free subnet that we had drawn was another's when we wrote it.

    Raises:
        SubnetsExhausted: no lease is ours, and nothing is free.
        SubnetsOverlap: the same, and no other node's leases are to blame.
    """
    known = list(leases)
    own = own_leases(
        known,
        attrs,
        config,
        previous=previous,
        former=former,
        intended=intended,
        foreign=foreign,
    )
    incompatible = tuple(lease for lease in own if not is_compatible(lease.key, config))
    fitting: list[Lease] = []
    overlapping: list[tuple[Lease, Conflict]] = []
    for lease in own:
        conflict = obstacles.of_kept(lease.key) if obstacles is not None else None
        if conflict is not None and lease not in incompatible:
            overlapping.append((lease, conflict))
        elif lease not in incompatible:
            fitting.append(lease)
    if fitting:
        superseded = tuple(
            lease
            for lease in fitting[1:]
            if not lease.is_reservation
            and _is_recognised(lease, attrs, attrs.macs(), former, intended)
        )
        return Plan(
            step=Reuse(fitting[0]),
            incompatible=incompatible,
            superseded=superseded,
            overlapping=tuple(overlapping),
        )
    ours_if_free = [
        key
        for key in (previous, former.key if former is not None else None)
        if key is not None
        and is_compatible(key, config)
        and (obstacles is None or obstacles.of_kept(key) is None)
    ]
    going = {lease.key for lease in incompatible}
    staying = [lease for lease in known if lease.key not in going]
    refused = ""
    for key in (previous, former.key if former is not None else None):
        if key is None or key in foreign:
            continue
        why_not = _why_not_previous(key, config, staying, obstacles)
        if not why_not:
            return Plan(
                step=TakePrevious(key), incompatible=incompatible, overlapping=tuple(overlapping)
            )
        refused = refused or why_not
    free = choose(
        config, [lease.key for lease in staying], rng, obstacles, races_lost, ours_if_free
    )
    return Plan(
        step=TakeFree(free),
        incompatible=incompatible,
        overlapping=tuple(overlapping),
        previous_refused=refused,
    )


def own_leases(
    leases: Iterable[Lease],
    attrs: LeaseAttrs,
    config: NetworkConfig,
    *,
    previous: SubnetKey | None = None,
    former: Former | None = None,
    intended: Former | None = None,
    foreign: Collection[SubnetKey] = (),
) -> list[Lease]:
    """The leases that are this node's, the one to be used first; arguments as for `plan`.

    Those that were recognised come first: our record's (what we were about to write is newer than
    what we had), then those with our VTEP MAC, the newest first. Then those that have our public
    IP, in etcd's order: that of the keys' bytes.

    Where IPv4 is disabled every node has the public IP 0.0.0.0, so there the IPv6 one decides.
    (Upstream compares IPv4 even then, and every node takes the first node's lease for its own.)
    """
    candidates = [lease for lease in leases if lease.key not in foreign]
    macs = attrs.macs()
    recognised = [
        lease for lease in candidates if _is_recognised(lease, attrs, macs, former, intended)
    ]
    recognised.sort(
        key=lambda lease: (
            intended is None or not intended.is_of(lease, attrs),
            former is None or not former.is_of(lease, attrs),
            -lease.revision,
        )
    )
    by_address = [
        lease
        for lease in candidates
        if lease not in recognised
        and is_under_our_address(lease, attrs, config)
        and (former is None or lease.is_reservation or lease.key in (previous, former.key))
    ]
    return recognised + sorted(by_address, key=lambda lease: str(lease.key))


def _is_recognised(
    lease: Lease,
    attrs: LeaseAttrs,
    macs: frozenset[str],
    former: Former | None,
    intended: Former | None,
) -> bool:
    if any(named is not None and named.is_of(lease, attrs) for named in (former, intended)):
        return True
    return lease.attrs.has_mac_of(macs)


def is_under_our_address(lease: Lease, attrs: LeaseAttrs, config: NetworkConfig) -> bool:
    """Whether a lease is held for our public IP; of which family see `own_leases`."""
    family = Family.V4 if config.enable_ipv4 else Family.V6
    ours = attrs.underlay(family)
    return ours is not None and lease.attrs.underlay(family) == ours


def is_compatible(key: SubnetKey, config: NetworkConfig) -> bool:
    """Whether a lease may have this key under this config.

    Each enabled family needs a subnet of the configured length between Min and Max, a disabled one
    must have none: switching dual stack on or off makes every old lease incompatible.
    """
    for family in Family:
        subnet = key.subnet(family)
        if family not in config.families:
            if subnet is not None:
                return False
            continue
        space = _Space.of(config, family)
        if subnet is None or subnet.prefixlen != space.length:
            return False
        if not space.first <= int(subnet.network_address) <= space.last:
            return False
    return True


def _why_not_previous(
    previous: SubnetKey,
    config: NetworkConfig,
    taken: Iterable[Lease],
    obstacles: Obstacles | None,
) -> str:
    if not is_compatible(previous, config):
        return f"previous subnet {previous.describe()} does not fit the current config"
    conflict = obstacles.of_kept(previous) if obstacles is not None else None
    if conflict is not None:
        return f"previous subnet {conflict}"
    for other in taken:
        mine = overlap(previous, other.key)
        if mine is not None:
            holder = other.attrs.public_ip or other.attrs.public_ipv6 or "a node without an address"
            return (
                f"previous subnet {format_network(mine)} is leased as {other.key.describe()} "
                f"by {holder}"
            )
    return ""


def overlap(one: SubnetKey, other: SubnetKey) -> IPNetwork | None:
    """The first subnet of `one` that has an address in common with the other's; `None` if none."""
    for family in Family:
        mine, theirs = one.subnet(family), other.subnet(family)
        if mine is not None and theirs is not None and _overlap(mine, theirs):
            return mine
    return None


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def choose(
    config: NetworkConfig,
    leases: Iterable[SubnetKey],
    rng: Random,
    obstacles: Obstacles | None = None,
    races_lost: int = 0,
    ours_if_free: Sequence[SubnetKey] = (),
) -> SubnetKey:
    """A free subnet of every enabled family, each drawn on its own.

    Args:
        config: a valid config.
        leases: keys of all leases that are there.
        rng: draws, uniformly, among the candidates.
        obstacles: what this node is connected to; `None` if that is not known.
        races_lost: as of `plan`; from how many is drawn hangs on it.
        ours_if_free: subnets that this node would have back but for another's lease.

    Raises:
        SubnetsExhausted: a family has no free subnet.
        SubnetsOverlap: a family has none whatever is leased.
    """
    taken = list(leases)
    limit = CANDIDATES << min(races_lost, MOST_DOUBLINGS)
    drawn: dict[Family, IPNetwork] = {}
    refused = obstacles.of_new if obstacles is not None else _nothing
    for family in config.families:
        free = candidates(config, taken, family, limit, refused=refused)
        if not free:
            raise _none_left(config, taken, family, refused, ours_if_free)
        drawn[family] = rng.choice(free)
    v4, v6 = drawn.get(Family.V4), drawn.get(Family.V6)
    return SubnetKey(
        v4 if isinstance(v4, IPv4Network) else None, v6 if isinstance(v6, IPv6Network) else None
    )


def _nothing(_subnet: IPNetwork) -> Conflict | None:
    return None


def _none_left(
    config: NetworkConfig,
    taken: Iterable[SubnetKey],
    family: Family,
    refused: Callable[[IPNetwork], Conflict | None],
    ours_if_free: Sequence[SubnetKey],
) -> SubnetsExhausted | SubnetsOverlap:
    """Says by what the subnets are taken: by leases, by what this node is connected to, or both."""
    space = _Space.of(config, family)
    # One that it had is to be had again, although containers' bridges are in it.
    if not ours_if_free and not candidates(config, (), family, 1, refused=refused):
        for subnet in candidates(config, (), family, 1):
            return SubnetsOverlap(
                f"no subnet in {space.describe()} can be this node's: {refused(subnet)}; "
                f"{CHANGE_NETWORK}"
            )
    free = candidates(config, taken, family)
    others = ""
    if free:
        others = f", {len(free)} overlap what this node is connected to ({refused(free[0])})"
    return SubnetsExhausted(space.total - len(free), space.total, space.describe(), others)


def candidates(
    config: NetworkConfig,
    leases: Iterable[SubnetKey],
    family: Family,
    limit: int = CANDIDATES,
    *,
    refused: Callable[[IPNetwork], Conflict | None] = _nothing,
) -> list[IPNetwork]:
    """The lowest free subnets of one family between Min and Max, in order, at most `limit`.

    A candidate that overlaps a lease of any length, or is refused, is not free. The walk is over
    *slots*, the address divided by the size of a subnet: a lease of our length or longer lies in
    one slot, which is a member of a set; a shorter one covers a run of slots, which is jumped over
    in one step. So the cost is that of looking at each lease once, however wide the network. It
    ends at Max, also where the next address would be beyond the address space (upstream's wraps to
    0.0.0.0 there).
    """
    space = _Space.of(config, family)
    shift = space.shift
    single: set[int] = set()
    runs: list[tuple[int, int]] = []
    for key in leases:
        subnet = key.v4 if family is Family.V4 else key.v6
        if subnet is None:
            continue
        start = int(subnet.network_address)
        if subnet.prefixlen >= space.length:
            single.add(start >> shift)
        else:
            end = start | ((1 << (family.bits - subnet.prefixlen)) - 1)
            runs.append((start >> shift, end >> shift))
    runs.sort()
    found: list[IPNetwork] = []
    for slot in _free_slots(space.first >> shift, space.last >> shift, single, runs):
        if len(found) == limit:
            break
        subnet = space.subnet(slot)
        if refused(subnet) is None:
            found.append(subnet)
    return found


def _free_slots(
    first: int, last: int, single: set[int], runs: list[tuple[int, int]]
) -> Iterator[int]:
    """Slots from `first` to `last` that are neither in the set nor in a run; runs are sorted."""
    slot, position = first, 0
    while slot <= last:
        while position < len(runs) and runs[position][1] < slot:
            position += 1
        if position < len(runs) and runs[position][0] <= slot:
            slot = runs[position][1] + 1
            continue
        if slot not in single:
            yield slot
        slot += 1


@dataclass(frozen=True, slots=True)
class _Space:
    """Where subnets of one family come from, as integers."""

    family: Family
    length: int
    first: int
    """Address of the lowest subnet, aligned to the length (the config has been checked for it)."""
    last: int
    """Address of the highest subnet."""

    @classmethod
    def of(cls, config: NetworkConfig, family: Family) -> _Space:
        if family is Family.V4:
            low, high = int(config.subnet_min), int(config.subnet_max)
            return cls(family, config.subnet_len, low, high)
        low, high = int(config.ipv6_subnet_min), int(config.ipv6_subnet_max)
        return cls(family, config.ipv6_subnet_len, low, high)

    @property
    def shift(self) -> int:
        """Bits of an address below the subnet."""
        return self.family.bits - self.length

    @property
    def total(self) -> int:
        """Subnets between Min and Max, both included; 0 if Min is above Max."""
        return max(0, (self.last >> self.shift) - (self.first >> self.shift) + 1)

    def subnet(self, slot: int) -> IPNetwork:
        """The subnet in a slot."""
        if self.family is Family.V4:
            return IPv4Network((slot << self.shift, self.length))
        return IPv6Network((slot << self.shift, self.length))

    def describe(self) -> str:
        """`10.0.1.0..10.0.20.0 (/24 each)`."""
        kind = IPv4Network if self.family is Family.V4 else IPv6Network
        low, high = (
            format_ip(kind(address).network_address) for address in (self.first, self.last)
        )
        return f"{low}..{high} (/{self.length} each)"
