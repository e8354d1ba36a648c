"""Which policies of IPsec are for the datagrams of a UDP port."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.kernel import xfrm
from pyflannel.kernel.rtnl import attribute

HERE, PORT = IPv4Address("192.0.2.1"), 8285
PEER = IPv4Network("192.0.2.2/32")
IN, OUT, FORWARD = 0, 1, 2
ALLOW, BLOCK = 0, 1
ESP = attribute(5, bytes(64))


def policy(
    direction: int = OUT,
    *,
    to: str = "192.0.2.2/32",
    source: str = "192.0.2.1/32",
    ports: tuple[int, int] = (0, 0),
    protocol: int = 0,
    family: int = socket.AF_INET,
    action: int = ALLOW,
    more: bytes = ESP,
    priority: int = 0,
) -> bytes:
    """As the kernel lists it; `ports` of destination and source, 0 for any."""
    networks = [IPv4Network(each) for each in (to, source)]
    packed = [each.network_address.packed.ljust(16, b"\0") for each in networks]
    masked = [half for port in ports for half in (port, 0xFFFF if port else 0)]
    selector = struct.pack(
        "=16s16s8sHBBB3xiI",
        *packed,
        struct.pack(">4H", *masked),
        family,
        *(each.prefixlen for each in networks),
        protocol,
        *(0, 0),
    )
    return struct.pack("=56s96xIIBBBB4x", selector, priority, 9, direction, action, 0, 0) + more


@pytest.mark.parametrize(
    "body",
    [
        policy(),
        policy(IN, to="192.0.2.1/32", source="192.0.2.2/32"),
        policy(action=BLOCK, more=b""),
        policy(source="192.0.0.0/16", protocol=socket.IPPROTO_UDP, ports=(PORT, 0)),
        policy(ports=(0, PORT)),
        policy(more=ESP + attribute(21, struct.pack("=II", 0, 0xFF))),
        policy(IN, to="192.0.2.1/32", source="192.0.2.2/32", ports=(PORT, 4500)),
    ],
    ids=["out", "in", "block", "our port", "from our port", "no mark", "behind a NAT"],
)
def test_those_for_us_name_the_other_side(body: bytes) -> None:
    assert xfrm.far_side(body, HERE, PORT) == PEER


@pytest.mark.parametrize(
    "body",
    [
        policy(FORWARD),
        policy(source="192.0.2.9/32"),
        policy(protocol=socket.IPPROTO_TCP),
        policy(ports=(4789, 0)),
        policy(ports=(0, 53)),
        policy(more=b""),
        policy(more=ESP + attribute(21, struct.pack("=II", 7, 0xFF))),
        policy(more=ESP + attribute(31, struct.pack("=I", 42))),
        policy(family=socket.AF_INET6),
        policy(IN, to="192.0.2.2/32", source="192.0.2.1/32"),
    ],
    ids=[
        *("forward", "address", "protocol", "port", "source port", "asks for nothing", "mark"),
        *("interface", "IPv6", "the other way"),
    ],
)
def test_others_are_none(body: bytes) -> None:
    assert xfrm.far_side(body, HERE, PORT) is None


def test_our_own_bolt_is_none() -> None:
    """It blocks what comes to the FOU port, which the programs have looked at before."""
    ours = xfrm._packed(HERE, PORT, BLOCK)
    assert xfrm._unpack(ours)[1].bolted == (HERE, PORT)
    assert xfrm.far_side(ours, HERE, PORT) is None
