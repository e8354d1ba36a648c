"""Addresses of links: how they are asked for, set, deleted and read. Source: linux/if_addr.h."""

from __future__ import annotations

import struct
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from pyflannel.core.ip import IPAddress
from pyflannel.kernel.base import Address
from pyflannel.kernel.rtnl import (
    AF_INET,
    AF_INET6,
    DELETE_FLAGS,
    DUMP_FLAGS,
    RTM_DELADDR,
    RTM_GETADDR,
    U32,
    Request,
    af_of,
    attribute,
    attributes_from,
    ip_of,
)

_IFA_F_TEMPORARY: Final = 0x01
"""Means "temporary" in IPv6 only; the same bit says "secondary" in IPv4."""
_IFA_F_NODAD: Final = 0x02
_IFA_F_DEPRECATED: Final = 0x20
_IFA_F_PERMANENT: Final = 0x80

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8

IFADDRMSG: Final = struct.Struct("=BBBBI")


def delete_found_address(body: bytes) -> Request:
    """Delete exactly the address that a dump reported, its peer address and label included."""
    return Request(RTM_DELADDR, DELETE_FLAGS, body)


def dump_addresses(index: int | None = None) -> Request:
    """The addresses of both families, of one link or of all."""
    return Request(RTM_GETADDR, DUMP_FLAGS, IFADDRMSG.pack(0, 0, 0, 0, index or 0))


def address_body(address: Address) -> bytes:
    """The address as the body of a request."""
    interface = address.interface
    # No duplicate address detection: the addresses that we set are on tunnels, where no host could
    # answer, and a tentative address is no source address for a second.
    flags = 0 if interface.version == 4 else _IFA_F_NODAD
    packed = interface.ip.packed
    return (
        IFADDRMSG.pack(
            af_of(interface.network),
            interface.network.prefixlen,
            flags,
            address.scope,
            address.index,
        )
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
    )


def decode_address(body: bytes) -> Address | None:
    """An address on a link: IFA_LOCAL, or IFA_ADDRESS where there is none (IPv6)."""
    af, length, flags, scope, index = IFADDRMSG.unpack_from(body)
    attributes = attributes_from(body, IFADDRMSG.size)
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if packed is None or (af != AF_INET and af != AF_INET6):
        return None
    value = attributes.get(_IFA_FLAGS)
    if value is not None:
        (flags,) = U32.unpack(value)
    return make_address(index, ip_of(packed), length, scope, flags)


def is_point_to_point(body: bytes) -> bool:
    """Whether an address in a dump has a peer address, so that it is not what it looks like."""
    attributes = attributes_from(body, IFADDRMSG.size)
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
