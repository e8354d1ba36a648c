"""Links: how they are made, read, changed and deleted. It is what a daemon at rest reads most.

Not through pyroute2, which decodes all sixty attributes of a link, 0.14 ms for the simplest instead
of 0.01, and whose class for links takes 10 ms to import, a twentieth of a start. A test holds what
is made here to what pyroute2 makes.

Source: linux/if_link.h, linux/if_tunnel.h, linux/if.h.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address
from typing import Final

from pyflannel.core.ip import IPAddress
from pyflannel.kernel import rtnl
from pyflannel.kernel.base import IpipAttrs, Link, LinkSpec, VxlanAttrs
from pyflannel.kernel.rtnl import U32, Request, nested_attributes

IFINFOMSG: Final = struct.Struct("=BxHiII")
"""Family, type, index, flags, change."""
_PORT: Final = struct.Struct("!H")

IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFF_RUNNING: Final = 0x40

IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_TXQLEN: Final = 13
IFLA_LINKINFO: Final = 18
IFLA_EXT_MASK: Final = 29
IFLA_LINK_NETNSID: Final = 37
_SKIP_STATS: Final = 0x8
"""Asks for links without their 400 bytes of counters (linux/rtnetlink.h)."""
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2

_VXLAN_ID: Final = 1
_VXLAN_GROUP: Final = 2
_VXLAN_LINK: Final = 3
_VXLAN_LOCAL: Final = 4
_VXLAN_TTL: Final = 5
_VXLAN_TOS: Final = 6
_VXLAN_LEARNING: Final = 7
_VXLAN_PROXY: Final = 11
_VXLAN_RSC: Final = 12
_VXLAN_L2MISS: Final = 13
_VXLAN_L3MISS: Final = 14
_VXLAN_PORT: Final = 15
_VXLAN_GROUP6: Final = 16
_VXLAN_LOCAL6: Final = 17
_VXLAN_UDP_ZERO_CSUM6_TX: Final = 19
_VXLAN_UDP_ZERO_CSUM6_RX: Final = 20
_VXLAN_GBP: Final = 23
"""A flag: it is there or not."""

_IPTUN_LINK: Final = 1
_IPTUN_LOCAL: Final = 2
_IPTUN_REMOTE: Final = 3
_IPTUN_TTL: Final = 4
_IPTUN_TOS: Final = 5
_IPTUN_PROTO: Final = 9
_IPTUN_PMTUDISC: Final = 10
_IPTUN_ENCAP_TYPE: Final = 15
_IPTUN_ENCAP_FLAGS: Final = 16
_IPTUN_ENCAP_SPORT: Final = 17
_IPTUN_ENCAP_DPORT: Final = 18

_MAC_LENGTH: Final = 6


def dump_links() -> Request:
    """All links."""
    return Request(rtnl.RTM_GETLINK, rtnl.NLM_F_REQUEST | rtnl.NLM_F_DUMP, _question())


def get_link(name: str) -> Request:
    """One link by its name."""
    body = _question(rtnl.attribute(IFLA_IFNAME, name.encode() + b"\0"))
    return Request(rtnl.RTM_GETLINK, rtnl.NLM_F_REQUEST, body)


def _question(attributes: bytes = b"") -> bytes:
    return (
        IFINFOMSG.pack(0, 0, 0, 0, 0) + attributes + rtnl.attribute_u32(IFLA_EXT_MASK, _SKIP_STATS)
    )


def change_link(
    index: int, *, mtu: int | None, mac: str | None, up: bool | None, txqlen: int | None
) -> Request:
    """Changes the given attributes of a link."""
    flags, change = (IFF_UP if up else 0, IFF_UP) if up is not None else (0, 0)
    body = IFINFOMSG.pack(0, 0, index, flags, change)
    if mtu is not None:
        body += rtnl.attribute_u32(IFLA_MTU, mtu)
    if txqlen is not None:
        body += rtnl.attribute_u32(IFLA_TXQLEN, txqlen)
    if mac is not None:
        body += rtnl.attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    return Request(rtnl.RTM_NEWLINK, rtnl.NLM_F_REQUEST | rtnl.NLM_F_ACK, body)


def create_link(spec: LinkSpec) -> Request:
    """Creates a link, exclusively. Attributes and their order are upstream's, byte for byte."""
    body = IFINFOMSG.pack(0, 0, 0, 0, 0)
    body += rtnl.attribute(IFLA_IFNAME, spec.name.encode() + b"\0")
    if spec.mtu is not None:
        body += rtnl.attribute_u32(IFLA_MTU, spec.mtu)
    if spec.txqlen is not None:
        body += rtnl.attribute_u32(IFLA_TXQLEN, spec.txqlen)
    if spec.mac is not None:
        body += rtnl.attribute(IFLA_ADDRESS, rtnl.packed_mac(spec.mac))
    info = rtnl.attribute(IFLA_INFO_KIND, spec.kind.encode() + b"\0")
    if spec.vxlan is not None:
        info += rtnl.attribute(IFLA_INFO_DATA, _vxlan_data(spec.vxlan))
    elif spec.ipip is not None:
        info += rtnl.attribute(IFLA_INFO_DATA, _ipip_data(spec.ipip))
    body += rtnl.attribute(IFLA_LINKINFO, info)
    flags = rtnl.NLM_F_REQUEST | rtnl.NLM_F_ACK | rtnl.NLM_F_CREATE | rtnl.NLM_F_EXCL
    return Request(rtnl.RTM_NEWLINK, flags, body)


def _vxlan_data(vxlan: VxlanAttrs) -> bytes:
    data = rtnl.attribute_u32(_VXLAN_ID, vxlan.vni)
    if vxlan.group is not None:
        kind = _VXLAN_GROUP if vxlan.group.version == 4 else _VXLAN_GROUP6
        data += rtnl.attribute(kind, vxlan.group.packed)
    if vxlan.link:
        data += rtnl.attribute_u32(_VXLAN_LINK, vxlan.link)
    if vxlan.local is not None:
        kind = _VXLAN_LOCAL if vxlan.local.version == 4 else _VXLAN_LOCAL6
        data += rtnl.attribute(kind, vxlan.local.packed)
    for kind, value in (
        (_VXLAN_TTL, False),
        (_VXLAN_TOS, False),
        (_VXLAN_LEARNING, vxlan.learning),
        (_VXLAN_PROXY, False),
        (_VXLAN_RSC, False),
        (_VXLAN_L2MISS, vxlan.l2miss),
        (_VXLAN_L3MISS, False),
        (_VXLAN_UDP_ZERO_CSUM6_TX, False),
        (_VXLAN_UDP_ZERO_CSUM6_RX, False),
    ):
        data += rtnl.attribute(kind, bytes([value]))
    if vxlan.gbp:
        data += rtnl.attribute(_VXLAN_GBP, b"")
    if vxlan.port > 0:
        data += rtnl.attribute(_VXLAN_PORT, _PORT.pack(vxlan.port))
    return data


def _ipip_data(ipip: IpipAttrs) -> bytes:
    # Upstream sends the zeros, and one of them is not the kernel's default: without PMTUDISC the
    # outer packet carries DF only if the inner does.
    data = b""
    if ipip.local is not None:
        data += rtnl.attribute(_IPTUN_LOCAL, ipip.local.packed)
    if ipip.remote is not None:
        data += rtnl.attribute(_IPTUN_REMOTE, ipip.remote.packed)
    if ipip.link:
        data += rtnl.attribute_u32(_IPTUN_LINK, ipip.link)
    for kind, length in (
        (_IPTUN_PMTUDISC, 1),
        (_IPTUN_TTL, 1),
        (_IPTUN_TOS, 1),
        (_IPTUN_ENCAP_TYPE, 2),
        (_IPTUN_ENCAP_FLAGS, 2),
        (_IPTUN_ENCAP_SPORT, 2),
        (_IPTUN_ENCAP_DPORT, 2),
        (_IPTUN_PROTO, 1),
    ):
        data += rtnl.attribute(kind, bytes(length))
    return data


def delete_link(index: int) -> Request:
    """Deletes a link."""
    flags = rtnl.NLM_F_REQUEST | rtnl.NLM_F_ACK
    return Request(rtnl.RTM_DELLINK, flags, IFINFOMSG.pack(0, 0, index, 0, 0))


def decode_link(body: bytes) -> Link:
    """A link from RTM_NEWLINK."""
    _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
    attributes = link_attributes(body)
    info = nested_attributes(attributes.get(IFLA_LINKINFO, b""))
    kind = _text(info.get(IFLA_INFO_KIND, b""))
    data = nested_attributes(info[IFLA_INFO_DATA]) if IFLA_INFO_DATA in info else None
    mac = attributes.get(IFLA_ADDRESS, b"")
    return Link(
        index=index,
        name=_text(attributes.get(IFLA_IFNAME, b"")),
        kind=kind,
        mtu=_number(attributes, IFLA_MTU),
        mac=mac.hex(":") if len(mac) == _MAC_LENGTH else "",
        up=bool(flags & IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        loopback=bool(flags & _IFF_LOOPBACK),
        txqlen=_number(attributes, IFLA_TXQLEN),
        master=_number(attributes, IFLA_MASTER),
        parent=_number(attributes, IFLA_LINK) if IFLA_LINK_NETNSID not in attributes else 0,
        vxlan=_vxlan(data) if kind == "vxlan" and data is not None else None,
        ipip=_ipip(data) if kind == "ipip" and data is not None else None,
    )


def link_attributes(body: bytes) -> dict[int, bytes]:
    """The attributes of an RTM_NEWLINK, by type."""
    return rtnl.attributes_from(body, IFINFOMSG.size)


def _vxlan(data: dict[int, bytes]) -> VxlanAttrs:
    port = data.get(_VXLAN_PORT)
    return VxlanAttrs(
        vni=_number(data, _VXLAN_ID),
        link=_number(data, _VXLAN_LINK),
        local=_ip(data.get(_VXLAN_LOCAL) or data.get(_VXLAN_LOCAL6)),
        group=_ip(data.get(_VXLAN_GROUP) or data.get(_VXLAN_GROUP6)),
        port=_PORT.unpack(port)[0] if port else 0,
        learning=any(data.get(_VXLAN_LEARNING, b"")),
        gbp=_VXLAN_GBP in data,
        l2miss=any(data.get(_VXLAN_L2MISS, b"")),
    )


def _ipip(data: dict[int, bytes]) -> IpipAttrs:
    local, remote = _ip(data.get(_IPTUN_LOCAL)), _ip(data.get(_IPTUN_REMOTE))
    return IpipAttrs(
        local=local if isinstance(local, IPv4Address) else None,
        remote=remote if isinstance(remote, IPv4Address) else None,
        link=_number(data, _IPTUN_LINK),
    )


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _number(attributes: dict[int, bytes], kind: int) -> int:
    value = attributes.get(kind)
    if value is None:
        return 0
    (number,) = U32.unpack(value)
    return int(number)


def _ip(packed: bytes | None) -> IPAddress | None:
    """An address; none, or all zeros ("any"), is `None`."""
    return ip_address(packed) if packed and any(packed) else None
