"""Links: the messages that upstream sends, byte for byte, and what is read of them."""

import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from pyflannel.kernel import links
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
    request = links.create_link(VXLAN)
    assert (request.kind, request.flags) == (16, EXCLUSIVE)
    same(request.body, UPSTREAM_VXLAN)


def test_an_ipip_device_is_created_as_upstream_does() -> None:
    """With no MTU and no MAC of our choice."""
    spec = LinkSpec(
        name="flannel.ipip", kind="ipip", txqlen=0, ipip=IpipAttrs(local=IPv4Address("192.0.2.1"))
    )
    request = links.create_link(spec)
    assert (request.kind, request.flags) == (16, EXCLUSIVE)
    same(request.body, UPSTREAM_IPIP)


def _vxlan_data(vxlan: VxlanAttrs) -> dict[int, object]:
    tree = dict(_tree(links.create_link(replace(VXLAN, vxlan=vxlan)).body[16:]))
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
    link = links.decode_link(links.create_link(spec).body)
    assert (link.name, link.kind, link.vxlan, link.ipip) == (
        spec.name,
        spec.kind,
        spec.vxlan,
        spec.ipip,
    )


def test_a_link_without_a_mac_has_an_empty_one() -> None:
    """The link-layer address of an ipip device is an IPv4 address."""
    message = links.create_link(LinkSpec(name="t", kind="ipip")).body
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


def _by_pyroute2(spec: LinkSpec) -> bytes:
    """The same as pyroute2 makes it, which knows attributes by their names."""
    info: list[tuple[str, object]] = [("IFLA_INFO_KIND", spec.kind)]
    if spec.vxlan is not None:
        info.append(("IFLA_INFO_DATA", {"attrs": _vxlan_names(spec.vxlan)}))
    elif spec.ipip is not None:
        info.append(("IFLA_INFO_DATA", {"attrs": _ipip_names(spec.ipip)}))
    named = (
        ("IFLA_IFNAME", spec.name),
        ("IFLA_MTU", spec.mtu),
        ("IFLA_TXQLEN", spec.txqlen),
        ("IFLA_ADDRESS", spec.mac),
        ("IFLA_LINKINFO", {"attrs": info}),
    )
    message = ifinfmsg()
    message["attrs"] = [(name, value) for name, value in named if value is not None]
    message.encode()
    return bytes(message.data[16:])


def _vxlan_names(vxlan: VxlanAttrs) -> list[tuple[str, object]]:
    def family(name: str, address: Any) -> tuple[str, str]:
        return (name if address.version == 4 else f"{name}6", str(address))

    return [
        ("IFLA_VXLAN_ID", vxlan.vni),
        *([family("IFLA_VXLAN_GROUP", vxlan.group)] if vxlan.group is not None else []),
        *([("IFLA_VXLAN_LINK", vxlan.link)] if vxlan.link else []),
        *([family("IFLA_VXLAN_LOCAL", vxlan.local)] if vxlan.local is not None else []),
        ("IFLA_VXLAN_TTL", 0),
        ("IFLA_VXLAN_TOS", 0),
        ("IFLA_VXLAN_LEARNING", int(vxlan.learning)),
        ("IFLA_VXLAN_PROXY", 0),
        ("IFLA_VXLAN_RSC", 0),
        ("IFLA_VXLAN_L2MISS", int(vxlan.l2miss)),
        ("IFLA_VXLAN_L3MISS", 0),
        ("IFLA_VXLAN_UDP_ZERO_CSUM6_TX", 0),
        ("IFLA_VXLAN_UDP_ZERO_CSUM6_RX", 0),
        *([("IFLA_VXLAN_GBP", None)] if vxlan.gbp else []),
        *([("IFLA_VXLAN_PORT", vxlan.port)] if vxlan.port else []),
    ]


def _ipip_names(ipip: IpipAttrs) -> list[tuple[str, object]]:
    # Its name for IFLA_IPTUN_*.
    return [
        *([("IFLA_IPIP_LOCAL", str(ipip.local))] if ipip.local is not None else []),
        *([("IFLA_IPIP_REMOTE", str(ipip.remote))] if ipip.remote is not None else []),
        *([("IFLA_IPIP_LINK", ipip.link)] if ipip.link else []),
        ("IFLA_IPIP_PMTUDISC", 0),
        ("IFLA_IPIP_TTL", 0),
        ("IFLA_IPIP_TOS", 0),
        ("IFLA_IPIP_ENCAP_TYPE", 0),
        ("IFLA_IPIP_ENCAP_FLAGS", 0),
        ("IFLA_IPIP_ENCAP_SPORT", 0),
        ("IFLA_IPIP_ENCAP_DPORT", 0),
        ("IFLA_IPIP_PROTO", 0),
    ]


V4, V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
VXLANS = [
    VxlanAttrs(vni=vni, link=link, local=local, group=group, port=port, learning=odd, gbp=odd)
    for vni, link, local, group, port, odd in (
        (1, 2, V4, None, 8472, False),
        (4096, 3, V6, None, 4789, True),
        (2**24 - 1, 0, None, IPv4Address("239.1.1.1"), 0, True),
        (7, 9, V6, IPv6Address("ff02::7"), 65535, False),
    )
]


@pytest.mark.parametrize(
    "spec",
    [
        *(replace(VXLAN, vxlan=each) for each in VXLANS),
        replace(VXLAN, vxlan=VxlanAttrs(vni=7, l2miss=True), mac=None, mtu=None, txqlen=None),
        LinkSpec(name="flannel.ipip", kind="ipip", ipip=IpipAttrs()),
        LinkSpec(name="t", kind="ipip", mtu=1480, ipip=IpipAttrs(local=V4, remote=V4, link=2)),
        LinkSpec(name="sixteen-letters", kind="bridge", mac="02:00:00:00:00:01"),
    ],
    ids=str,
)
def test_pyroute2_would_make_the_same(spec: LinkSpec) -> None:
    assert links.create_link(spec).body == _by_pyroute2(spec)
