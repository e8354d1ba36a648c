"""Looks up what `core.underlay` chooses from: links, addresses, and the routes that matter."""

from __future__ import annotations

from collections.abc import Sequence

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, parse_ip
from pyflannel.core.options import DaemonOptions
from pyflannel.core.underlay import (
    Candidate,
    CandidateAddress,
    RouteFound,
    Selection,
    Surroundings,
    select_interface,
)
from pyflannel.kernel.base import RTN_UNICAST, Address, Link, Netlink, Route
from pyflannel.logs import get_logger

log = get_logger(__name__)


async def find_interface(
    netlink: Netlink, options: DaemonOptions, families: Sequence[Family]
) -> Selection:
    """Chooses the external interface of this network namespace, by `core.underlay`'s rules.

    Raises:
        InterfaceError: nothing fits.
        KernelError: links or addresses could not be listed.
    """
    return select_interface(options, families, await look_around(netlink, options, families))


async def look_around(
    netlink: Netlink, options: DaemonOptions, families: Sequence[Family]
) -> Surroundings:
    """Everything the choice needs and nothing more: routes only where no option says better.

    Raises:
        KernelError: links, addresses or routes could not be listed.
    """
    links = await netlink.links()
    addresses = await netlink.addresses()
    return Surroundings(
        candidates=candidates(links, addresses),
        default_routes=await _default_routes(netlink, options, families),
        reach=await _reach(netlink, options.iface_can_reach),
    )


def candidates(links: Sequence[Link], addresses: Sequence[Address]) -> tuple[Candidate, ...]:
    """Links with their addresses, in the order of their index."""
    of_link: dict[int, list[CandidateAddress]] = {}
    for address in addresses:
        of_link.setdefault(address.index, []).append(
            CandidateAddress(
                ip=address.interface.ip,
                permanent=address.permanent,
                temporary=address.temporary,
                deprecated=address.deprecated,
            )
        )
    return tuple(
        Candidate(
            name=link.name,
            index=link.index,
            mtu=link.mtu,
            up=link.up,
            loopback=link.loopback,
            addresses=tuple(of_link.get(link.index, ())),
        )
        for link in sorted(links, key=lambda link: link.index)
    )


async def _default_routes(
    netlink: Netlink, options: DaemonOptions, families: Sequence[Family]
) -> dict[Family, RouteFound]:
    if options.iface or options.iface_regex or options.iface_can_reach:
        return {}
    if options.public_ip or options.public_ipv6:
        return {}
    found: dict[Family, RouteFound] = {}
    for family in families:
        route = first_default(await netlink.routes(family))
        if route is not None:
            found[family] = RouteFound(route.oif, route.src)
    return found


def first_default(routes: Sequence[Route]) -> Route | None:
    """The first route to everywhere; `unreachable default` and its like lead nowhere."""
    for route in routes:
        if route.dst.prefixlen == 0 and route.type == RTN_UNICAST:
            return route
    return None


async def _reach(netlink: Netlink, target: str) -> RouteFound | None:
    if not target:
        return None
    try:
        route = await netlink.route_lookup(parse_ip(target))
    except ValueError:
        return None  # the choice says what is wrong with it
    except KernelError as error:
        log.warning("route lookup failed", target=target, error=error)
        return None
    return RouteFound(route.oif, route.src) if route is not None else None
