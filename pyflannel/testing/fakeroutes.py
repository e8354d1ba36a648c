"""The fake kernel's main table of routes, and how the kernel reads a route."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final, NamedTuple

from pyflannel.core.ip import IPAddress, IPNetwork
from pyflannel.kernel.base import IPV6_DEFAULT_METRIC, RT_SCOPE_UNIVERSE, Route
from pyflannel.kernel.ownership import is_protected
from pyflannel.records import dataclass

REJECTING_TYPES: Final = frozenset((6, 7, 8, 9))
"""Unreachable, blackhole, prohibit and throw (linux/rtnetlink.h): routes without a device."""


class Hop(NamedTuple):
    """One next hop of a route with several."""

    gateway: IPAddress
    oif: int


@dataclass(slots=True)
class Entry:
    """A route as it stands; those with several hops are reported without gateway and link."""

    route: Route
    hops: tuple[Hop, ...] = ()

    def goes_through(self, index: int) -> bool:
        """Whether one of its hops leads through this link."""
        return self.route.oif == index or any(hop.oif == index for hop in self.hops)


class RouteTable:
    """The main table: by destination, those of one destination in the order of their arrival."""

    def __init__(self) -> None:
        self._by_dst: dict[IPNetwork, list[Entry]] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()

    def __iter__(self) -> Iterator[Entry]:
        return iter([entry for entries in self._by_dst.values() for entry in entries])

    def add(self, entry: Entry) -> None:
        """One more, behind those of its destination."""
        dst = entry.route.dst
        if dst not in self._by_dst:
            self._by_dst[dst] = []
            self._lengths[dst.version, dst.prefixlen] += 1
        self._by_dst[dst].append(entry)

    def remove(self, entry: Entry) -> None:
        """Takes one out."""
        dst = entry.route.dst
        entries = [other for other in self._by_dst[dst] if other is not entry]
        if entries:
            self._by_dst[dst] = entries
        else:
            del self._by_dst[dst]
            self._lengths[dst.version, dst.prefixlen] -= 1

    def under(self, route: Route) -> list[Entry]:
        """Those with this destination and metric."""
        entries = self._by_dst.get(route.dst, [])
        return [entry for entry in entries if entry.route.metric == route.metric]

    def covering(self, address: IPAddress) -> Iterator[Entry]:
        """Those that lead to an address: longest prefix first, then lowest metric."""
        lengths = [n for (version, n), count in self._lengths.items() if count]
        for length in sorted(set(lengths), reverse=True):
            if length <= address.max_prefixlen:
                entries = self._by_dst.get(network_of(address, length), [])
                yield from sorted(entries, key=lambda entry: real_metric(entry.route))


def as_stored(route: Route) -> Route:
    """A route as the kernel reports it."""
    if route.dst.version == 6:
        metric = 0 if route.metric == IPV6_DEFAULT_METRIC else route.metric
        route = replace(route, metric=metric, scope=RT_SCOPE_UNIVERSE)
    if route.type in REJECTING_TYPES:
        return replace(route, oif=None, gateway=None, onlink=False)
    return route


def real_metric(route: Route) -> int:
    """The metric that the kernel ranks by: IPv6 reads none as its default."""
    return route.metric or (IPV6_DEFAULT_METRIC if route.dst.version == 6 else 0)


def is_same(entry: Entry, wanted: Route) -> bool:
    """Whether this is the one that a delete is about; the keys agree."""
    found = entry.route
    if found.type != wanted.type or found.gateway != wanted.gateway:
        return False
    if is_protected(found) and found.protocol != wanted.protocol:
        return False
    return found.oif == wanted.oif or (
        wanted.oif is None and (wanted.gateway is not None or wanted.type in REJECTING_TYPES)
    )


def network_of(address: IPAddress, length: int) -> IPNetwork:
    """The network of this length that the address is in."""
    if isinstance(address, IPv4Address):
        return IPv4Network((address, length), strict=False)
    return IPv6Network((address, length), strict=False)
