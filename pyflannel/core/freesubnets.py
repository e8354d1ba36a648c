"""Subnets that are free: which there are between Min and Max, and which of them is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from random import Random
from typing import Final

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import SubnetsExhausted, SubnetsOverlap
from pyflannel.core.ip import Family, IPNetwork, SubnetKey, format_ip
from pyflannel.core.overlap import CHANGE_NETWORK, Conflict, Obstacles
from pyflannel.records import dataclass

CANDIDATES: Final = 100
"""How many free subnets are drawn from. Upstream's number: enough that nodes which start together
seldom want the same one, few enough that the network fills from the bottom."""
MOST_DOUBLINGS: Final = 7
"""A node that lost a race draws from twice as many, up to 12,800: each doubling halves the chance
to lose the next one. A thousand nodes that start at once are ten rivals for each of a hundred."""


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
        races_lost: as of `allocation.plan`; it decides from how many is drawn.
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
    space = Space.of(config, family)
    # One that it had may be taken again, although containers' bridges are in it.
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
    space = Space.of(config, family)
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
class Space:
    """Where subnets of one family come from, as integers."""

    family: Family
    length: int
    first: int
    """Address of the lowest subnet, aligned to the length (the config has been checked for it)."""
    last: int
    """Address of the highest subnet."""

    @classmethod
    def of(cls, config: NetworkConfig, family: Family) -> Space:
        """That of a valid config."""
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
        space = Space.of(config, family)
        if subnet is None or subnet.prefixlen != space.length:
            return False
        if not space.first <= int(subnet.network_address) <= space.last:
            return False
    return True


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
