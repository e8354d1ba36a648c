"""`pyflannel.core.packet`: checksums, TTL, ICMP errors, rate limit, views and builders."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.packet import (
    ICMP_ERROR_TTL,
    VNET_F_NEEDS_CSUM,
    IcmpType,
    Protocol,
    UnreachableCode,
    VnetHeader,
    checksum,
    checksum_after_hop,
    complete_checksum,
    icmp_error,
    ipv4_packet,
    is_malformed,
    may_be_answered,
)
from tests.support.packets import (
    ICMPView,
    IPv4View,
    UDPView,
    icmp_echo,
    pseudo_header_sum,
    udp_datagram,
)

A = IPv4Address("10.5.1.2")
B = IPv4Address("10.5.2.2")
ROUTER = int(IPv4Address("10.5.1.0"))


def naive_checksum(data: bytes) -> int:
    """RFC 1071 as it is written: add words, fold, complement."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(max_size=200))
def test_checksum_is_that_of_rfc_1071(data):
    assert checksum(data) == naive_checksum(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xFFFF),
        (b"\0\0\0\0", 0xFFFF),
        (b"\xff\xff", 0),
        (b"\x01", 0xFEFF),
        (bytes.fromhex("0001f203f4f5f6f7"), 0x220D),  # RFC 1071 §3
    ],
)
def test_checksum_of_edge_cases(data, expected):
    assert checksum(data) == expected


def test_checksum_may_start_from_a_pseudo_header():
    start = pseudo_header_sum(int(A), int(B), Protocol.UDP, 8)
    pseudo = A.packed + B.packed + struct.pack("!BBH", 0, Protocol.UDP, 8)
    assert checksum(b"abcdefgh", start) == naive_checksum(pseudo + b"abcdefgh")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0xB1E6, 0xB2E6),
        (0xFE12, 0xFF12),
        (0xFF12, 0x0013),
        (0xFEFF, 0x0000),
        (0xFFFF, 0x0100),
        (0x0000, 0x0100),
        (0xFF00, 0x0001),
        (0xFFFE, 0x00FF),
    ],
)
def test_checksum_after_a_hop_is_upstreams(before, after):
    assert checksum_after_hop(before) == after


@given(st.integers(1, 255), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF))
def test_a_decremented_ttl_leaves_a_right_checksum_right(ttl, identification, destination):
    packet = bytearray(
        ipv4_packet(
            source=A,
            destination=IPv4Address(destination),
            protocol=17,
            ttl=ttl,
            identification=identification,
        )
    )
    packet[8] -= 1
    packet[10:12] = checksum_after_hop(packet[10] << 8 | packet[11]).to_bytes(2)
    view = IPv4View(packet)
    assert view.ttl == ttl - 1
    assert view.checksum_is_right


def whole(**changes):
    fields = {"source": A, "destination": B, "protocol": Protocol.UDP, "payload": bytes(12)}
    return ipv4_packet(**(fields | changes))


@pytest.mark.parametrize(
    ("packet", "malformed"),
    [
        (whole(), False),
        (whole(payload=b""), False),
        (whole(options=bytes(4)), False),
        (whole(options=bytes(40)), False),
        (b"", True),
        (whole(payload=b"")[:19], True),
        (whole()[:-1], True),
        (whole() + b"\0", True),
        (b"\x65" + whole()[1:], True),
        (b"\x44" + whole()[1:], True),
        (b"\x4f" + whole()[1:], True),
    ],
)
def test_all_but_one_whole_packet_is_malformed(packet, malformed):
    assert is_malformed(packet, len(packet)) is malformed


def test_only_the_given_length_of_a_buffer_counts():
    assert not is_malformed(whole() + bytes(100), len(whole()))


ECHO = icmp_echo(identifier=1, sequence=2)


@pytest.mark.parametrize(
    ("packet", "answered", "answered_even_if_icmp"),
    [
        (whole(), True, True),
        (whole(payload=b""), True, True),
        (whole(more_fragments=True), True, True),
        (whole(fragment_offset=8), False, False),
        (whole(options=bytes(36)), True, True),
        (whole(options=bytes(40)), False, False),
        (whole(protocol=1, payload=ECHO), False, True),
        (whole(protocol=1, payload=b""), False, False),
        (whole(protocol=1, payload=bytes([3, 0, 0, 0, 0, 0, 0, 0])), False, False),
        (whole(protocol=1, payload=bytes([4, 0, 0, 0, 0, 0, 0, 0])), False, False),
        (whole(protocol=1, payload=bytes([5, 0, 0, 0, 0, 0, 0, 0])), False, False),
        (whole(protocol=1, payload=bytes([11, 0, 0, 0, 0, 0, 0, 0])), False, False),
        (whole(protocol=1, payload=bytes([12, 0, 0, 0, 0, 0, 0, 0])), False, False),
        (whole(protocol=1, options=bytes(4), payload=ECHO), False, True),
        (whole(source=IPv4Address("0.0.0.0")), False, False),
        (whole(source=IPv4Address("127.0.0.1")), False, False),
        (whole(source=IPv4Address("224.0.0.1")), False, False),
        (whole(source=IPv4Address("255.255.255.255")), False, False),
        (whole(source=IPv4Address("223.255.255.255")), True, True),
        (whole(destination=IPv4Address("224.0.0.251")), False, False),
        (whole(destination=IPv4Address("255.255.255.255")), False, False),
    ],
)
def test_who_is_answered_with_an_icmp_error(packet, answered, answered_even_if_icmp):
    assert may_be_answered(packet, len(packet), answer_icmp=False) is answered
    assert may_be_answered(packet, len(packet), answer_icmp=True) is answered_even_if_icmp


def test_unreachable_is_upstreams_to_the_byte():
    offender = ipv4_packet(
        source=IPv4Address("10.5.72.2"),
        destination=IPv4Address("10.5.99.1"),
        protocol=17,
        ttl=63,
        identification=0x1234,
        payload=bytes(range(20)),
    )
    answer = icmp_error(
        offender,
        source=int(IPv4Address("10.5.72.0")),
        type_=IcmpType.UNREACHABLE,
        code=UnreachableCode.NETWORK,
    )
    header = "4500 0038 0000 0000 0801 {} 0a054800 0a054802"
    # 20 + 8 + 20 + 8 bytes; the checksum of a header is that of the header without it.
    value = naive_checksum(bytes.fromhex(header.format("0000")))
    assert answer[:20] == bytes.fromhex(header.format(f"{value:04x}"))
    assert answer[20:22] == bytes([3, 0])
    assert answer[24:28] == bytes(4)
    assert naive_checksum(answer[20:]) == 0
    assert answer[28:] == offender[:28]


def test_an_error_quotes_options_and_what_little_payload_there_is():
    offender = whole(options=bytes([7, 7, 4, 0, 0, 0, 0, 0]), payload=b"abc")
    view = IPv4View(icmp_error(offender, source=ROUTER, type_=IcmpType.TIME_EXCEEDED))
    message = ICMPView.parse(view.payload)
    assert message.body == offender
    assert (message.type, message.code, message.rest) == (11, 0, 0)
    assert message.is_error
    assert message.checksum_is_right
    assert view.checksum_is_right
    assert view.ttl == ICMP_ERROR_TTL
    assert view.destination == A


def test_fragmentation_needed_tells_the_mtu():
    answer = icmp_error(
        whole(),
        source=ROUTER,
        type_=IcmpType.UNREACHABLE,
        code=UnreachableCode.FRAGMENTATION_NEEDED,
        rest=972,
    )
    message = ICMPView.parse(IPv4View(answer).payload)
    assert (message.type, message.code, message.rest) == (3, 4, 972)


def test_views_give_back_what_was_built():
    datagram = udp_datagram(
        source=A, destination=B, source_port=1024, destination_port=53, payload=b"question"
    )
    view = IPv4View(
        ipv4_packet(
            source=A,
            destination=B,
            protocol=Protocol.UDP,
            payload=datagram,
            ttl=9,
            tos=0xB9,
            identification=0xBEEF,
            dont_fragment=True,
            more_fragments=True,
            fragment_offset=1480,
            options=bytes(4),
        )
    )
    assert (view.source, view.destination) == (A, B)
    assert (view.ttl, view.tos, view.identification) == (9, 0xB9, 0xBEEF)
    assert view.dont_fragment
    assert view.more_fragments
    assert view.fragment_offset == 1480
    assert view.options == bytes(4)
    assert view.header_bytes == 24
    assert view.total_length == 24 + 16
    assert view.protocol == Protocol.UDP
    assert view.checksum_is_right
    udp = UDPView.parse(view.payload)
    assert (udp.source_port, udp.destination_port, udp.length) == (1024, 53, 16)
    assert udp.payload == b"question"
    start = pseudo_header_sum(int(A), int(B), Protocol.UDP, 16)
    assert checksum(datagram, start) == 0


def test_a_udp_checksum_is_never_zero():
    """0 would say that there is none, so a sum of 0 is written as 0xFFFF (RFC 768)."""
    zero = udp_datagram(
        source=IPv4Address(0), destination=IPv4Address(0), source_port=0, destination_port=0,
        payload=(0xFFFF - 17 - 2 * 10).to_bytes(2, "big"),
    )  # fmt: skip
    assert UDPView.parse(zero).checksum == 0xFFFF


def test_echo_builders_make_requests_and_replies():
    request = ICMPView.parse(icmp_echo(identifier=7, sequence=9, payload=b"x"))
    reply = ICMPView.parse(icmp_echo(identifier=7, sequence=9, payload=b"x", reply=True))
    assert (request.type, reply.type) == (8, 0)
    assert request.rest == reply.rest == 7 << 16 | 9
    assert request.checksum_is_right
    assert reply.checksum_is_right
    assert not request.is_error


@pytest.mark.parametrize(
    "build",
    [
        lambda: whole(options=bytes(3)),
        lambda: whole(options=bytes(44)),
        lambda: whole(payload=bytes(65516)),
        lambda: whole(fragment_offset=4),
        lambda: whole(fragment_offset=65536),
        lambda: IPv4View(b"E"),
        lambda: UDPView.parse(bytes(7)),
        lambda: UDPView.parse(struct.pack("!HHHH", 1, 2, 9, 0)),
        lambda: UDPView.parse(struct.pack("!HHHH", 1, 2, 7, 0)),
        lambda: ICMPView.parse(bytes(7)),
        lambda: VnetHeader.parse(bytes(9)),
    ],
)
def test_what_cannot_be_is_a_value_error(build):
    with pytest.raises(ValueError, match=r"."):
        build()


def test_a_vnet_header_survives_the_round_trip():
    header = VnetHeader(
        flags=VNET_F_NEEDS_CSUM,
        gso_type=1,
        hdr_len=54,
        gso_size=1432,
        csum_start=20,
        csum_offset=16,
    )
    assert len(header.pack()) == 10
    assert VnetHeader.parse(header.pack() + b"packet") == header
    assert VnetHeader().pack() == VnetHeader.PLAIN


def half_done(payload=b"question"):
    """A UDP packet as the kernel leaves it to the device: the field holds the pseudo sum."""
    datagram = bytearray(
        udp_datagram(
            source=A, destination=B, source_port=1024, destination_port=53, payload=payload
        )
    )
    want = bytes(datagram)
    total = pseudo_header_sum(int(A), int(B), 17, len(datagram))
    datagram[6:8] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    return bytearray(whole(payload=datagram)), whole(payload=want)


@given(st.binary(max_size=40))
def test_a_checksum_left_to_the_device_is_completed(payload):
    packet, want = half_done(payload)
    assert complete_checksum(memoryview(packet), 20, 6)
    assert bytes(packet) == want


@pytest.mark.parametrize(
    ("start", "offset"),
    [
        (20, 15),
        (36, 0),
        (65535, 65535),
        (0, 35),
        (20, 16),
        (29, 6),
        (0, 0),
        (0, 6),
        (14, 6),
        (20, 8),
    ],
)
def test_a_checksum_at_an_impossible_place_is_refused(start, offset):
    """Outside the packet, in the IP header, or where neither TCP nor UDP has one."""
    packet, _ = half_done()
    before = bytes(packet)
    assert len(before) == 36
    assert not complete_checksum(memoryview(packet), start, offset)
    assert bytes(packet) == before
