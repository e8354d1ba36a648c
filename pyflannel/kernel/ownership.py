"""What in the kernel's tables is ours, and whose the rest is, as far as that can be told.

Ours is what this daemon made, an earlier run of it, or upstream's flanneld, whose place it takes.
Nothing of it carries a mark (an upstream node that takes over, or one that we take over from, would
see foreign objects), so it is recognised by what it is; `docs/ownership.md` has the whole list.
Backends recognise what they keep in the present network by their plans (`backend/routes.py`); here
is what all of them, the start and `pyflannel cleanup` share. Pure.

Routes first. What can be told of any route is who is at work on the table, by `rtm_protocol`. The
kernel's header says which values have a meaning for it:

| value | written by |
|---|---|
| 0 unspec, 3 boot, 4 static | an administrator, a script, or flannel: no daemon watches over it |
| 1 redirect, 2 kernel | the kernel, from an ICMP redirect or an address |
| above 4 | a program that keeps routes |

The last ones "are not interpreted by kernel", they are for "hypothetical multiple routing daemons":
zebra (11), bird (12), bgp (186), ospf (188) and their like; dhcp (16) and ra (9) too, which are the
network's own word on how it is reached, given again at every renewal. Any number is allowed, so
nothing depends on a list of them.

Routes of the first kind that lead exactly to a peer's subnet are replaced. The others are never
replaced and never deleted, whatever they lead to.

Source: linux/rtnetlink.h, `RTPROT_*` and the comment below them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pyflannel.core import traces
from pyflannel.core.ip import IPNetwork
from pyflannel.core.overlap import overlap
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.kernel.base import (
    NUD_PERMANENT,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTPROT_BOOT,
    RTPROT_KERNEL,
    Address,
    Neighbour,
    Route,
)

RTPROT_UNSPEC: Final = 0
RTPROT_STATIC: Final = 4
UNATTENDED: Final = frozenset((RTPROT_UNSPEC, RTPROT_BOOT, RTPROT_STATIC))
"""Protocols of routes that no daemon watches over."""
LISTED: Final = (RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC)
"""Protocols whose routes are read again and again: the kernel's, flannel's, administrators'. A
router has a hundred thousand of the others; they are read when one of them matters."""

_NAMES: Final = {
    1: "redirect", 2: "kernel", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird",
    13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived",
    42: "babel", 99: "openr", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
"""As ip(8) prints them; for messages only."""


def is_protected(route: Route) -> bool:
    """Whether a route is the kernel's or a routing daemon's, so neither replaced nor deleted."""
    return route.protocol not in UNATTENDED


def is_kernels(route: Route) -> bool:
    """Whether the kernel made a route itself, out of an address."""
    return route.protocol == RTPROT_KERNEL


def is_near(route: Route, networks: Collection[IPNetwork]) -> bool:
    """Whether a route leads into one of some prefixes, or has a next hop there."""
    return any(
        _is_part(route.dst, network)
        or any(hop.version == network.version and hop in network for hop in route.next_hops)
        for network in networks
    )


def describe(route: Route, device: str = "") -> str:
    """A route as `ip route` shows it, with its protocol.

    Args:
        route: the route.
        device: name of its link, if known.
    """
    text = str(route).removeprefix("route ")
    if device and route.oif is not None:
        text = text.replace(f"dev {route.oif}", f"dev {device}")
    return f"{text} proto {_NAMES.get(route.protocol, route.protocol)}"


def is_left_by(route: Route, former: SubnetEnv, ours: Collection[int]) -> bool:
    """Whether a route was made by the run that wrote `subnet.env`, ours or upstream's.

    * On a device of ours: whatever leads into its network and not into its own subnet (the bridge
      of the containers has that).
    * Through any link: one to a subnet of its length, as host-gw and vxlan write them.
    * The blackhole route of its own subnet.

    Args:
        route: of the main table.
        former: what the file says. What it does not say, nothing is recognised by.
        ours: ifindexes of devices of ours.
    """
    if is_protected(route):
        return False
    network, own = (
        (former.network, former.subnet)
        if route.dst.version == 4
        else (former.ipv6_network, former.ipv6_subnet)
    )
    on_ours = (
        route.oif in ours
        and network is not None
        and _is_part(route.dst, network)
        and not (own is not None and _is_part(route.dst, own))
    )
    plain = (
        route.protocol == RTPROT_BOOT
        and route.type == RTN_UNICAST
        and route.metric == 0
        and route.src is None
        and not route.altered
    )
    return (
        on_ours
        or traces.is_peer_route(former, route.dst, route.gateway, plain=plain)
        or traces.is_own_blackhole(former, route.dst, blackhole=route.type == RTN_BLACKHOLE)
    )


def is_address_of(address: Address, network: IPNetwork | None, ours: Collection[int]) -> bool:
    """Whether an address on a device of ours belongs to a cluster network: a host address in it."""
    interface = address.interface
    return (
        address.index in ours
        and network is not None
        and interface.version == network.version
        and interface.ip in network
    )


def is_neighbour_of(neighbour: Neighbour, network: IPNetwork | None) -> bool:
    """Whether a neighbour on a device of ours is a VTEP of a cluster network.

    Permanent ones only: the others come and go with what the device hears.
    """
    return (
        bool(neighbour.state & NUD_PERMANENT)
        and network is not None
        and neighbour.ip.version == network.version
        and neighbour.ip in network
    )


def _is_part(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.prefixlen >= outer.prefixlen and overlap(inner, outer)
