"""The content of an echo, by which we recognise the answers to our probes.

`Echo` is ICMP's and ICMPv6's (RFC 792, RFC 4443 §4.1), without the IP header. The data begin with
a secret of this process and the probe's number; the rest is zero.
"""

from __future__ import annotations

import struct
from typing import Final

from pyflannel.core.ip import Family

REQUEST: Final = {Family.V4: 8, Family.V6: 128}
REPLY: Final = {Family.V4: 0, Family.V6: 129}
HEADERS: Final = {Family.V4: 20 + 8, Family.V6: 40 + 8}
"""Bytes of an echo's IP packet before its data."""
SECRET: Final = 8
_HEAD: Final = struct.Struct("!BBHHH")
_DATA: Final[struct.Struct] = struct.Struct(f"!{SECRET}sI")
SMALLEST: Final = {family: size + _DATA.size + 44 for family, size in HEADERS.items()}
"""Bytes of a small probe's IP packet: 56 of data, as ping(8) sends them."""
_NUMBERS: Final = 1 << 32


def request(family: Family, ident: int, secret: bytes, number: int, size: int) -> bytes:
    """An echo request.

    Args:
        family: of the packet; the kernel fills in the checksum of ICMPv6.
        ident: 16 bits that are the same in all of a socket's.
        secret: `SECRET` bytes.
        number: of the probe.
        size: bytes of the whole IP packet, at least `HEADERS` and 12.
    """
    data = _DATA.pack(secret, number % _NUMBERS)
    rest = bytes(size - HEADERS[family] - _DATA.size)
    head = _HEAD.pack(REQUEST[family], 0, 0, ident, number & 0xFFFF)
    if family is Family.V4:
        head = _HEAD.pack(REQUEST[family], 0, _checksum(head + data), ident, number & 0xFFFF)
    return head + data + rest


def answer(family: Family, message: bytes, secret: bytes) -> int | None:
    """The number of the probe that a message answers; `None` if it answers none of ours."""
    if len(message) < _HEAD.size + _DATA.size or message[0] != REPLY[family]:
        return None
    if message[_HEAD.size : _HEAD.size + SECRET] != secret:
        return None
    return int.from_bytes(message[_HEAD.size + SECRET : _HEAD.size + _DATA.size])


def _checksum(message: bytes) -> int:
    """RFC 1071, for an even number of bytes. Zeros at the end change nothing."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
