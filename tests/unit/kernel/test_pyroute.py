"""What goes through pyroute2: the messages that upstream sends, byte for byte."""

import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.kernel import links, pyroute, rtnl
from pyflannel.kernel.base import IpipAttrs, LinkSpec, VxlanAttrs

EXCLUSIVE = 0x1 | 0x4 | 0x200 | 0x400
IFINFOMSG = bytes(16)

# Bodies of RTM_NEWLINK as upstream's v0.28.9 sends them (strace, index 2 = external interface).
UPSTREAM_IPIP = IFINFOMSG + bytes.fromhex(
    "1100 0300 666c616e6e656c2e6970697000 000000"
    "0800 0d00 00000000"
    "5800 1200"
    "0800 0100 69706970"
    "4c00 0200"
    "0800 0200 c0000201"
    "0500 0a00 00000000 0500 0400 00000000 0500 0500 00000000"
    "0600 0f00 00000000 0600 1000 00000000 0600 1100 00000000 0600 1200 00000000"
    "0500 0900 00000000"
)
UPSTREAM_VXLAN = IFINFOMSG + bytes.fromhex(
    "0e00 0300 666c616e6e656c2e3100 0000"
    "0800 0400 aa050000"
    "0800 0d00 00000000"
    "0a00 0100 7e507f5b7bf8 0000"
    "8000 1200"
    "0900 0100 76786c616e 000000"
    "7000 0200"
    "0800 0100 01000000 0800 0300 02000000 0800 0400 c0000201"
    "0500 0500 00000000 0500 0600 00000000 0500 0700 01000000"
    "0500 0b00 00000000 0500 0c00 00000000 0500 0d00 00000000 0500 0e00 00000000"
    "0500 1300 00000000 0500 1400 00000000"
    "0400 1700 0600 0f00 2119 0000"
)

VXLAN = LinkSpec(
    name="flannel.1",
    kind="vxlan",
    mtu=1450,
    mac="7e:50:7f:5b:7b:f8",
    txqlen=0,
    vxlan=VxlanAttrs(
        vni=1, link=2, local=IPv4Address("192.0.2.1"), port=8473, learning=True, gbp=True
    ),
)


def same(ours: bytes, theirs: bytes) -> None:
    """Equal, but for what pads a string that carries its own zero (kind, 5 or 6 bytes)."""
    assert _tree(ours[16:]) == _tree(theirs[16:])
    assert ours[:16] == theirs[:16]


NESTED = {18: {2: {}}}
"""IFLA_LINKINFO and in it IFLA_INFO_DATA."""


def _tree(data: bytes, nested: dict[int, dict] | None = None) -> list[tuple[int, object]]:  # type: ignore[type-arg]
    nested = NESTED if nested is None else nested
    found: list[tuple[int, object]] = []
    offset = 0
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 2], sys.byteorder)
        kind = int.from_bytes(data[offset + 2 : offset + 4], sys.byteorder) & 0x3FFF
        value = data[offset + 4 : offset + length]
        if kind in nested:
            found.append((kind, _tree(value, nested[kind])))
        else:
            text = value[:-1] if value[-1:] == b"\0" and value[:1].isalpha() else value
            found.append((kind, text))
        offset += length + 3 & ~3
    return found


def test_a_vxlan_device_is_created_as_upstream_does() -> None:
    """Same attributes, same values, same order; exclusively."""
    request = pyroute.create_link(VXLAN)
    assert (request.kind, request.flags) == (16, EXCLUSIVE)
    same(request.body, UPSTREAM_VXLAN)


def test_an_ipip_device_is_created_as_upstream_does() -> None:
    """With no MTU and no MAC of our choice."""
    spec = LinkSpec(
        name="flannel.ipip", kind="ipip", txqlen=0, ipip=IpipAttrs(local=IPv4Address("192.0.2.1"))
    )
    request = pyroute.create_link(spec)
    assert (request.kind, request.flags) == (16, EXCLUSIVE)
    same(request.body, UPSTREAM_IPIP)


def _vxlan_data(vxlan: VxlanAttrs) -> dict[int, object]:
    tree = dict(_tree(pyroute.create_link(replace(VXLAN, vxlan=vxlan)).body[16:]))
    info = dict(tree[18])  # type: ignore[call-overload]
    return dict(info[2])


def test_port_and_gbp_are_sent_only_if_asked_for() -> None:
    """No port is the kernel's 8472; GBP is a flag, there or not."""
    data = _vxlan_data(VxlanAttrs(vni=1))
    assert 15 not in data
    assert 23 not in data
    assert 3 not in data
    data = _vxlan_data(VxlanAttrs(vni=1, port=4789, gbp=True))
    assert data[15] == bytes.fromhex("12b5")
    assert data[23] == b""


def test_an_ipv6_tunnel_source_has_an_attribute_of_its_own() -> None:
    """IFLA_VXLAN_LOCAL6."""
    data = _vxlan_data(VxlanAttrs(vni=1, local=IPv6Address("2001:db8::1")))
    assert data[17] == IPv6Address("2001:db8::1").packed
    assert 4 not in data


@pytest.mark.parametrize(
    "spec",
    [
        VXLAN,
        replace(VXLAN, vxlan=VxlanAttrs(vni=7, local=IPv6Address("2001:db8::1"), l2miss=True)),
        replace(VXLAN, vxlan=VxlanAttrs(vni=7, link=2, group=IPv4Address("239.1.1.1"))),
        LinkSpec(
            name="flannel.ipip",
            kind="ipip",
            ipip=IpipAttrs(local=IPv4Address("192.0.2.1"), remote=IPv4Address("192.0.2.2"), link=2),
        ),
    ],
    ids=["vxlan", "vxlan6", "group", "ipip"],
)
def test_what_is_created_can_be_read(spec: LinkSpec) -> None:
    """The kernel reports the same attributes that it was given."""
    link = links.decode_link(pyroute.create_link(spec).body)
    assert (link.name, link.kind, link.vxlan, link.ipip) == (
        spec.name,
        spec.kind,
        spec.vxlan,
        spec.ipip,
    )


def test_a_link_without_a_mac_has_an_empty_one() -> None:
    """The link-layer address of an ipip device is an IPv4 address."""
    message = pyroute.create_link(LinkSpec(name="t", kind="ipip")).body
    four_bytes = bytes.fromhex("0800 0100 c0000201")
    assert links.decode_link(message + four_bytes).mac == ""


def test_only_what_changes_is_sent() -> None:
    """Index, flags with their mask, and the given attributes."""
    request = links.change_link(3, mtu=1400, mac=None, up=None, txqlen=None)
    assert request.body == bytes.fromhex("00000000 03000000 00000000 00000000 08000400 78050000")
    request = links.change_link(3, mtu=None, mac=None, up=True, txqlen=None)
    assert request.body == bytes.fromhex("00000000 03000000 01000000 01000000")
    request = links.change_link(3, mtu=None, mac=None, up=False, txqlen=None)
    assert request.body == bytes.fromhex("00000000 03000000 00000000 01000000")


def test_a_route_lookup_is_for_one_address() -> None:
    """All bits of it."""
    request = pyroute.look_up_route(IPv4Address("192.0.2.7"))
    assert request == rtnl.Request(
        26, 1, bytes.fromhex("02200000 00000000 00000000 08000100 c0000207")
    )
