"""rtnetlink's messages: how they are put together and taken apart.

A node with a thousand peers has three thousand kernel objects. A general netlink library spends
0.6-0.8 ms on each; packing the few structures that we need by hand costs microseconds. So we do it
for everything that comes in bulk: `routes.py`, `neighbours.py`, `addresses.py` and `links.py` know
one kind of object each, `objects.py` puts them together. What is rare (the creation of links, the
look-up of a route) goes through pyroute2, see `kernel/pyroute.py`.

A netlink datagram holds messages: a 16-byte header (`nlmsghdr`), then for rtnetlink a fixed struct
that depends on the message type (`rtmsg`, `ndmsg`, `ifaddrmsg`, `ifinfomsg`), then attributes
(length, type, value), everything padded to 4 bytes. Numbers are in host order, addresses and ports
in network order. What follows the header is called *body* here; `Request` is what is needed to send
one, `Message` what was received.

Only pure functions: no socket, no clock. Source: linux/netlink.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from typing import Final, NamedTuple

from pyflannel.core.ip import Family, IPAddress, IPNetwork

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

_NLMSGERR_ATTR_MSG: Final = 1

_HEADER: Final = struct.Struct("=IHHII")
ATTRIBUTE: Final = struct.Struct("=HH")
U32: Final = struct.Struct("=I")
BE16: Final = struct.Struct("!H")
_S32: Final = struct.Struct("=i")
_ATTRIBUTE_U32: Final = struct.Struct("=HHI")

_ATTRIBUTE_TYPE_MASK: Final = 0x3FFF
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
        (length,) = U32.unpack_from(body, 4)
        start = 20 if message.flags & NLM_F_CAPPED else 4 + ((length + 3) & ~3)
    text = attributes_from(body, start).get(_NLMSGERR_ATTR_MSG, b"")
    return Answer(error, text.rstrip(b"\0").decode("utf-8", "replace"))


def attributes_from(body: bytes, start: int) -> dict[int, bytes]:
    """The attributes behind the first `start` bytes, by type; of several of one type the last."""
    found: dict[int, bytes] = {}
    offset, end = start, len(body)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(body, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & _ATTRIBUTE_TYPE_MASK] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def without(attributes: bytes, kinds: frozenset[int]) -> bytes:
    """The attributes but for those of some types, as they came."""
    kept = bytearray()
    offset = 0
    while offset + 4 <= len(attributes):
        length, kind = ATTRIBUTE.unpack_from(attributes, offset)
        end = offset + ((length + 3) & ~3)
        if length < 4:
            break
        if kind & _ATTRIBUTE_TYPE_MASK not in kinds:
            kept += attributes[offset:end]
        offset = end
    return bytes(kept)


def nested_attributes(value: bytes) -> dict[int, bytes]:
    """The attributes inside an attribute, by type."""
    return attributes_from(value, 0)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes; nested ones are attributes in the value."""
    padding = b"\0" * (-len(value) & 3)
    return ATTRIBUTE.pack(4 + len(value), kind) + value + padding


def attribute_u32(kind: int, value: int) -> bytes:
    """One attribute that is a number."""
    return _ATTRIBUTE_U32.pack(8, kind, value)


@lru_cache(maxsize=8192)
def network_of(packed: bytes, length: int) -> IPNetwork:
    """A prefix from its bytes. Cached: making one costs more than decoding the whole message does.

    The size is well above the 5,000 peers that the benchmarks go up to.
    """
    if len(packed) == 4:
        return IPv4Network((packed, length), strict=False)
    return IPv6Network((packed, length), strict=False)


def ip_of(packed: bytes) -> IPAddress:
    """An address from its four or sixteen bytes."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def host_network(address: IPAddress) -> IPNetwork:
    """The prefix that holds this address and nothing else."""
    return network_of(address.packed, address.max_prefixlen)


def mac_of(packed: bytes) -> str:
    """A MAC as it is written; no bytes, no MAC."""
    return packed.hex(":")


def packed_mac(mac: str) -> bytes:
    """The bytes of a MAC as it is written."""
    return bytes.fromhex(mac.replace(":", ""))


def family_of_af(af: int) -> Family | None:
    """The IP family that an AF_* stands for."""
    if af == AF_INET:
        return Family.V4
    return Family.V6 if af == AF_INET6 else None


def af_of(address: IPAddress | IPNetwork) -> int:
    """The AF_* of an address or a prefix."""
    return AF_INET if address.version == 4 else AF_INET6


SET_FLAGS: Final = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
CREATE_FLAGS: Final = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
DELETE_FLAGS: Final = NLM_F_REQUEST | NLM_F_ACK
DUMP_FLAGS: Final = NLM_F_REQUEST | NLM_F_DUMP
