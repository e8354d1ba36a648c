"""Looks up what `core.underlay` chooses from: links, addresses, and the routes that matter.

Routes are the dear part (a router has a hundred thousand), so they are read only where there is a
choice to be made: at the start, and when what carries the overlay is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress, SubnetKey, parse_ip
from pyflannel.core.matching import select_interface
from pyflannel.core.moving import move, standing
from pyflannel.core.options import DaemonOptions
from pyflannel.core.underlay import (
    Candidate,
    CandidateAddress,
    ExternalInterface,
    RouteFound,
    Selection,
    Surroundings,
)
from pyflannel.kernel.base import RTN_UNICAST, Address, Link, Netlink, Route
from pyflannel.logs import get_logger

log = get_logger(__name__)

IsOurs = Callable[[str, str], bool]
"""Whether a device is the overlay's own, by its name and kind: such a one never carries it."""


async def find_interface(
    netlink: Netlink,
    options: DaemonOptions,
    families: Sequence[Family],
    *,
    ours: IsOurs,
    prefer: Sequence[IPAddress] = (),
    public: Collection[IPAddress] = (),
) -> Selection:
    """Chooses the external interface of this network namespace, by `core.underlay`'s rules.

    Args:
        ours: tells the overlay's devices.
        prefer: addresses that this node published before, see `select_interface`.
        public: taken in the place of `--public-ip` and `--public-ipv6`, each of its family.

    Raises:
        InterfaceError: nothing fits.
        KernelError: links or addresses could not be listed.
    """
    options = _with_public(options, public)
    around = await look_around(netlink, options, families, ours)
    return select_interface(options, families, around, prefer=prefer)


async def follow_interface(
    netlink: Netlink,
    options: DaemonOptions,
    families: Sequence[Family],
    *,
    ours: IsOurs,
    current: ExternalInterface,
    home: ExternalInterface,
    own: SubnetKey | None,
    public: Collection[IPAddress] = (),
) -> ExternalInterface:
    """What is to carry the overlay from now on: the same as a rule, see `core.underlay`.

    Args:
        ours: tells the overlay's devices.
        current: what carries it now.
        home: what carried it first.
        own: the subnet of this node.
        public: as for `find_interface`.

    Raises:
        InterfaceError: what carries it cannot be used, and nothing else fits.
        KernelError: links, addresses or routes could not be listed.
    """
    options = _with_public(options, public)
    there = candidates(await netlink.links(), await netlink.addresses(), ours)
    kept = standing(current, home, options, families, Surroundings(candidates=there))
    if kept is not None:
        return kept
    around = await look_around(netlink, options, families, ours)
    # Once more: the machine may have come to rest between the two looks.
    kept = standing(current, home, options, families, around)
    if kept is not None:
        return kept
    return move(current, home, options, families, around, own).interface


def _with_public(options: DaemonOptions, public: Collection[IPAddress]) -> DaemonOptions:
    """The options with other public addresses."""
    for ip in public:
        if ip.version == 4:
            options = replace(options, public_ip=str(ip))
        else:
            options = replace(options, public_ipv6=str(ip))
    return options


async def look_around(
    netlink: Netlink, options: DaemonOptions, families: Sequence[Family], ours: IsOurs
) -> Surroundings:
    """Everything the choice needs and nothing more: routes only where no option says better.

    Raises:
        KernelError: links, addresses or routes could not be listed.
    """
    links = await netlink.links()
    addresses = await netlink.addresses()
    return Surroundings(
        candidates=candidates(links, addresses, ours),
        default_routes=await _default_routes(netlink, options, families),
        reach=await _reach(netlink, options.iface_can_reach),
    )


def candidates(
    links: Sequence[Link], addresses: Sequence[Address], ours: IsOurs
) -> tuple[Candidate, ...]:
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
            running=link.running,
            loopback=link.loopback,
            ours=ours(link.name, link.kind),
            mac=link.mac,
            addresses=tuple(of_link.get(link.index, ())),
        )
        for link in sorted(links, key=lambda link: link.index)
    )


async def _default_routes(
    netlink: Netlink, options: DaemonOptions, families: Sequence[Family]
) -> dict[Family, Sequence[RouteFound]]:
    if options.iface or options.iface_regex or options.iface_can_reach:
        return {}
    if options.public_ip or options.public_ipv6:
        return {}
    return {
        family: [
            RouteFound(route.oif, route.src)
            for route in default_routes(await netlink.routes(family))
        ]
        for family in families
    }


def default_routes(routes: Sequence[Route]) -> list[Route]:
    """The routes to everywhere; `unreachable default` and its like lead nowhere."""
    return [route for route in routes if route.dst.prefixlen == 0 and route.type == RTN_UNICAST]


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
