"""What a subnet of the overlay may get in the way of on this node, and what follows from it.

A lease is a line in a store that any node may write. The route that is made of it wins over every
shorter prefix, and over an equal one that came later. So one lease can take this node's own
network, its gateway or the store itself away from it; and when the store is gone, no node hears
that the lease was deleted.

The rule. A peer is *left out* if its subnet

* equals or contains a connected prefix of this node,
* contains one of its addresses, a next hop of its routes, or an address of the store,
* overlaps this node's own subnet, or
* is exactly what a route of the kernel or of a routing daemon leads to (such a route is not ours to
  replace).

A subnet that merely lies inside a wider connected prefix (an interface with 10.1.2.3/8) is carried,
with a warning: many networks are laid out like that, and work. Our own devices and whatever lies in
our own subnet (the containers' bridge) do not count; who calls leaves them out.

A *network* that overlaps is a warning as well. Its route (backend udp has one for all of it) is
left out if a route for exactly this prefix is the kernel's or a routing daemon's, or if it would
lead the packets to the store into the overlay.

Pure: surroundings in, conflicts out. Each conflict names both sides.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Final, NamedTuple

from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.records import dataclass

CHANGE_NETWORK: Final = "choose a Network that overlaps nothing which this node reaches otherwise"
"""The way out of an overlap."""
MOVE_PEER: Final = (
    "have the peer take another subnet (stop pyflanneld there, `pyflannel cleanup`, delete its "
    f"lease, start it again), or {CHANGE_NETWORK}"
)
"""The way out where it is a peer's subnet. A daemon that runs takes a deleted lease back, and one
that is started asks for the subnet that its files name."""
ANOTHER_SUBNET: Final = f"restart pyflanneld, which then takes another subnet, or {CHANGE_NETWORK}"
"""The way out where it is the own subnet of a node that runs."""


class Kind(enum.IntEnum):
    """How a subnet and something on this node are in each other's way; the worst first."""

    OWN_SUBNET = 0
    CONNECTED = 1
    ADDRESS = 2
    STORE = 3
    NEXT_HOP = 4
    ROUTE = 5
    INSIDE = 6
    """The subnet lies inside a wider connected prefix."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A subnet of the overlay and what it is in the way of."""

    kind: Kind
    subnet: IPNetwork
    other: str
    """The other side, in words: `10.99.0.1/16 of eth0`."""

    @property
    def forbids(self) -> bool:
        """Whether there must be no route to this subnet. Otherwise it is worth a warning."""
        return self.kind is not Kind.INSIDE

    def __str__(self) -> str:
        return f"{self.subnet} {_VERBS[self.kind]} {self.other}"


_VERBS: Final = {
    Kind.OWN_SUBNET: "overlaps this node's own subnet",
    Kind.CONNECTED: "equals or contains the connected prefix",
    Kind.ADDRESS: "contains this node's address",
    Kind.STORE: "contains the store's address",
    Kind.NEXT_HOP: "contains the next hop",
    Kind.ROUTE: "has a route already, which is not ours to replace:",
    Kind.INSIDE: "lies inside the connected prefix",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What this node stands on, without what is the overlay's own. Values are for messages."""

    own: tuple[IPNetwork, ...] = ()
    """Our own subnet, of each family."""
    connected: Mapping[IPNetwork, str] = field(default_factory=dict)
    """Connected prefixes: `10.99.0.1/16 of eth0`."""
    addresses: Mapping[IPAddress, str] = field(default_factory=dict)
    """Own addresses, described in the same way."""
    next_hops: Mapping[IPAddress, str] = field(default_factory=dict)
    """Gateways of others' routes: `10.99.0.254 of the route 0.0.0.0/0`."""
    store: frozenset[IPAddress] = frozenset()
    """Addresses of the store."""
    routes: Mapping[IPNetwork, str] = field(default_factory=dict)
    """Destinations of routes that are not ours to replace and would be in force beside ours or be
    replaced by it; the route in words."""
    passed: frozenset[IPNetwork] = frozenset()
    """Destinations inside the network of routes that are longer than it: what they lead to, a route
    for the whole network does not take away."""


class _Point(NamedTuple):
    """Something that can lie in a subnet."""

    start: int
    """The address, or the first one of a prefix."""
    length: int
    """Prefix length; that of a whole address for addresses."""
    kind: Kind
    other: str
    address: IPAddress


class Judge:
    """Answers for one state of the surroundings; asking costs a few look-ups."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        points = sorted(_points(around))
        self._points = {v: [p for p in points if p.address.version == v] for v in (4, 6)}
        self._starts = {v: [p.start for p in self._points[v]] for v in (4, 6)}
        self._lengths = {
            v: sorted({net.prefixlen for net in around.connected if net.version == v}, reverse=True)
            for v in (4, 6)
        }

    def subnet(self, subnet: IPNetwork) -> Conflict | None:
        """The worst conflict of a peer's subnet, `None` if there is none."""
        for own in self._around.own:
            if overlap(own, subnet):
                return Conflict(Kind.OWN_SUBNET, subnet, str(own))
        worst = min(self._inside(subnet), key=lambda point: point.kind, default=None)
        if worst is not None:
            return Conflict(worst.kind, subnet, worst.other)
        route = self._around.routes.get(subnet)
        if route is not None:
            return Conflict(Kind.ROUTE, subnet, route)
        wider = next(self._wider(subnet), None)
        return None if wider is None else Conflict(Kind.INSIDE, subnet, wider)

    def own(self, subnet: IPNetwork) -> Conflict | None:
        """Why this node must not have a subnet; `None` if it may. For surroundings without one."""
        found = (point for point in self._inside(subnet) if point.kind in _FORBIDDEN_HERE)
        worst = min(found, key=lambda point: point.kind, default=None)
        return None if worst is None else Conflict(worst.kind, subnet, worst.other)

    def network(self, network: IPNetwork) -> list[Conflict]:
        """All that a cluster network overlaps, the worst first; each is worth a warning."""
        found = [Conflict(point.kind, network, point.other) for point in self._inside(network)]
        prefixes = {c.other for c in found if c.kind is Kind.CONNECTED}
        # The address that makes a prefix a connected one is the same news.
        found = [c for c in found if c.kind is not Kind.ADDRESS or c.other not in prefixes]
        found += [Conflict(Kind.INSIDE, network, other) for other in self._wider(network)]
        return sorted(found, key=lambda conflict: conflict.kind)

    def network_route(self, network: IPNetwork) -> Conflict | None:
        """Why there must be no route for a whole cluster network; `None` if there may be one."""
        connected = self._around.connected.get(network)
        if connected is not None:
            return Conflict(Kind.CONNECTED, network, connected)
        route = self._around.routes.get(network)
        if route is not None:
            return Conflict(Kind.ROUTE, network, route)
        for point in self._inside(network):
            if point.kind is Kind.STORE and not self._is_passed(point.address, network):
                return Conflict(Kind.STORE, network, point.other)
        return None

    def _is_passed(self, address: IPAddress, network: IPNetwork) -> bool:
        """Whether packets to an address take another route than that for the network."""
        around = self._around
        return address in around.addresses or any(
            other.prefixlen > network.prefixlen and address in other
            for other in (*around.connected, *around.passed, *around.own)
        )

    def _inside(self, subnet: IPNetwork) -> Iterator[_Point]:
        """What lies in a subnet, or is it."""
        starts = self._starts[subnet.version]
        first = bisect_left(starts, int(subnet.network_address))
        last = bisect_right(starts, int(subnet.broadcast_address))
        for point in self._points[subnet.version][first:last]:
            if point.length >= subnet.prefixlen:
                yield point

    def _wider(self, subnet: IPNetwork) -> Iterator[str]:
        """Connected prefixes that a subnet is a part of, the narrowest first."""
        for length in self._lengths[subnet.version]:
            if length < subnet.prefixlen:
                other = self._around.connected.get(subnet.supernet(new_prefix=length))
                if other is not None:
                    yield other


@dataclass(frozen=True, slots=True)
class Obstacles:
    """What keeps a subnet from being this node's own."""

    new: Judge
    """Of subnets that this node does not have: everything counts, also another program's bridge."""
    kept: Judge
    """Of those that it has already: without what leads to containers of this machine, or nowhere,
    which is in it rightly."""

    def of_new(self, subnet: IPNetwork) -> Conflict | None:
        """Why a subnet is not to be taken."""
        return self.new.own(subnet)

    def of_kept(self, key: SubnetKey) -> Conflict | None:
        """Why a lease of this node is not to be kept."""
        subnets = (key.subnet(family) for family in Family)
        found = (self.kept.own(subnet) for subnet in subnets if subnet is not None)
        return next((conflict for conflict in found if conflict is not None), None)


_FORBIDDEN_HERE: Final = frozenset({Kind.CONNECTED, Kind.ADDRESS, Kind.STORE})
"""What an own subnet must not take away. A next hop in it is another program's route into the
containers, and a route for exactly it gives way to the bridge's."""


def _points(around: Surroundings) -> Iterator[_Point]:
    for net, other in around.connected.items():
        start = net.network_address
        yield _Point(int(start), net.prefixlen, Kind.CONNECTED, other, start)
    for kind, addresses in (
        (Kind.ADDRESS, around.addresses),
        (Kind.NEXT_HOP, around.next_hops),
        (Kind.STORE, {address: str(address) for address in around.store}),
    ):
        for address, other in addresses.items():
            yield _Point(int(address), address.max_prefixlen, kind, other, address)


def overlap(a: IPNetwork, b: IPNetwork) -> bool:
    """Whether two prefixes have an address in common; those of two families have none."""
    if a.version != b.version:
        return False
    outer, inner = (a, b) if a.prefixlen <= b.prefixlen else (b, a)
    return inner.network_address in outer
