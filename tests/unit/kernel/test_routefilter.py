"""The program that drops notifications, run by an interpreter of classic BPF."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel import rtnl
from pyflannel.kernel.base import FdbEntry, Neighbour, Route
from pyflannel.kernel.objects import set_request
from pyflannel.kernel.ownership import RTPROT_STATIC, is_near
from pyflannel.kernel.routefilter import program

NETWORKS = (IPv4Network("10.5.0.0/18"), IPv6Network("fd00:5::/44"))
NLATTR = 0x1_0000_0000 - 0x1000 + 12


def passes(code: bytes, packet: bytes) -> bool:
    """Runs a program on a message, as the kernel's documentation has it (networking/filter)."""
    instructions = list(struct.iter_unpack("=HBBI", code))
    a = x = at = 0
    while True:
        kind, then, otherwise, k = instructions[at]
        at += 1
        match kind:
            case 0x20 if k == NLATTR:
                a = find(packet, a, x)
            case 0x20 | 0x40:
                start = k + (x if kind == 0x40 else 0)
                if start + 4 > len(packet):
                    return False
                (a,) = struct.unpack_from("!I", packet, start)
            case 0x28:
                (a,) = struct.unpack_from("!H", packet, k)
            case 0x30:
                a = packet[k]
            case 0x00:
                a = k
            case 0x01:
                x = k
            case 0x07:
                x = a
            case 0x54:
                a &= k
            case 0x15:
                at += then if a == k else otherwise
            case 0x25:
                at += then if a > k else otherwise
            case 0x06:
                return k != 0
            case _:
                raise AssertionError(f"no such instruction: {kind:#x}")


def find(packet: bytes, start: int, kind: int) -> int:
    while start + 4 <= len(packet):
        length, found = struct.unpack_from("=HH", packet, start)
        if found == kind:
            return start
        start += (length + 3) & ~3
    return 0


def message(route: Route, kind: int = rtnl.RTM_NEWROUTE) -> bytes:
    return rtnl.pack(rtnl.Request(kind, 0, set_request(route).body), 1)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    """Near the networks or elsewhere, of either family."""
    if draw(st.booleans()):
        base = draw(st.sampled_from([0x0A050000, 0x0A054000, 0x0A060000]))
        dst = IPv4Network(
            (base + draw(st.integers(0, 0x3FFF)), draw(st.integers(0, 32))), strict=False
        )
        via = IPv4Address(draw(st.sampled_from([0x0A050001, 0x0A054001, 0xC0000201])))
    else:
        base = draw(st.sampled_from([0xFD000005 << 96, 0xFD000005 << 96 | 1 << 84, 0xFD00 << 112]))
        dst = IPv6Network(
            (base + draw(st.integers(0, 7)) * 2**80, draw(st.integers(0, 128))), strict=False
        )
        via = IPv6Address(draw(st.sampled_from([0xFD000005 << 96 | 1, 0xFD000006 << 96 | 1])))
    gateway = draw(st.sampled_from([None, via]))
    return Route(
        dst=dst, gateway=gateway, oif=3, protocol=draw(st.sampled_from([2, 3, 4, 12, 186]))
    )


@given(route=routes(), kind=st.sampled_from([rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE]))
def test_of_routing_daemons_what_is_near_or_leads_everywhere_passes(route, kind):
    always = route.protocol <= RTPROT_STATIC or route.dst.prefixlen == 0
    # Prefix lengths are not compared: a wider one that begins with a network passes as well.
    starts = any(
        route.dst.version == net.version and route.dst.network_address in net for net in NETWORKS
    )
    wanted = always or starts or is_near(route, NETWORKS)
    assert passes(program(NETWORKS), message(route, kind)) is wanted


@pytest.mark.parametrize("kind", [rtnl.RTM_NEWLINK, rtnl.RTM_DELADDR, rtnl.RTM_NEWNEIGH])
def test_other_messages_pass(kind):
    far = Route(dst=IPv4Network("203.0.113.0/24"), oif=3, protocol=12)
    assert passes(program(NETWORKS), message(far, kind))


def test_other_tables_do_not():
    """A listing does not show them either."""
    static = Route(dst=IPv4Network("10.5.1.0/24"), oif=3, protocol=4)
    whole = bytearray(message(static))
    whole[20] = 100
    assert not passes(program(NETWORKS), bytes(whole))


def test_without_networks_only_the_default_routes_of_routing_daemons_pass():
    near = Route(dst=IPv4Network("10.5.1.0/24"), oif=3, protocol=12)
    assert not passes(program(()), message(near))
    assert passes(program(()), message(replace(near, dst=IPv4Network("0.0.0.0/0"))))


@pytest.mark.parametrize("near", [None, NETWORKS])
@pytest.mark.parametrize("kind", [rtnl.RTM_NEWNEIGH, rtnl.RTM_DELNEIGH])
@pytest.mark.parametrize(
    "item",
    [
        Neighbour(index=7, ip=IPv4Address("10.5.1.0"), mac="02:00:00:00:00:01"),
        Neighbour(index=7, ip=IPv6Address("fd00:5::1"), mac="02:00:00:00:00:01"),
        FdbEntry(index=7, mac="02:00:00:00:00:01", dst=IPv4Address("192.0.2.7")),
    ],
    ids=["neighbour", "neighbour6", "fdb"],
)
def test_neighbours_and_fdb_entries_pass_by_their_link(near, kind, item):
    body = set_request(item).body
    whole = rtnl.pack(rtnl.Request(kind, 0, body), 1)
    for links, wanted in (({7}, True), ({3, 7}, True), ({3, 0x700}, False), ((), False)):
        assert passes(program(near, links), whole) is wanted
    assert passes(program(near), whole)


def test_the_choice_of_links_changes_nothing_else():
    far = Route(dst=IPv4Network("203.0.113.0/24"), oif=3, protocol=12)
    for kind in (rtnl.RTM_NEWROUTE, rtnl.RTM_NEWLINK, rtnl.RTM_NEWADDR):
        assert passes(program(None, {7}), message(far, kind))
        assert passes(program(NETWORKS, {7}), message(far, kind)) is (kind != rtnl.RTM_NEWROUTE)


def test_it_is_short():
    """It runs for each change, in the context of the process that makes it."""
    assert len(program(NETWORKS)) // 8 < 64
