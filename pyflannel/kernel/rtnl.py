"""The rtnetlink wire format of everything that comes in bulk: records in, bytes out, and back.

A node with a thousand peers has three thousand kernel objects. A general netlink library spends
0.6-0.8 ms on each; packing the few structures that we need by hand costs microseconds, so routes,
neighbours, FDB entries, addresses and all notifications go through this module, and links through
`kernel/links.py`. What is rare (the creation of links, the look-up of a route) goes through
pyroute2, see `kernel/pyroute.py`.

A netlink datagram holds messages: a 16-byte header (`nlmsghdr`), then for rtnetlink a fixed struct
that depends on the message type (`rtmsg`, `ndmsg`, `ifaddrmsg`, `ifinfomsg`), then attributes
(length, type, value), everything padded to 4 bytes. Numbers are in host order, addresses and ports
in network order. What follows the header is called *body* here; `Request` is what is needed to send
one, `Message` what was received.

Only pure functions: no socket, no clock. Source: linux/netlink.h, linux/rtnetlink.h,
linux/neighbour.h, linux/if_addr.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Final, NamedTuple

from pyflannel.core.ip import Family, IPAddress, IPNetwork
from pyflannel.kernel.base import (
    IPV6_DEFAULT_METRIC,
    NUD_NOARP,
    NUD_PERMANENT,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    Address,
    FdbEntry,
    KernelObject,
    Neighbour,
    Notification,
    Route,
    Topic,
)

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_CAPPED: Final = 0x100
"""In an answer: the offending request is not repeated behind its header."""
NLM_F_ACK_TLVS: Final = 0x200
"""In an answer: attributes follow, the kernel's own words among them."""

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30

RTMGRP_LINK: Final = 0x1
RTMGRP_NEIGH: Final = 0x4
RTMGRP_IPV4_IFADDR: Final = 0x10
RTMGRP_IPV4_ROUTE: Final = 0x40
RTMGRP_IPV6_IFADDR: Final = 0x100
RTMGRP_IPV6_ROUTE: Final = 0x400
NOTIFICATION_GROUPS: Final = (
    RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
)
"""Multicast groups, as the bit mask that bind() takes; the FDB is announced in the NEIGH group."""

AF_INET: Final = 2
AF_BRIDGE: Final = 7
AF_INET6: Final = 10

RTM_F_CLONED: Final = 0x200
RTNH_F_ONLINK: Final = 0x4
REJECTING_TYPES: Final = frozenset((6, 7, 8, 9))
"""RTN_BLACKHOLE, UNREACHABLE, PROHIBIT, THROW: routes that lead nowhere and have no device."""

_NTF_SELF: Final = 0x02
_IFA_F_TEMPORARY: Final = 0x01
"""Means "temporary" in IPv6 only; the same bit says "secondary" in IPv4."""
_IFA_F_NODAD: Final = 0x02
_IFA_F_DEPRECATED: Final = 0x20
_IFA_F_PERMANENT: Final = 0x80

_IFLA_IFNAME: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_METRICS: Final = 8
_RTA_MULTIPATH: Final = 9
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
_RTA_ENCAP: Final = 22
_RTA_NH_ID: Final = 30
_RTA_ALTERING: Final = frozenset((_RTA_METRICS, _RTA_ENCAP, _RTA_NH_ID))
"""Attributes that make another route of one which looks like ours."""
_RTA_OF_NEXT_HOP: Final = frozenset((_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA))
"""Attributes that say what RTA_NH_ID says."""
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_PORT: Final = 6
_NDA_VNI: Final = 7
_NDA_IFINDEX: Final = 8
_NLMSGERR_ATTR_MSG: Final = 1

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP: Final = struct.Struct("=HBBi")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
IFINFOMSG: Final = struct.Struct("=BxHiII")
"""Family, type, index, flags, change."""
_U32: Final = struct.Struct("=I")
_BE16: Final = struct.Struct("!H")
_S32: Final = struct.Struct("=i")
_ATTRIBUTE_U32: Final = struct.Struct("=HHI")

_ATTRIBUTE_TYPE_MASK: Final = 0x3FFF
_NDA_CACHEINFO: Final = 3
_NDA_PROBES: Final = 4
_AGES: Final = (
    _ATTRIBUTE.pack(_ATTRIBUTE.size + 16, _NDA_CACHEINFO),
    _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, _NDA_PROBES),
)
"""Headers of what changes by itself: how old an entry is, how often it was asked for."""
_BEFORE_AGES_V4: Final = _NDMSG.size + 8 + 12
_BEFORE_AGES_V6: Final = _NDMSG.size + 20 + 12
"""The two top bits of an attribute's type are NLA_F_NESTED and NLA_F_NET_BYTEORDER."""


class Request(NamedTuple):
    """One request, but for the sequence number."""

    kind: int
    """nlmsg_type."""
    flags: int
    """nlmsg_flags."""
    body: bytes


class Message(NamedTuple):
    """One received message."""

    kind: int
    flags: int
    sequence: int
    body: bytes


class Answer(NamedTuple):
    """What the kernel says to one request."""

    errno: int
    """Positive; 0 means done."""
    text: str
    """The kernel's explanation (NLMSGERR_ATTR_MSG), often empty."""


DONE: Final = Answer(0, "")

CACHED_RECORDS: Final = 8192
"""How many decoded records are remembered, of each kind. A node reads the same tables again every
10 s; looking a record up costs a tenth of decoding it, and a listing of the same objects as the
last one is compared by identity. Well above the 5,000 peers that the benchmarks go up to (a table
larger than the cache, read in order, would find nothing in it)."""


def pack(request: Request, sequence: int) -> bytes:
    """The whole message; the kernel fills the sender's address in."""
    kind, flags, body = request
    return _HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def split(datagram: bytes) -> Iterator[Message]:
    """The messages of one datagram; stops where a length makes no sense."""
    offset, end = 0, len(datagram)
    while offset + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if length < 16 or offset + length > end:
            return
        yield Message(kind, flags, sequence, datagram[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def decode_answer(message: Message) -> Answer:
    """Reads NLMSG_ERROR (an error of 0 is the acknowledgement) or NLMSG_DONE."""
    body = message.body
    if len(body) < 4:
        return DONE
    error = -int(_S32.unpack_from(body)[0])
    if not message.flags & NLM_F_ACK_TLVS:
        return Answer(error, "") if error else DONE
    start = 4
    if message.kind == NLMSG_ERROR and len(body) >= 20:
        # Behind the error stands the request: its header, and its body unless capped.
        (length,) = _U32.unpack_from(body, 4)
        start = 20 if message.flags & NLM_F_CAPPED else 4 + ((length + 3) & ~3)
    text = _attributes(body, start).get(_NLMSGERR_ATTR_MSG, b"")
    return Answer(error, text.rstrip(b"\0").decode("utf-8", "replace"))


def _attributes(body: bytes, start: int) -> dict[int, bytes]:
    """Attributes by type; of several with one type the last one stays."""
    found: dict[int, bytes] = {}
    offset, end = start, len(body)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & _ATTRIBUTE_TYPE_MASK] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _without(attributes: bytes, kinds: frozenset[int]) -> bytes:
    """The attributes but for those of some types, as they came."""
    kept = bytearray()
    offset = 0
    while offset + 4 <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        end = offset + ((length + 3) & ~3)
        if length < 4:
            break
        if kind & _ATTRIBUTE_TYPE_MASK not in kinds:
            kept += attributes[offset:end]
        offset = end
    return bytes(kept)


def link_attributes(body: bytes) -> dict[int, bytes]:
    """The attributes of an RTM_NEWLINK, by type."""
    return _attributes(body, IFINFOMSG.size)


def nested_attributes(value: bytes) -> dict[int, bytes]:
    """The attributes inside an attribute, by type."""
    return _attributes(value, 0)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes; nested ones are attributes in the value."""
    padding = b"\0" * (-len(value) & 3)
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + padding


def attribute_u32(kind: int, value: int) -> bytes:
    """One attribute that is a number."""
    return _ATTRIBUTE_U32.pack(8, kind, value)


@lru_cache(maxsize=8192)
def _network(packed: bytes, length: int) -> IPNetwork:
    """A prefix from its bytes. Cached: making one costs more than decoding the whole message does.

    The size is well above the 5,000 peers that the benchmarks go up to.
    """
    if len(packed) == 4:
        return IPv4Network((packed, length), strict=False)
    return IPv6Network((packed, length), strict=False)


def _ip(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def host_network(address: IPAddress) -> IPNetwork:
    """The prefix that holds this address and nothing else."""
    return _network(address.packed, address.max_prefixlen)


def _mac(packed: bytes) -> str:
    return packed.hex(":")


def _packed_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _family(af: int) -> Family | None:
    if af == AF_INET:
        return Family.V4
    return Family.V6 if af == AF_INET6 else None


def _af(address: IPAddress | IPNetwork) -> int:
    return AF_INET if address.version == 4 else AF_INET6


_SET: Final = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
_CREATE: Final = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
_DELETE: Final = NLM_F_REQUEST | NLM_F_ACK
_DUMP: Final = NLM_F_REQUEST | NLM_F_DUMP


def set_request(item: KernelObject) -> Request:
    """Create or replace, as far as the kernel's own replace goes (see `kernel/netlink.py`)."""
    if isinstance(item, Route):
        return Request(RTM_NEWROUTE, _SET, _route_body(item))
    if isinstance(item, Neighbour):
        return Request(RTM_NEWNEIGH, _SET, _neighbour_body(item))
    if isinstance(item, FdbEntry):
        return Request(RTM_NEWNEIGH, _SET, _fdb_body(item))
    return Request(RTM_NEWADDR, _SET, _address_body(item))


def create_request(route: Route) -> Request:
    """Create a route where none stands under its key; else the kernel answers EEXIST."""
    return Request(RTM_NEWROUTE, _CREATE, _route_body(route))


def delete_request(item: KernelObject) -> Request:
    """Delete what the kernel finds by the object's fields."""
    if isinstance(item, Route):
        return Request(RTM_DELROUTE, _DELETE, _route_body(item))
    if isinstance(item, Neighbour):
        return Request(RTM_DELNEIGH, _DELETE, _neighbour_body(item))
    if isinstance(item, FdbEntry):
        return Request(RTM_DELNEIGH, _DELETE, _fdb_body(item))
    return Request(RTM_DELADDR, _DELETE, _address_body(item))


def delete_found_route(body: bytes) -> Request:
    """Delete exactly the route that a dump reported: all its attributes go back as they came.

    Its state flags (dead, link down, offloaded) are taken off, only `onlink` is part of a request.
    So is what a next hop object consists of: it is reported beside the object, but the kernel takes
    either the one or the other (EINVAL).
    """
    *fields, flags = _RTMSG.unpack_from(body)
    attributes = body[_RTMSG.size :]
    if _RTA_NH_ID in _attributes(body, _RTMSG.size):
        flags = 0
        attributes = _without(attributes, _RTA_OF_NEXT_HOP)
    header = _RTMSG.pack(*fields, flags & RTNH_F_ONLINK)
    return Request(RTM_DELROUTE, _DELETE, header + attributes)


def delete_found_address(body: bytes) -> Request:
    """Delete exactly the address that a dump reported, its peer address and label included."""
    return Request(RTM_DELADDR, _DELETE, body)


def dump_routes(family: Family, oif: int | None = None, protocol: int = 0) -> Request:
    """All routes of the main table; the kernel filters if it checks dump requests strictly.

    Args:
        family: of the destinations.
        oif: of one outgoing link.
        protocol: of one protocol; 0 is any.
    """
    body = _RTMSG.pack(family.af, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0)
    if oif is not None:
        body += attribute_u32(_RTA_OIF, oif)
    return Request(RTM_GETROUTE, _DUMP, body)


def dump_neighbours(family: Family, index: int) -> Request:
    """The neighbours of one link."""
    body = _NDMSG.pack(family.af, 0, 0, 0, 0) + attribute_u32(_NDA_IFINDEX, index)
    return Request(RTM_GETNEIGH, _DUMP, body)


def dump_fdb(index: int) -> Request:
    """The FDB of one link."""
    return Request(RTM_GETNEIGH, _DUMP, _NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))


def dump_addresses(index: int | None = None) -> Request:
    """The addresses of both families, of one link or of all."""
    return Request(RTM_GETADDR, _DUMP, _IFADDRMSG.pack(0, 0, 0, 0, index or 0))


def _route_body(route: Route) -> bytes:
    dst = route.dst
    body = _RTMSG.pack(
        _af(dst),
        dst.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        route.protocol,
        route.scope,
        route.type,
        RTNH_F_ONLINK if route.onlink else 0,
    ) + attribute(_RTA_DST, dst.network_address.packed)
    if route.gateway is not None:
        if route.gateway.version == dst.version:
            body += attribute(_RTA_GATEWAY, route.gateway.packed)
        else:
            # RFC 5549: an IPv4 route through an IPv6 gateway.
            via = struct.pack("=H", _af(route.gateway)) + route.gateway.packed
            body += attribute(_RTA_VIA, via)
    if route.oif is not None:
        body += attribute_u32(_RTA_OIF, route.oif)
    metric = sent_metric(route)
    if metric:
        body += attribute_u32(_RTA_PRIORITY, metric)
    if route.src is not None:
        body += attribute(_RTA_PREFSRC, route.src.packed)
    return body


def sent_metric(route: Route) -> int:
    """The metric as it stands in the kernel.

    IPv6 gets its default spelt out: in a delete request 0 means "any metric", and would take a
    route along that is not ours.
    """
    return route.metric or (IPV6_DEFAULT_METRIC if route.dst.version == 6 else 0)


def _neighbour_body(neighbour: Neighbour) -> bytes:
    # ndm_type is not looked at by the kernel on a request; upstream sends unicast.
    return (
        _NDMSG.pack(_af(neighbour.ip), neighbour.index, neighbour.state, 0, RTN_UNICAST)
        + attribute(_NDA_DST, neighbour.ip.packed)
        + attribute(_NDA_LLADDR, _packed_mac(neighbour.mac))
    )


def _fdb_body(entry: FdbEntry) -> bytes:
    # Without NTF_SELF the request is for the bridge that the device is a port of (EOPNOTSUPP), and
    # without a state that says who keeps it the vxlan driver refuses it. NOARP beside PERMANENT is
    # what `bridge fdb add … permanent` sends.
    body = (
        _NDMSG.pack(AF_BRIDGE, entry.index, NUD_PERMANENT | NUD_NOARP, _NTF_SELF, 0)
        + attribute(_NDA_LLADDR, _packed_mac(entry.mac))
        + attribute(_NDA_DST, entry.dst.packed)
    )
    if entry.port:
        body += attribute(_NDA_PORT, _BE16.pack(entry.port))
    if entry.vni:
        body += attribute_u32(_NDA_VNI, entry.vni)
    if entry.via:
        body += attribute_u32(_NDA_IFINDEX, entry.via)
    return body


def _address_body(address: Address) -> bytes:
    interface = address.interface
    # No duplicate address detection: the addresses that we set are on tunnels, where no host could
    # answer, and a tentative address is no source address for a second.
    flags = 0 if interface.version == 4 else _IFA_F_NODAD
    packed = interface.ip.packed
    return (
        _IFADDRMSG.pack(
            _af(interface.network),
            interface.network.prefixlen,
            flags,
            address.scope,
            address.index,
        )
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
    )


class RouteKey(NamedTuple):
    """What the kernel tells two routes of one table and tos apart by, in its own terms."""

    af: int
    length: int
    """Prefix length."""
    dst: bytes
    """Network address, all bytes of it."""
    metric: int
    """As the kernel has it (1024 where IPv6 was given none)."""


def key_of(route: Route) -> RouteKey:
    """The key under which the kernel keeps this route."""
    dst = route.dst
    return RouteKey(_af(dst), dst.prefixlen, dst.network_address.packed, sent_metric(route))


def key_of_body(body: bytes) -> RouteKey | None:
    """The key of a route in a dump or notification, without decoding the rest.

    Returns:
        `None` for what `decode_route` does not take for a route either.
    """
    af, length, _, tos, table, _, _, _, flags = _RTMSG.unpack_from(body)
    if tos or flags & RTM_F_CLONED or (af != AF_INET and af != AF_INET6):
        return None
    attributes = _attributes(body, _RTMSG.size)
    value = attributes.get(_RTA_TABLE)
    if value is not None:
        (table,) = _U32.unpack(value)
    if table != RT_TABLE_MAIN:
        return None
    value = attributes.get(_RTA_PRIORITY)
    metric = _U32.unpack(value)[0] if value is not None else 0
    dst = attributes.get(_RTA_DST) or bytes(4 if af == AF_INET else 16)
    return RouteKey(af, length, dst, metric)


def protocol_of_body(body: bytes) -> int:
    """The protocol of a route in a dump or notification, without decoding the rest."""
    return body[5]


def leading_bytes(network: IPNetwork) -> bytes:
    """The bytes that all addresses in a prefix begin with; none if it is shorter than a byte.

    Where a message lacks them, neither its destination nor a gateway lies in the prefix. (The
    reverse does not hold: they may stand anywhere in it.)
    """
    return network.network_address.packed[: network.prefixlen // 8]


@lru_cache(maxsize=CACHED_RECORDS)
def decode_route(body: bytes) -> Route | None:
    """A route of the main table. Cached, see `CACHED_RECORDS`.

    Returns:
        `None` for cached (cloned) routes, other tables, other families, and routes for one type of
        service only, which do not compete with ours.
    """
    af, length, _, tos, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    if tos or flags & RTM_F_CLONED or (af != AF_INET and af != AF_INET6):
        return None
    attributes = _attributes(body, _RTMSG.size)
    get = attributes.get
    value = get(_RTA_TABLE)
    if value is not None:
        (table,) = _U32.unpack(value)
    if table != RT_TABLE_MAIN:
        return None
    dst = get(_RTA_DST)
    if dst is None:
        dst = bytes(4 if af == AF_INET else 16)
    gateway: IPAddress | None = None
    oif: int | None = None
    hops: tuple[IPAddress, ...] = ()
    if kind in REJECTING_TYPES:
        pass
    elif (value := get(_RTA_MULTIPATH)) is not None:
        hops = tuple(_gateways(value))
    else:
        value = get(_RTA_GATEWAY)
        if value is not None:
            gateway = _ip(value)
        elif (value := get(_RTA_VIA)) is not None:
            gateway = _ip(value[2:])
        value = get(_RTA_OIF)
        if value is not None:
            (oif,) = _U32.unpack(value)
    value = get(_RTA_PRIORITY)
    metric = _U32.unpack(value)[0] if value is not None else 0
    if af == AF_INET6 and metric == IPV6_DEFAULT_METRIC:
        metric = 0
    value = get(_RTA_PREFSRC)
    return Route(
        dst=_network(dst, length),
        gateway=gateway,
        oif=oif,
        onlink=bool(flags & RTNH_F_ONLINK),
        scope=scope,
        protocol=protocol,
        type=kind,
        metric=metric,
        src=_ip(value) if value is not None else None,
        altered=not _RTA_ALTERING.isdisjoint(attributes),
        hops=hops,
    )


def _gateways(multipath: bytes) -> Iterator[IPAddress]:
    """The gateways of RTA_MULTIPATH: a `struct rtnexthop` and attributes for each next hop."""
    offset = 0
    while offset + _RTNEXTHOP.size <= len(multipath):
        length, _, _, _ = _RTNEXTHOP.unpack_from(multipath, offset)
        if length < _RTNEXTHOP.size:
            return
        attributes = _attributes(multipath[: offset + length], offset + _RTNEXTHOP.size)
        if (value := attributes.get(_RTA_GATEWAY)) is not None:
            yield _ip(value)
        elif (value := attributes.get(_RTA_VIA)) is not None:
            yield _ip(value[2:])
        offset += (length + 3) & ~3


def _without_ages(body: bytes) -> bytes:
    """A neighbour or FDB entry up to the ages in it, which change all the time.

    In front of it stand, in the kernel's fixed order, the IP address and a MAC of six bytes
    (`neigh_fill_info`) or the other way round (`vxlan_fdb_info`). What looks otherwise is left
    whole.
    """
    for end in (_BEFORE_AGES_V4, _BEFORE_AGES_V6):
        if body[end : end + _ATTRIBUTE.size] in _AGES:
            return body[:end]
    return body


def decode_neighbour(body: bytes) -> Neighbour | None:
    """An entry of the ARP or ND table; the MAC is empty while it is not known."""
    return _decode_neighbour(_without_ages(body))


@lru_cache(maxsize=CACHED_RECORDS)
def _decode_neighbour(body: bytes) -> Neighbour | None:
    af, index, state, _, _ = _NDMSG.unpack_from(body)
    attributes = _attributes(body, _NDMSG.size)
    dst = attributes.get(_NDA_DST)
    if dst is None or (af != AF_INET and af != AF_INET6):
        return None
    mac = _mac(attributes.get(_NDA_LLADDR, b""))
    return Neighbour(index=index, ip=_ip(dst), mac=mac, state=state)


def decode_fdb(body: bytes) -> FdbEntry | None:
    """An FDB entry that has a destination and stays; `None` for what the device learned."""
    return _decode_fdb(_without_ages(body))


@lru_cache(maxsize=CACHED_RECORDS)
def _decode_fdb(body: bytes) -> FdbEntry | None:
    af, index, state, _, _ = _NDMSG.unpack_from(body)
    if af != AF_BRIDGE or not state & (NUD_PERMANENT | NUD_NOARP):
        return None
    attributes = _attributes(body, _NDMSG.size)
    mac, dst = attributes.get(_NDA_LLADDR), attributes.get(_NDA_DST)
    if mac is None or dst is None:
        return None
    # The kernel leaves these out where they are the device's own.
    port, vni, via = map(attributes.get, (_NDA_PORT, _NDA_VNI, _NDA_IFINDEX))
    return FdbEntry(
        index=index,
        mac=_mac(mac),
        dst=_ip(dst),
        port=_BE16.unpack(port)[0] if port else 0,
        vni=_U32.unpack(vni)[0] if vni else 0,
        via=_U32.unpack(via)[0] if via else 0,
    )


def decode_address(body: bytes) -> Address | None:
    """An address on a link: IFA_LOCAL, or IFA_ADDRESS where there is none (IPv6)."""
    af, length, flags, scope, index = _IFADDRMSG.unpack_from(body)
    attributes = _attributes(body, _IFADDRMSG.size)
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if packed is None or (af != AF_INET and af != AF_INET6):
        return None
    value = attributes.get(_IFA_FLAGS)
    if value is not None:
        (flags,) = _U32.unpack(value)
    return make_address(index, _ip(packed), length, scope, flags)


def is_point_to_point(body: bytes) -> bool:
    """Whether an address in a dump has a peer address, so that it is not what it looks like."""
    attributes = _attributes(body, _IFADDRMSG.size)
    local = attributes.get(_IFA_LOCAL)
    return local is not None and local != attributes.get(_IFA_ADDRESS)


def make_address(index: int, ip: IPAddress, length: int, scope: int, flags: int) -> Address:
    """An `Address` from the kernel's fields, IFA_F_* explained."""
    interface = IPv4Interface((ip, length)) if ip.version == 4 else IPv6Interface((ip, length))
    return Address(
        index=index,
        interface=interface,
        scope=scope,
        permanent=bool(flags & _IFA_F_PERMANENT),
        temporary=ip.version == 6 and bool(flags & _IFA_F_TEMPORARY),
        deprecated=bool(flags & _IFA_F_DEPRECATED),
    )


def decode_notification(message: Message) -> Notification | None:
    """What a multicast message is about.

    Returns:
        `None` for what happens all the time and is of no use here: cached routes, other tables,
        the kernel's own neighbours, and what bridges say about their ports. The states that an
        ordinary neighbour goes through are told: one that was ours and permanent may have been made
        ordinary, and which device's are of interest is known elsewhere.
    """
    kind, _, _, body = message
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return _route_notification(body, deleted=kind == RTM_DELROUTE)
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        af, index, state, _, _ = _NDMSG.unpack_from(body)
        deleted = kind == RTM_DELNEIGH
        if af != AF_BRIDGE and not deleted and state & NUD_NOARP:
            return None
        return Notification(
            topic=Topic.NEIGHBOUR,
            index=index,
            deleted=deleted,
            family=_family(af),
            object=decode_fdb(body) if af == AF_BRIDGE else decode_neighbour(body),
        )
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        af, _, _, _, index = _IFADDRMSG.unpack_from(body)
        return Notification(
            topic=Topic.ADDRESS,
            index=index,
            deleted=kind == RTM_DELADDR,
            family=_family(af),
            object=decode_address(body),
        )
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        af, _, index, _, _ = IFINFOMSG.unpack_from(body)
        if af == AF_BRIDGE:
            # RTM_DELLINK of this family says that a port left its bridge, not that it is gone.
            return None
        name = _attributes(body, IFINFOMSG.size).get(_IFLA_IFNAME, b"")
        return Notification(
            topic=Topic.LINK,
            index=index,
            name=name.rstrip(b"\0").decode("utf-8", "surrogateescape"),
            deleted=kind == RTM_DELLINK,
        )
    return None


def _route_notification(body: bytes, *, deleted: bool) -> Notification | None:
    route = decode_route(body)
    if route is None:
        return None
    return Notification(
        topic=Topic.ROUTE,
        index=route.oif or 0,
        deleted=deleted,
        family=Family.V4 if route.dst.version == 4 else Family.V6,
        dst=route.dst,
        object=route,
    )
