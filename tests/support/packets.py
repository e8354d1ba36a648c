"""IPv4 packets as tests build and read them: datagrams, echoes, and views of the fields."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from pyflannel.core.packet import (
    IPV4_HEADER_BYTES,
    Buffer,
    IcmpType,
    Protocol,
    checksum,
    is_malformed,
)

UDP_HEADER_BYTES: Final = 8
"""RFC 768."""
ICMP_HEADER_BYTES: Final = 8
"""RFC 792: type, code, checksum and four bytes that depend on the type."""
_UDP: Final = struct.Struct("!HHHH")
_ICMP: Final = struct.Struct("!BBHI")
_U16: Final = struct.Struct("!H")
_FLAG_DF: Final = 0x4000
_FLAG_MF: Final = 0x2000
_OFFSET_MASK: Final = 0x1FFF
_ICMP_ERRORS: Final = frozenset((3, 4, 5, 11, 12))
"""Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792)."""


def pseudo_header_sum(source: int, destination: int, protocol: int, length: int) -> int:
    """The sum that UDP and TCP checksums begin with (RFC 768, RFC 9293 §3.1), not folded.

    Args:
        source: address as a host-order integer, like `destination`.
        length: bytes of the UDP or TCP header and payload.
    """
    return (
        (source >> 16)
        + (source & 0xFFFF)
        + (destination >> 16)
        + (destination & 0xFFFF)
        + protocol
        + length
    )


def udp_datagram(
    *,
    source: IPv4Address,
    destination: IPv4Address,
    source_port: int,
    destination_port: int,
    payload: Buffer,
) -> bytes:
    """UDP header and payload with a checksum: the payload of an `ipv4_packet`."""
    length = UDP_HEADER_BYTES + len(payload)
    start = pseudo_header_sum(int(source), int(destination), Protocol.UDP, length)
    datagram = bytearray(_UDP.pack(source_port, destination_port, length, 0))
    datagram += payload
    # 0 would say "no checksum"; its other spelling means the same sum (RFC 768).
    _U16.pack_into(datagram, 6, checksum(datagram, start) or 0xFFFF)
    return bytes(datagram)


def icmp_echo(
    *, identifier: int, sequence: int, payload: Buffer = b"", reply: bool = False
) -> bytes:
    """An ICMP echo request or reply: the payload of an `ipv4_packet`."""
    type_ = IcmpType.ECHO_REPLY if reply else IcmpType.ECHO_REQUEST
    rest = identifier << 16 | sequence
    body = bytes(payload)
    return _ICMP.pack(type_, 0, checksum(_ICMP.pack(type_, 0, 0, rest) + body), rest) + body


class IPv4View:
    """An IPv4 packet, field by field, read from the bytes when asked.

    Raises:
        ValueError: if the bytes are not one whole IPv4 packet.
    """

    __slots__ = ("_data",)

    def __init__(self, data: Buffer) -> None:
        if is_malformed(data, len(data)):
            raise ValueError(f"{len(data)} bytes that are not one whole IPv4 packet")
        self._data = memoryview(data)

    @property
    def header_bytes(self) -> int:
        """Bytes of the header with its options."""
        return (self._data[0] & 15) * 4

    @property
    def tos(self) -> int:
        """The byte that is now DSCP (6 bits) and ECN (2 bits)."""
        return self._data[1]

    @property
    def total_length(self) -> int:
        """Bytes of header and payload."""
        return self._data[2] << 8 | self._data[3]

    @property
    def identification(self) -> int:
        """What fragments of one packet have in common."""
        return self._data[4] << 8 | self._data[5]

    @property
    def dont_fragment(self) -> bool:
        """Whether routers must not cut it."""
        return bool(self._flags_offset & _FLAG_DF)

    @property
    def more_fragments(self) -> bool:
        """Whether it is a fragment other than the last."""
        return bool(self._flags_offset & _FLAG_MF)

    @property
    def fragment_offset(self) -> int:
        """Where its payload belongs in the whole, in bytes."""
        return (self._flags_offset & _OFFSET_MASK) * 8

    @property
    def _flags_offset(self) -> int:
        return self._data[6] << 8 | self._data[7]

    @property
    def ttl(self) -> int:
        """Hops that are left."""
        return self._data[8]

    @property
    def protocol(self) -> int:
        """What the payload is, see `Protocol`."""
        return self._data[9]

    @property
    def checksum(self) -> int:
        """The header checksum as it stands there."""
        return self._data[10] << 8 | self._data[11]

    @property
    def checksum_is_right(self) -> bool:
        """Whether the header adds up: the checksum of everything with its checksum is 0."""
        return checksum(self._data[: self.header_bytes]) == 0

    @property
    def source(self) -> IPv4Address:
        """Who sent it."""
        return IPv4Address(bytes(self._data[12:16]))

    @property
    def destination(self) -> IPv4Address:
        """For whom it is."""
        return IPv4Address(bytes(self._data[16:20]))

    @property
    def options(self) -> bytes:
        """The header behind its first 20 bytes, with padding."""
        return bytes(self._data[IPV4_HEADER_BYTES : self.header_bytes])

    @property
    def payload(self) -> bytes:
        """Everything behind the header."""
        return bytes(self._data[self.header_bytes :])


@dataclass(frozen=True, slots=True, kw_only=True)
class UDPView:
    """A UDP header and what it carries (RFC 768)."""

    source_port: int
    destination_port: int
    length: int
    """Bytes of header and payload, as the header says."""
    checksum: int
    """0 means that the sender made none."""
    payload: bytes

    @classmethod
    def parse(cls, data: Buffer) -> UDPView:
        """Reads the payload of an IPv4 packet.

        Raises:
            ValueError: if it is shorter than a header, or than the header says.
        """
        if len(data) < UDP_HEADER_BYTES:
            raise ValueError(f"{len(data)} bytes are no UDP header")
        source_port, destination_port, length, value = _UDP.unpack_from(data)
        if not UDP_HEADER_BYTES <= length <= len(data):
            raise ValueError(f"UDP length {length} in a payload of {len(data)} bytes")
        return cls(
            source_port=source_port,
            destination_port=destination_port,
            length=length,
            checksum=value,
            payload=bytes(data[UDP_HEADER_BYTES:length]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ICMPView:
    """An ICMP message (RFC 792)."""

    type: int
    code: int
    checksum: int
    rest: int
    """The four bytes behind the checksum: identifier and sequence number, next-hop MTU, or 0."""
    body: bytes
    """The data of an echo, the quoted packet of an error."""
    checksum_is_right: bool

    @property
    def is_error(self) -> bool:
        """Whether it reports about another packet, and so must not be reported about."""
        return self.type in _ICMP_ERRORS

    @classmethod
    def parse(cls, data: Buffer) -> ICMPView:
        """Reads the payload of an IPv4 packet.

        Raises:
            ValueError: if it is shorter than a header.
        """
        if len(data) < ICMP_HEADER_BYTES:
            raise ValueError(f"{len(data)} bytes are no ICMP header")
        type_, code, value, rest = _ICMP.unpack_from(data)
        return cls(
            type=type_,
            code=code,
            checksum=value,
            rest=rest,
            body=bytes(data[ICMP_HEADER_BYTES:]),
            checksum_is_right=checksum(data) == 0,
        )
