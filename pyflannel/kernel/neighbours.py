"""Neighbours (the ARP and ND tables) and FDB entries: how they are asked for, set and read.

Both travel in one kind of message, told apart by its address family. Source: linux/neighbour.h.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from pyflannel.core.ip import Family
from pyflannel.kernel.base import NUD_NOARP, NUD_PERMANENT, RTN_UNICAST, FdbEntry, Neighbour
from pyflannel.kernel.rtnl import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    ATTRIBUTE,
    BE16,
    CACHED_RECORDS,
    DUMP_FLAGS,
    RTM_GETNEIGH,
    U32,
    Request,
    af_of,
    attribute,
    attribute_u32,
    attributes_from,
    ip_of,
    mac_of,
    packed_mac,
)

_NTF_SELF: Final = 0x02
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_PORT: Final = 6
_NDA_VNI: Final = 7
_NDA_IFINDEX: Final = 8
_NDA_CACHEINFO: Final = 3
_NDA_PROBES: Final = 4

NDMSG: Final = struct.Struct("=BxxxiHBB")

_AGES: Final = (
    ATTRIBUTE.pack(ATTRIBUTE.size + 16, _NDA_CACHEINFO),
    ATTRIBUTE.pack(ATTRIBUTE.size + 4, _NDA_PROBES),
)
"""Headers of what changes by itself: how old an entry is, how often it was asked for."""
_BEFORE_AGES_V4: Final = NDMSG.size + 8 + 12
_BEFORE_AGES_V6: Final = NDMSG.size + 20 + 12


def dump_neighbours(family: Family, index: int) -> Request:
    """The neighbours of one link."""
    body = NDMSG.pack(family.af, 0, 0, 0, 0) + attribute_u32(_NDA_IFINDEX, index)
    return Request(RTM_GETNEIGH, DUMP_FLAGS, body)


def dump_fdb(index: int) -> Request:
    """The FDB of one link."""
    return Request(RTM_GETNEIGH, DUMP_FLAGS, NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))


def neighbour_body(neighbour: Neighbour) -> bytes:
    """The neighbour as the body of a request."""
    # ndm_type is not looked at by the kernel on a request; upstream sends unicast.
    return (
        NDMSG.pack(af_of(neighbour.ip), neighbour.index, neighbour.state, 0, RTN_UNICAST)
        + attribute(_NDA_DST, neighbour.ip.packed)
        + attribute(_NDA_LLADDR, packed_mac(neighbour.mac))
    )


def fdb_body(entry: FdbEntry) -> bytes:
    """The FDB entry as the body of a request."""
    # Without NTF_SELF the request is for the bridge that the device is a port of (EOPNOTSUPP), and
    # without a state that says who keeps it the vxlan driver refuses it. NOARP beside PERMANENT is
    # what `bridge fdb add … permanent` sends.
    body = (
        NDMSG.pack(AF_BRIDGE, entry.index, NUD_PERMANENT | NUD_NOARP, _NTF_SELF, 0)
        + attribute(_NDA_LLADDR, packed_mac(entry.mac))
        + attribute(_NDA_DST, entry.dst.packed)
    )
    if entry.port:
        body += attribute(_NDA_PORT, BE16.pack(entry.port))
    if entry.vni:
        body += attribute_u32(_NDA_VNI, entry.vni)
    if entry.via:
        body += attribute_u32(_NDA_IFINDEX, entry.via)
    return body


def _without_ages(body: bytes) -> bytes:
    """A neighbour or FDB entry up to the ages in it, which change all the time.

    In front of it stand, in the kernel's fixed order, the IP address and a MAC of six bytes
    (`neigh_fill_info`) or the other way round (`vxlan_fdb_info`). What looks otherwise is left
    whole.
    """
    for end in (_BEFORE_AGES_V4, _BEFORE_AGES_V6):
        if body[end : end + ATTRIBUTE.size] in _AGES:
            return body[:end]
    return body


def decode_neighbour(body: bytes) -> Neighbour | None:
    """An entry of the ARP or ND table; the MAC is empty while it is not known."""
    return _decode_neighbour(_without_ages(body))


@lru_cache(maxsize=CACHED_RECORDS)
def _decode_neighbour(body: bytes) -> Neighbour | None:
    af, index, state, _, _ = NDMSG.unpack_from(body)
    attributes = attributes_from(body, NDMSG.size)
    dst = attributes.get(_NDA_DST)
    if dst is None or (af != AF_INET and af != AF_INET6):
        return None
    mac = mac_of(attributes.get(_NDA_LLADDR, b""))
    return Neighbour(index=index, ip=ip_of(dst), mac=mac, state=state)


def decode_fdb(body: bytes) -> FdbEntry | None:
    """An FDB entry that has a destination and stays; `None` for what the device learned."""
    return _decode_fdb(_without_ages(body))


@lru_cache(maxsize=CACHED_RECORDS)
def _decode_fdb(body: bytes) -> FdbEntry | None:
    af, index, state, _, _ = NDMSG.unpack_from(body)
    if af != AF_BRIDGE or not state & (NUD_PERMANENT | NUD_NOARP):
        return None
    attributes = attributes_from(body, NDMSG.size)
    mac, dst = attributes.get(_NDA_LLADDR), attributes.get(_NDA_DST)
    if mac is None or dst is None:
        return None
    # The kernel leaves these out where they are the device's own.
    port, vni, via = map(attributes.get, (_NDA_PORT, _NDA_VNI, _NDA_IFINDEX))
    return FdbEntry(
        index=index,
        mac=mac_of(mac),
        dst=ip_of(dst),
        port=BE16.unpack(port)[0] if port else 0,
        vni=U32.unpack(vni)[0] if vni else 0,
        via=U32.unpack(via)[0] if via else 0,
    )
