"""Whether segments can be joined at the card here, and whose a FOU port is; nothing but decisions.

What is done about it stands in `cardgro.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address
from typing import Final

from pyflannel.kernel.fou import IPPROTO_IPIP, FouPort
from pyflannel.kernel.xfrm import Policy
from pyflannel.records import dataclass

FIRST_LINUX: Final = (6, 12)
"""The first that was measured. Before 6.9 the kernel finishes a joined packet by the addresses of
what is inside, misses the port that is bound to an address, and leaves wrong lengths: 6 Mbit/s on
6.1 (net/ipv4/udp_offload.c; commit 5ef31ea5d053)."""
TOO_OLD: Final = "it needs Linux {}.{}".format(*FIRST_LINUX)
STACKED: Final = frozenset(
    {"vlan", "bond", "team", "bridge", "openvswitch", "macvlan", "macvtap", "ipvlan", "ipvtap"}
)
"""Kinds of link whose packets are joined at the devices below, which the port is not bound to."""
NOT_ASKED: Final = "not asked for"
NO_FOU: Final = "no FOU; try: modprobe fou"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What there is on this node."""

    linux: tuple[int, int]
    has_fou: bool
    """Whether the kernel has FOU, and its module is loaded."""
    kind: str
    """Of the external interface; empty for a card."""
    can_step_aside: bool
    """See `kernel.udp`."""
    unchecked: tuple[str, ...] = ()
    """Kernel settings in force that have policies passed by."""
    ports: Collection[FouPort] = ()
    """All FOU ports."""
    policies: Collection[Policy] = ()
    """All xfrm policies for what comes in."""


def wanted_port(address: IPv4Address, port: int, ifindex: int) -> FouPort:
    """The one that joins what comes in for a node: its payload is IPv4, as in IP in IP."""
    return FouPort(port=port, protocol=IPPROTO_IPIP, local=address, ifindex=ifindex)


def is_ours(port: FouPort | None, policies: Iterable[Policy]) -> bool:
    """Whether an earlier run has added a port: its bolt, which was there first, is the sign.

    A FOU port has no room for a note, and no owner.
    """
    if port is None:
        return False
    shape = port.protocol == IPPROTO_IPIP and port.plain and port.ifindex != 0
    return shape and any(each.bolted == (port.local, port.port) for each in policies)


def superfluous(
    ports: Iterable[FouPort], policies: Collection[Policy], keep: FouPort | None
) -> tuple[list[FouPort], list[Policy]]:
    """What of ours is to go: ports, and then bolts."""
    former = [port for port in ports if port != keep and is_ours(port, policies)]
    kept = (keep.local, keep.port) if keep is not None else None
    return former, [each for each in policies if each.bolted not in (None, kept)]


def obstacle(wanted: FouPort, found: Surroundings) -> str:
    """Why segments are not joined at the card; empty if they can be."""
    if found.linux < FIRST_LINUX:
        return TOO_OLD
    if not found.has_fou:
        return NO_FOU
    if found.kind in STACKED:
        return f"packets are joined at the devices below the external interface, a {found.kind}"
    if not found.can_step_aside:
        return "CAP_NET_RAW is missing"
    if found.unchecked:
        return f"{found.unchecked[0]} is set, so nothing would keep others out of the FOU port"
    if any(each.bolted is None for each in found.policies):
        return "there are policies of IPsec: what they let in does not come past the programs"
    # Of each number the kernel takes one, whatever the addresses (`fou_add_to_port_list`).
    if any(port.port == wanted.port and not is_ours(port, found.policies) for port in found.ports):
        return f"there is a FOU port {wanted.port} that is not ours"
    return ""
