"""Routes: how they are asked for, set, deleted and read.

Routes of the main table only, in both families. Source: linux/rtnetlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from pyflannel.core.ip import Family, IPAddress, IPNetwork
from pyflannel.kernel.base import IPV6_DEFAULT_METRIC, RT_TABLE_MAIN, Route
from pyflannel.kernel.rtnl import (
    AF_INET,
    AF_INET6,
    CACHED_RECORDS,
    CREATE_FLAGS,
    DELETE_FLAGS,
    DUMP_FLAGS,
    RTM_DELROUTE,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    U32,
    Request,
    af_of,
    attribute,
    attribute_u32,
    attributes_from,
    ip_of,
    network_of,
    without,
)

RTM_F_CLONED: Final = 0x200
RTNH_F_ONLINK: Final = 0x4
REJECTING_TYPES: Final = frozenset((6, 7, 8, 9))
"""RTN_BLACKHOLE, UNREACHABLE, PROHIBIT, THROW: routes that lead nowhere and have no device."""
RTA_DST: Final = 1
_RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTA_METRICS: Final = 8
_RTA_MULTIPATH: Final = 9
RTA_TABLE: Final = 15
_RTA_VIA: Final = 18
RTA_ENCAP: Final = 22
_RTA_NH_ID: Final = 30
_RTA_ALTERING: Final = frozenset((_RTA_METRICS, RTA_ENCAP, _RTA_NH_ID))
"""Attributes that make another route of one which looks like ours."""
_RTA_OF_NEXT_HOP: Final = frozenset((_RTA_OIF, RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA))
"""Attributes that say what RTA_NH_ID says."""

_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP: Final = struct.Struct("=HBBi")


def create_request(route: Route) -> Request:
    """Create a route where none stands under its key; else the kernel answers EEXIST."""
    return Request(RTM_NEWROUTE, CREATE_FLAGS, route_body(route))


def delete_found_route(body: bytes) -> Request:
    """Delete exactly the route that a dump reported: all its attributes go back as they came.

    Its state flags (dead, link down, offloaded) are taken off, only `onlink` is part of a request.
    So is what a next hop object consists of: it is reported beside the object, but the kernel takes
    either the one or the other (EINVAL).
    """
    *fields, flags = _RTMSG.unpack_from(body)
    attributes = body[_RTMSG.size :]
    if _RTA_NH_ID in attributes_from(body, _RTMSG.size):
        flags = 0
        attributes = without(attributes, _RTA_OF_NEXT_HOP)
    header = _RTMSG.pack(*fields, flags & RTNH_F_ONLINK)
    return Request(RTM_DELROUTE, DELETE_FLAGS, header + attributes)


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
    return Request(RTM_GETROUTE, DUMP_FLAGS, body)


def route_body(route: Route) -> bytes:
    """The route as the body of a request."""
    dst = route.dst
    body = _RTMSG.pack(
        af_of(dst),
        dst.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        route.protocol,
        route.scope,
        route.type,
        RTNH_F_ONLINK if route.onlink else 0,
    ) + attribute(RTA_DST, dst.network_address.packed)
    if route.gateway is not None:
        if route.gateway.version == dst.version:
            body += attribute(RTA_GATEWAY, route.gateway.packed)
        else:
            # RFC 5549: an IPv4 route through an IPv6 gateway.
            via = struct.pack("=H", af_of(route.gateway)) + route.gateway.packed
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
    return RouteKey(af_of(dst), dst.prefixlen, dst.network_address.packed, sent_metric(route))


def key_of_body(body: bytes) -> RouteKey | None:
    """The key of a route in a dump or notification, without decoding the rest.

    Returns:
        `None` for what `decode_route` does not take for a route either.
    """
    af, length, _, tos, table, _, _, _, flags = _RTMSG.unpack_from(body)
    if tos or flags & RTM_F_CLONED or (af != AF_INET and af != AF_INET6):
        return None
    attributes = attributes_from(body, _RTMSG.size)
    value = attributes.get(RTA_TABLE)
    if value is not None:
        (table,) = U32.unpack(value)
    if table != RT_TABLE_MAIN:
        return None
    value = attributes.get(_RTA_PRIORITY)
    metric = U32.unpack(value)[0] if value is not None else 0
    dst = attributes.get(RTA_DST) or bytes(4 if af == AF_INET else 16)
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
    attributes = attributes_from(body, _RTMSG.size)
    get = attributes.get
    value = get(RTA_TABLE)
    if value is not None:
        (table,) = U32.unpack(value)
    if table != RT_TABLE_MAIN:
        return None
    dst = get(RTA_DST)
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
        value = get(RTA_GATEWAY)
        if value is not None:
            gateway = ip_of(value)
        elif (value := get(_RTA_VIA)) is not None:
            gateway = ip_of(value[2:])
        value = get(_RTA_OIF)
        if value is not None:
            (oif,) = U32.unpack(value)
    value = get(_RTA_PRIORITY)
    metric = U32.unpack(value)[0] if value is not None else 0
    if af == AF_INET6 and metric == IPV6_DEFAULT_METRIC:
        metric = 0
    value = get(_RTA_PREFSRC)
    return Route(
        dst=network_of(dst, length),
        gateway=gateway,
        oif=oif,
        onlink=bool(flags & RTNH_F_ONLINK),
        scope=scope,
        protocol=protocol,
        type=kind,
        metric=metric,
        src=ip_of(value) if value is not None else None,
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
        attributes = attributes_from(multipath[: offset + length], offset + _RTNEXTHOP.size)
        if (value := attributes.get(RTA_GATEWAY)) is not None:
            yield ip_of(value)
        elif (value := attributes.get(_RTA_VIA)) is not None:
            yield ip_of(value[2:])
        offset += (length + 3) & ~3
