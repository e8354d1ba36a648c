"""What this node stands on, out of the kernel's listings: the input of `core/overlap.py`.

Left out is what is the overlay's own: devices of ours, and what lies in our own subnet, where the
bridge of the containers has its address. So is what has no address in common with the networks.

The functions that take listings are pure; `look_around` and `look_for_obstacles` read them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import IPAddress, IPNetwork, SubnetKey, family_of
from pyflannel.core.overlap import Judge, Obstacles, Surroundings, overlap
from pyflannel.kernel import ownership
from pyflannel.kernel.base import (
    IPV6_DEFAULT_METRIC,
    RTN_UNICAST,
    RTPROT_KERNEL,
    Address,
    Link,
    Netlink,
    Route,
)
from pyflannel.logs import get_logger

log = get_logger(__name__)

IsOurs = Callable[[str, str], bool]
"""Whether a device is the overlay's own, by its name and kind."""
STAY_HERE: Final = frozenset({"bridge", "openvswitch", "veth", "netkit", "dummy"})
"""Kinds of link that lead to containers of this machine, or nowhere."""
STACKED: Final = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"})
"""Kinds of link that lead where the one leads that they stand on."""


def survey(
    addresses: Iterable[Address],
    routes: Iterable[Route],
    *,
    own: SubnetKey | None,
    ours: Collection[int],
    networks: Collection[IPNetwork],
    store: Collection[IPAddress],
    names: Mapping[int, str],
) -> Surroundings:
    """The surroundings of the overlay on this node.

    Args:
        addresses: of all links.
        routes: the main table, of the families in use.
        own: our subnet.
        ours: ifindexes of devices that are ours.
        networks: the cluster networks. A route into them is no part of the surroundings unless it
            is protected: it is a peer's, or would give way to one.
        store: addresses of the store.
        names: of links by ifindex, for messages.
    """
    within = tuple(net for net in (own.v4, own.v6) if net is not None) if own is not None else ()
    connected: dict[IPNetwork, str] = {}
    here: dict[IPAddress, str] = {}
    next_hops: dict[IPAddress, str] = {}
    others: dict[IPNetwork, str] = {}
    passed: set[IPNetwork] = set()

    def name(index: int | None) -> str:
        return names.get(index, f"link {index}") if index is not None else "several links"

    for address in addresses:
        interface = address.interface
        if address.index in ours or not _is_near(interface.network, networks):
            continue
        text = f"{interface} of {name(address.index)}"
        if not _is_in(interface.ip, within):
            here[interface.ip] = text
        net = interface.network
        if net.prefixlen < interface.max_prefixlen and not _is_part(net, within):
            connected.setdefault(net, text)
    for route in routes:
        if route.oif is not None and route.oif in ours:
            continue
        inside = _is_part(route.dst, networks)
        if ownership.is_kernels(route):
            if (
                route.type == RTN_UNICAST
                and _is_near(route.dst, networks)
                and not _is_part(route.dst, within)
                and route.dst not in connected
                and route.dst.network_address not in here
            ):
                connected[route.dst] = f"{route.dst} of {name(route.oif)}"
        elif inside and ownership.is_protected(route) and _competes(route):
            others[route.dst] = ownership.describe(route, name(route.oif))
        if not inside:
            for hop in route.next_hops:
                if hop not in next_hops and _is_in(hop, networks):
                    next_hops[hop] = f"{hop} of the route to {_destination(route.dst)}"
        elif any(address in route.dst for address in store):
            passed.add(route.dst)
    return Surroundings(
        own=within,
        connected=connected,
        addresses=here,
        next_hops=next_hops,
        store=frozenset(store),
        routes=others,
        passed=frozenset(passed),
    )


def is_part_of_surroundings(
    route: Route, networks: Collection[IPNetwork], store: Collection[IPAddress]
) -> bool:
    """Whether a route may count for `survey` and `obstacles`; a peer's, as most are, does not.

    Args:
        route: of the main table.
        networks: the cluster networks.
        store: addresses of the store.
    """
    return (
        ownership.is_protected(route)
        or not _is_part(route.dst, networks)
        or any(address in route.dst for address in store)
    )


def obstacles(
    addresses: Sequence[Address],
    routes: Sequence[Route],
    links: Iterable[Link],
    *,
    ours: Collection[int],
    underlay: Collection[int],
    networks: Collection[IPNetwork],
    store: Collection[IPAddress],
) -> Obstacles:
    """What keeps a subnet from being this node's own.

    Args:
        addresses: of all links.
        routes: at least those of the kernel.
        links: all of them.
        ours: ifindexes of devices that are ours.
        underlay: of those that lead to the other nodes; a bridge may be one.
        networks: the cluster networks.
        store: addresses of the store.
    """
    known = {link.index: link for link in links}
    names = {index: link.name for index, link in known.items()}
    inside = {index for index in known if _stays_here(index, known, underlay)}

    def judge(addresses: Iterable[Address], routes: Iterable[Route]) -> Judge:
        found = survey(
            addresses, routes, own=None, ours=ours, networks=networks, store=store, names=names
        )
        return Judge(found)

    return Obstacles(
        new=judge(addresses, routes),
        kept=judge(
            [address for address in addresses if address.index not in inside],
            [route for route in routes if route.oif not in inside],
        ),
    )


def _stays_here(index: int, links: Mapping[int, Link], underlay: Collection[int]) -> bool:
    """Whether what is behind a link is on this machine: containers, or nothing.

    An address there inside this node's own subnet is a use of the subnet: docker's bridge, a
    macvlan on it through which the host reaches containers, a dummy for a service. On a machine
    that is a container itself, a LAN may be behind a veth. That cannot be told, so the subnet is
    kept: what lies in it has come after the lease, for a new subnet is taken only where nothing is
    (`Obstacles.new`).
    """
    link = links.get(index)
    # A stack of links is no loop, and has a handful of storeys.
    for _ in range(len(links)):
        if link is None or link.index in underlay or link.kind not in STACKED:
            break
        link = links.get(link.parent)
    return (
        link is not None
        and link.index not in underlay
        and (link.loopback or link.kind in STAY_HERE)
    )


async def look_for_obstacles(
    netlink: Netlink,
    networks: Collection[IPNetwork],
    store: Collection[IPAddress],
    public: Collection[IPAddress],
    *,
    ours: IsOurs,
) -> Obstacles | None:
    """What keeps a subnet from being this node's own, as it is now; `None` if it cannot be seen.

    Args:
        public: the addresses that this node publishes; they tell the external interface.
    """
    try:
        links, addresses = await netlink.links(), await netlink.addresses()
        routes = [
            route
            for family in {family_of(network) for network in networks}
            for route in await netlink.routes(family, protocols=(RTPROT_KERNEL,))
        ]
    except KernelError as error:
        log.warning("not seen what a subnet of this node may overlap", error=error)
        return None
    return obstacles(
        addresses,
        routes,
        links,
        ours=own_devices(links, ours),
        underlay={address.index for address in addresses if address.interface.ip in public},
        networks=networks,
        store=store,
    )


async def look_around(
    netlink: Netlink,
    networks: Collection[IPNetwork],
    store: Collection[IPAddress],
    own: SubnetKey | None,
    *,
    ours: IsOurs,
) -> Surroundings:
    """The surroundings of the overlay on this node, as they are now.

    Raises:
        KernelError: links, addresses or routes could not be listed.
    """
    links = await netlink.links()
    return survey(
        await netlink.addresses(),
        [
            route
            for family in {family_of(network) for network in networks}
            for route in await netlink.routes(family, near=networks)
        ],
        own=own,
        ours=own_devices(links, ours),
        networks=networks,
        store=store,
        names={link.index: link.name for link in links},
    )


def own_devices(links: Iterable[Link], ours: IsOurs) -> frozenset[int]:
    """The ifindexes of the overlay's devices."""
    return frozenset(link.index for link in links if ours(link.name, link.kind))


def _competes(route: Route) -> bool:
    """Whether a route would be replaced by ours, which has no metric, or be in force beside it.

    In IPv4 that is a route without a metric; one with a metric stays in the table behind ours, as
    behind upstream's. In IPv6 ours has the metric 1024 (`IP6_RT_PRIO_USER`).
    """
    return route.metric == 0 or (route.dst.version == 6 and route.metric <= IPV6_DEFAULT_METRIC)


def _destination(dst: IPNetwork) -> str:
    return "everywhere (default)" if dst.prefixlen == 0 else str(dst)


def _is_near(net: IPNetwork, networks: Iterable[IPNetwork]) -> bool:
    return any(overlap(net, network) for network in networks)


def _is_in(address: IPAddress, nets: Iterable[IPNetwork]) -> bool:
    return any(address in net for net in nets)


def _is_part(net: IPNetwork, nets: Iterable[IPNetwork]) -> bool:
    """Whether a prefix equals or lies in one of others."""
    return any(net.prefixlen >= outer.prefixlen and net.network_address in outer for outer in nets)
