"""IPv4 packets as bytes: checks, checksums, and the ICMP errors that a router owes.

Theory of operation. A data path sees whole IPv4 packets in buffers that it reuses, so this module
has two kinds of functions. Those on the packet's way (`is_malformed`, `may_be_answered`) take a
buffer and a length, and read fixed offsets only after the length has been checked. The others
(`ipv4_packet`, `icmp_error`) make whole packets and may take their time.

Nothing here sends, waits or looks at a clock.

Offsets in an IPv4 header (RFC 791 §3.1), for reading the code:

    0 version, IHL   1 TOS   2 total length   4 identification   6 flags, fragment offset
    8 TTL   9 protocol   10 checksum   12 source   16 destination   20 options
"""

from __future__ import annotations

import struct
from enum import IntEnum
from ipaddress import IPv4Address
from typing import ClassVar, Final

from pyflannel.records import dataclass

Buffer = bytes | bytearray | memoryview

IPV4_HEADER_BYTES: Final = 20
"""An IPv4 header without options (RFC 791 §3.1: IHL 5, in words of 4 bytes)."""
IPV4_HEADER_MAX_BYTES: Final = 60
"""An IPv4 header with all the options there is room for: IHL is 4 bits, 15 words of 4 bytes."""
IPV4_MAX_BYTES: Final = 65535
"""The longest IPv4 packet: total length is 16 bits."""
QUOTED_BYTES: Final = 8
"""Bytes behind the header that an ICMP error quotes (RFC 792): the ports, so the flow is found."""
ICMP_ERROR_TTL: Final = 8
"""TTL of the ICMP errors made here; upstream's value, seen by their receivers."""
MIN_MTU: Final = 68
"""Every IPv4 link carries a packet of 68 bytes whole (RFC 791 §3.2)."""

_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")
_ICMP: Final = struct.Struct("!BBHI")
_U16: Final = struct.Struct("!H")

_FLAG_DF: Final = 0x4000
_FLAG_MF: Final = 0x2000
_OFFSET_MASK: Final = 0x1FFF


class Protocol(IntEnum):
    """IPv4 protocol numbers we have to do with (IANA)."""

    ICMP = 1
    TCP = 6
    UDP = 17


class IcmpType(IntEnum):
    """ICMP types we have to do with (RFC 792)."""

    ECHO_REPLY = 0
    UNREACHABLE = 3
    SOURCE_QUENCH = 4
    REDIRECT = 5
    ECHO_REQUEST = 8
    TIME_EXCEEDED = 11
    PARAMETER_PROBLEM = 12


class UnreachableCode(IntEnum):
    """Codes of `IcmpType.UNREACHABLE` that we send."""

    NETWORK = 0
    FRAGMENTATION_NEEDED = 4


_ICMP_ERRORS: Final = frozenset(
    (
        IcmpType.UNREACHABLE,
        IcmpType.SOURCE_QUENCH,
        IcmpType.REDIRECT,
        IcmpType.TIME_EXCEEDED,
        IcmpType.PARAMETER_PROBLEM,
    )
)
"""What must never be answered by another error, or two routers never stop (RFC 1122 §3.2.2)."""


def checksum(data: Buffer, initial: int = 0) -> int:
    """The Internet checksum of some bytes (RFC 1071).

    The one's complement sum of 16-bit words is their sum modulo 65535, and since 65536 is 1 modulo
    65535, so is the whole buffer read as one big number: one conversion and one division in C take
    3 µs for 1500 bytes, where adding up the words takes 10.

    Args:
        data: the bytes; an odd last one counts as the high byte of a word.
        initial: a sum to start from, such as that of a pseudo header, folded or not.
    """
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    total += initial
    # Modulo 65535 a sum of 0xFFFF looks like 0, but words that are not all zero never add up to +0.
    return 0xFFFF - ((total % 0xFFFF) or 0xFFFF) if total else 0xFFFF


def checksum_after_hop(value: int) -> int:
    """The header checksum after TTL − 1, from the one before (RFC 1624).

    TTL is the high byte of its word, so the sum falls by 0x0100 and its complement rises by it,
    with end-around carry. A result of 0xFFFF, one's complement's other zero, becomes 0 as upstream
    writes it. The old value is not verified: what was broken stays so for the receiver to find.
    """
    value += 0x0100
    value = (value & 0xFFFF) + (value >> 16)
    return 0 if value == 0xFFFF else value


def is_malformed(packet: Buffer, length: int) -> bool:
    """Whether the first `length` bytes of a buffer are anything but one whole IPv4 packet.

    That is: shorter than a header, not version 4, a header that is too short or runs past the end,
    or a total length that is not the length. The header checksum is the receiver's business.
    """
    if length < IPV4_HEADER_BYTES:
        return True
    first = packet[0]
    return (
        first >> 4 != 4
        or not IPV4_HEADER_BYTES <= (first & 15) * 4 <= length
        or packet[2] << 8 | packet[3] != length
    )


def may_be_answered(packet: Buffer, length: int, *, answer_icmp: bool) -> bool:
    """Whether an ICMP error may be sent about a packet that is not malformed.

    RFC 1122 §3.2.2 and RFC 1812 §4.3.2.7: not about another error, not about a later fragment, not
    to somebody who is not one host, not about what was sent to many. A header of 60 bytes is
    upstream's exception: header, quoted header and quote would not fit its buffer.

    Args:
        length: bytes of the packet.
        answer_icmp: whether ICMP that is no error (echo) may be answered. Upstream answers no ICMP
            at all with *network unreachable*.
    """
    header = (packet[0] & 15) * 4
    if header >= IPV4_HEADER_MAX_BYTES:
        return False
    if (packet[6] << 8 | packet[7]) & _OFFSET_MASK:
        return False
    if packet[12] in (0, 127) or packet[12] >= 224 or packet[16] >= 224:
        return False
    if packet[9] != Protocol.ICMP:
        return True
    # Without its type byte an ICMP message cannot be told from an error.
    return answer_icmp and length > header and packet[header] not in _ICMP_ERRORS


def icmp_error(
    offender: Buffer,
    *,
    source: int,
    type_: IcmpType,
    code: int = 0,
    rest: int = 0,
) -> bytes:
    """A whole IPv4 packet with an ICMP error about another packet, addressed to its source.

    As upstream makes it: no options, TOS 0, ID 0, no flags, TTL 8; the quote is the offender's
    header and 8 bytes, or what there is of them.

    Args:
        offender: exactly the packet, not the buffer around it; not malformed.
        source: who answers, as a host-order integer.
        rest: the four bytes behind the checksum: 0, or the next-hop MTU (RFC 1191 §4).
    """
    quote = bytes(offender[: (offender[0] & 15) * 4 + QUOTED_BYTES])
    message = _ICMP.pack(type_, code, 0, rest) + quote
    message = _ICMP.pack(type_, code, checksum(message), rest) + quote
    return _ipv4(
        source=source.to_bytes(4, "big"),
        destination=bytes(offender[12:16]),
        protocol=Protocol.ICMP,
        ttl=ICMP_ERROR_TTL,
        payload=message,
    )


def _ipv4(
    *,
    source: bytes,
    destination: bytes,
    protocol: int,
    ttl: int,
    payload: Buffer,
    tos: int = 0,
    identification: int = 0,
    flags_offset: int = 0,
    options: bytes = b"",
) -> bytes:
    header_bytes = IPV4_HEADER_BYTES + len(options)
    total = header_bytes + len(payload)
    if len(options) % 4 or header_bytes > IPV4_HEADER_MAX_BYTES:
        raise ValueError(f"options of {len(options)} bytes: not 0, 4, … 40")
    if total > IPV4_MAX_BYTES:
        raise ValueError(f"a packet of {total} bytes is longer than {IPV4_MAX_BYTES}")
    header = bytearray(header_bytes)
    _IPV4.pack_into(
        header,
        0,
        0x40 | header_bytes // 4,
        tos,
        total,
        identification,
        flags_offset,
        ttl,
        protocol,
        0,
        source,
        destination,
    )
    header[IPV4_HEADER_BYTES:] = options
    _U16.pack_into(header, 10, checksum(header))
    return bytes(header) + bytes(payload)


def ipv4_packet(
    *,
    source: IPv4Address,
    destination: IPv4Address,
    protocol: int,
    payload: Buffer = b"",
    ttl: int = 64,
    tos: int = 0,
    identification: int = 0,
    dont_fragment: bool = False,
    more_fragments: bool = False,
    fragment_offset: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet with a correct header checksum.

    Args:
        fragment_offset: in bytes, a multiple of 8.
        options: already padded to a multiple of 4 bytes, at most 40.

    Raises:
        ValueError: if options, offset or the whole have an impossible length.
    """
    if fragment_offset % 8 or fragment_offset > _OFFSET_MASK * 8:
        raise ValueError(f"fragment offset {fragment_offset}: not a multiple of 8 below 65536")
    return _ipv4(
        source=source.packed,
        destination=destination.packed,
        protocol=protocol,
        ttl=ttl,
        payload=payload,
        tos=tos,
        identification=identification,
        flags_offset=(
            (_FLAG_DF if dont_fragment else 0)
            | (_FLAG_MF if more_fragments else 0)
            | fragment_offset // 8
        ),
        options=options,
    )


VNET_HEADER_BYTES: Final = 10
"""`struct virtio_net_hdr` without `num_buffers` (linux/virtio_net.h); the TUN's default size."""
VNET_F_NEEDS_CSUM: Final = 1
"""The checksum at `csum_start + csum_offset` holds the pseudo header's sum only: finish it."""
VNET_GSO_NONE: Final = 0

_VNET: Final = struct.Struct("=BBHHHH")
# Host byte order: that of a TUN unless TUNSETVNETLE or TUNSETVNETBE was asked for.


@dataclass(frozen=True, slots=True, kw_only=True)
class VnetHeader:
    """The virtio-net header that an IFF_VNET_HDR TUN puts before each packet, both ways.

    Source: linux/virtio_net.h, `struct virtio_net_hdr`.
    """

    flags: int = 0
    gso_type: int = VNET_GSO_NONE
    hdr_len: int = 0
    """A hint; it can be the length of the linear part and is no header length to rely on."""
    gso_size: int = 0
    """Payload bytes of a segment."""
    csum_start: int = 0
    """Where the checksum begins, in bytes from the start of the packet."""
    csum_offset: int = 0
    """Where it is stored, in bytes from `csum_start`."""

    PLAIN: ClassVar[bytes] = bytes(VNET_HEADER_BYTES)
    """The header of a packet that asks for nothing: no GSO, its checksums complete."""

    def pack(self) -> bytes:
        """The header as the kernel reads it."""
        return _VNET.pack(
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        )

    @classmethod
    def parse(cls, data: Buffer) -> VnetHeader:
        """Reads the first 10 bytes of a buffer.

        Raises:
            ValueError: if there are fewer.
        """
        if len(data) < VNET_HEADER_BYTES:
            raise ValueError(f"{len(data)} bytes are no virtio-net header")
        flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = _VNET.unpack_from(data)
        return cls(
            flags=flags,
            gso_type=gso_type,
            hdr_len=hdr_len,
            gso_size=gso_size,
            csum_start=csum_start,
            csum_offset=csum_offset,
        )


_CHECKSUM_OFFSETS: Final = (16, 6)
"""In the headers of TCP and UDP (RFC 9293, RFC 768)."""


def complete_checksum(packet: memoryview, start: int, offset: int) -> bool:
    """Finishes, in place, a transport checksum that the kernel left to the device.

    Args:
        packet: exactly the packet, of 20 bytes at least.
        start: `VnetHeader.csum_start`, like `offset` not to be trusted: a process that may send raw
            packets with such a header chooses the numbers.

    Returns:
        Whether the place is in the packet, behind its IP header, and where TCP or UDP has its
        checksum; if not, nothing was changed.
    """
    place = start + offset
    if start < (packet[0] & 15) * 4 or offset not in _CHECKSUM_OFFSETS or place + 2 > len(packet):
        return False
    value = checksum(packet[start:])
    if value == 0 and packet[9] == Protocol.UDP:
        value = 0xFFFF  # a UDP checksum of 0 would say "none" (RFC 768)
    _U16.pack_into(packet, place, value)
    return True
