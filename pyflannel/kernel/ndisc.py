"""Tells the neighbours of a link which MAC an IPv6 address of this node has now.

A neighbour that knows the address goes on sending to the MAC it learned until the entry is no
longer believed: 30 s of "reachable time", and some seconds of probing. Where the card was replaced,
or its MAC changed, an unsolicited neighbour advertisement ends that at once (RFC 4861 §7.2.6). It
creates no entry where there is none (§7.2.5). IPv4 needs no such thing: a node with an empty ARP
table asks for its neighbours by broadcast, and all of them learn from the question.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv6Address
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.sysctl import read_sysctl

NEIGHBOUR_ADVERTISEMENT: Final = 136
ALL_NODES: Final = "ff02::1"
"""RFC 4861 §4.4: type of the message, and where an unsolicited one goes."""
_ROUTER: Final = 0x80000000
_OVERRIDE: Final = 0x20000000
_TARGET_LINK_LAYER_ADDRESS: Final = 2
_HOP_LIMIT: Final = 255
"""§4.4, §4.6.1, and §7.1.2: a receiver drops what may have been forwarded."""


def advertisement(address: IPv6Address, mac: str, *, router: bool) -> bytes:
    """The ICMPv6 message without its checksum, which the kernel fills in.

    Args:
        address: the one that is told of.
        mac: `aa:bb:…`, where it is now.
        router: whether this node forwards IPv6: neighbours that take it for a router and read
            otherwise drop their routes through it.
    """
    flags = _OVERRIDE | (_ROUTER if router else 0)
    head = struct.pack("!BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, flags)
    # The option's length is in units of 8 bytes.
    option = struct.pack(
        "!BB6s", _TARGET_LINK_LAYER_ADDRESS, 1, bytes.fromhex(mac.replace(":", ""))
    )
    return head + address.packed + option


def advertise(name: str, index: int, address: IPv6Address, mac: str) -> None:
    """Sends one advertisement out of an interface.

    Raises:
        KernelError: it could not be sent: CAP_NET_RAW is missing, the interface is down, or the
            address is not usable yet (`EADDRNOTAVAIL`, while duplicates are being looked for).
    """
    operation, subject = "neighbour advertisement", f"{address} dev {name}"
    message = advertisement(address, mac, router=_forwards(name))
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            sock.settimeout(0)
            for option, value in (
                (socket.IPV6_MULTICAST_HOPS, _HOP_LIMIT),
                (socket.IPV6_MULTICAST_IF, index),
                (socket.IPV6_MULTICAST_LOOP, 0),
            ):
                sock.setsockopt(socket.IPPROTO_IPV6, option, value)
            sock.bind((str(address), 0, 0, index))
            sock.sendto(message, (ALL_NODES, 0, 0, index))
    except OSError as error:
        hint = "is CAP_NET_RAW missing?" if error.errno == errno.EPERM else ""
        raise KernelError(operation, subject, error.errno or 0, hint) from error


def _forwards(name: str) -> bool:
    try:
        return read_sysctl(f"net/ipv6/conf/{name}/forwarding") != "0"
    except (KernelError, ValueError):
        return False


def tell_neighbours(underlay: ExternalInterface) -> None:
    """Advertises an external interface's IPv6 address with the MAC it has now.

    Raises:
        KernelError: it could not be sent.
    """
    if underlay.address6 is not None:
        advertise(underlay.name, underlay.index, underlay.address6, underlay.mac)
