"""Whose a route of the main table is, as far as the kernel tells.

flannel's own routes carry no mark (see `backend/routes.py`). What can be told is who is at work on
a table at all, by `rtm_protocol`. The kernel's header says which values have a meaning for it:

| value | written by |
|---|---|
| 0 unspec, 3 boot, 4 static | an administrator, a script, or flannel: nobody watches over it |
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

from typing import Final

from pyflannel.kernel.base import RTPROT_BOOT, RTPROT_KERNEL, Route

RTPROT_UNSPEC: Final = 0
RTPROT_STATIC: Final = 4
UNATTENDED: Final = frozenset((RTPROT_UNSPEC, RTPROT_BOOT, RTPROT_STATIC))
"""Protocols of routes that nobody watches over."""

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
