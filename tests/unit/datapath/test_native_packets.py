"""The pure parts of the native data path, against slow and obvious models."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import checksum
from pyflannel.datapath.base import COUNTERS, PEER_COUNTERS
from pyflannel.datapath.native import OFF_GROUPS, _native, pack_rows
from tests.support.packets import pseudo_header_sum

TCP, UDP = 6, 17
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
GSO_TCPV4, GSO_UDP_L4 = 1, 5
DF = 0x4000
VNET = struct.Struct("=BBHHHH")
NO_HEADER = bytes(VNET.size)


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet; `bytes()` of it has right checksums."""

    payload: bytes = b"x"
    protocol: int = TCP
    source: str = "10.5.1.2"
    identification: int = 7
    fragment: int = DF
    tos: int = 0
    sequence: int = 1000
    flags: int = ACK
    options: bytes = b""
    ip_options: bytes = b""

    @property
    def header_bytes(self) -> int:
        """Both headers."""
        l4 = 8 if self.protocol == UDP else 20 + len(self.options)
        return 20 + len(self.ip_options) + l4

    def __bytes__(self) -> bytes:
        source, destination = IPv4Address(self.source).packed, IPv4Address("10.5.2.2").packed
        length = self.header_bytes + len(self.payload)
        ip_bytes = 20 + len(self.ip_options)
        ip = bytearray(
            struct.pack(
                "!BBHHHBBH4s4s",
                0x40 | ip_bytes // 4,
                self.tos,
                length,
                self.identification % 65536,
                self.fragment,
                63,
                self.protocol,
                0,
                source,
                destination,
            )
            + self.ip_options
        )
        ip[10:12] = checksum(ip).to_bytes(2, "big")
        if self.protocol == UDP:
            l4 = bytearray(struct.pack("!HHHH", 1000, 80, 8 + len(self.payload), 0) + self.payload)
            at = 6
        else:
            offset = (20 + len(self.options)) // 4 << 4
            head = struct.pack(
                "!HHIIBBHHH", 1000, 80, self.sequence % 2**32, 5, offset, self.flags, 512, 0, 0
            )
            l4 = bytearray(head + self.options + self.payload)
            at = 16
        pseudo = pseudo_header_sum(
            int.from_bytes(source, "big"),
            int.from_bytes(destination, "big"),
            self.protocol,
            len(l4),
        )
        total = checksum(l4, pseudo) or (0xFFFF if self.protocol == UDP else 0)
        l4[at : at + 2] = total.to_bytes(2, "big")
        return bytes(ip + l4)


def super_packet(whole: Packet, size: int) -> bytes:
    """A packet as the TUN gives it with TSO or USO: virtio header first."""
    kind = GSO_UDP_L4 if whole.protocol == UDP else GSO_TCPV4
    start = 20 + len(whole.ip_options)
    header = VNET.pack(1, kind, 0, size, start, 6 if whole.protocol == UDP else 16)
    return header + bytes(whole)


def segments_of(whole: Packet, size: int) -> list[bytes]:
    """What the kernel's own segmentation makes of it."""
    parts = [whole.payload[i : i + size] for i in range(0, len(whole.payload), size)]
    segments = []
    for i, part in enumerate(parts):
        flags = whole.flags
        if i < len(parts) - 1:
            flags &= ~(FIN | PSH)
        if i > 0:
            flags &= ~CWR
        segments.append(
            replace(
                whole,
                payload=part,
                flags=flags,
                identification=whole.identification + i,
                sequence=whole.sequence + i * size,
            )
        )
    return [bytes(segment) for segment in segments]


wholes = st.builds(
    Packet,
    payload=st.binary(min_size=1, max_size=3000),
    protocol=st.sampled_from([TCP, UDP]),
    identification=st.sampled_from([0, 7, 65534]),
    fragment=st.sampled_from([0, DF]),
    tos=st.integers(0, 255),
    sequence=st.sampled_from([0, 1000, 2**32 - 5]),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | PSH | FIN | CWR | 0x40]),
    options=st.sampled_from([b"", bytes(12), b"\x01\x01\x08\x0aABCDEFGH"]),
    ip_options=st.sampled_from([b"", b"\x94\x04\x00\x00"]),
)


@given(wholes, st.integers(1, 1500))
def test_a_super_packet_is_cut_as_the_kernel_would(whole: Packet, size: int) -> None:
    """Lengths, ids, sequence numbers, flags and checksums of every segment."""
    assert _native.segment(super_packet(whole, size)) == segments_of(whole, size)


@given(st.binary(max_size=120), st.integers(0, 255), st.integers(0, 2000))
def test_what_is_no_super_packet_is_not_cut(data: bytes, kind: int, size: int) -> None:
    """Random bytes give nothing, or packets; never a crash."""
    header = VNET.pack(1, kind, 0, size, 20, 16)
    result = _native.segment(header + data)
    assert result is None or all(len(part) >= 28 for part in result)


@pytest.mark.parametrize(
    "broken",
    [
        super_packet(Packet(), 0),
        super_packet(Packet(fragment=0x2000), 1),
        super_packet(Packet(payload=b""), 1),
        VNET.pack(1, GSO_UDP_L4, 0, 1, 20, 6) + bytes(Packet()),
        VNET.pack(1, 4, 0, 1, 20, 16) + bytes(Packet()),
    ],
    ids=["size 0", "a fragment", "no payload", "USO of TCP", "TSO6 of IPv4"],
)
def test_a_contradiction_between_the_headers_is_refused(broken: bytes) -> None:
    assert _native.segment(broken) is None


def stream(*sizes: int, **changes: object) -> list[Packet]:
    """Packets of one TCP flow, one after the other."""
    packets, sequence = [], 1000
    for i, size in enumerate(sizes):
        packets.append(
            replace(
                Packet(payload=bytes(k % 251 for k in range(size)), sequence=sequence),
                identification=7 + i,
                **changes,  # type: ignore[arg-type]
            )
        )
        sequence += size
    return packets


def join(packets: list[Packet]) -> list[bytes]:
    """What is written to the TUN, without the virtio headers."""
    return [data[VNET.size :] for data in _native.join([bytes(p) for p in packets])]


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("fragment", [0, DF])
def test_packets_in_sequence_become_one_that_cuts_into_them_again(
    protocol: int, fragment: int
) -> None:
    packets = stream(900, 900, 900, 100, protocol=protocol, fragment=fragment)
    (whole,) = _native.join([bytes(p) for p in packets])
    flags, kind, _, size, start, _ = VNET.unpack(whole[: VNET.size])
    assert (flags, size, start) == (1, 900, 20)
    assert kind == (GSO_TCPV4 if protocol == TCP else GSO_UDP_L4)
    assert _native.segment(whole) == [bytes(p) for p in packets]


def test_a_lone_packet_is_left_as_it_came() -> None:
    assert _native.join([bytes(Packet())]) == [NO_HEADER + bytes(Packet())]


def test_nothing_joins_after_a_push_or_a_short_packet() -> None:
    first, second, third, fourth = stream(500, 500, 500, 500)
    pushed = replace(second, flags=ACK | PSH)
    assert [len(data) for data in join([first, pushed, third, fourth])] == [1040, 1040]
    assert [len(data) for data in join([*stream(500, 300, 300)])] == [840, 340]


@pytest.mark.parametrize(
    "odd",
    [
        {"tos": 1},
        {"sequence": 99},
        {"flags": ACK | 0x40},
        {"flags": ACK | FIN},
        {"options": bytes(12)},
        {"identification": 99, "fragment": 0},
        {"ip_options": b"\x94\x04\x00\x00"},
        {"fragment": 0x2000},
    ],
    ids=str,
)
def test_what_differs_is_not_joined_and_not_overtaken(odd: dict[str, object]) -> None:
    packets = stream(600, 600, 600)
    if "identification" in odd:
        packets = [replace(p, fragment=0) for p in packets]
    packets[1] = replace(packets[1], **odd)  # type: ignore[arg-type]
    assert join(packets) == [bytes(p) for p in packets]


def test_an_id_means_nothing_where_nothing_can_be_fragmented() -> None:
    """RFC 6864: with DF the receiver ignores it, so senders put anything there."""
    packets = [replace(p, identification=0) for p in stream(600, 600)]
    assert [len(data) for data in join(packets)] == [40 + 1200]


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("where", [11, 36, 300])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_damaged_packet_is_never_blessed(damaged: int, where: int, protocol: int) -> None:
    """Joining would make the receiver skip the checksum that tells."""
    packets = [bytearray(bytes(p)) for p in stream(600, 600, 600, protocol=protocol)]
    packets[damaged][where] ^= 0x10
    out = [data[VNET.size :] for data in _native.join([bytes(p) for p in packets])]
    assert bytes(packets[damaged]) in out


def test_udp_without_a_checksum_is_not_joined() -> None:
    packets = [bytearray(bytes(p)) for p in stream(600, 600, protocol=UDP)]
    for packet in packets:
        packet[26:28] = b"\0\0"
    assert len(_native.join([bytes(p) for p in packets])) == 2


def test_many_flows_at_once_keep_their_order() -> None:
    """More flows than the joiner holds open: some go out early, none out of order."""
    flows = [[replace(p, source=f"10.5.1.{n}") for p in stream(100, 100, 100)] for n in range(40)]
    mixed = [bytes(packets[i]) for i in range(3) for packets in flows]
    came: dict[bytes, list[bytes]] = {}
    for data in _native.join(mixed):
        plain = data[VNET.size :]
        cut = _native.segment(data) if data[1] else [plain]
        came.setdefault(plain[12:16], []).extend(cut or [])
    assert came == {bytes(p[0])[12:16]: [bytes(x) for x in p] for p in flows}


addresses = st.integers(0x0A000000, 0x0A0003FF)
peers = st.builds(
    lambda address, length, owner: Peer(
        IPv4Network((address, length), strict=False), IPv4Address(owner)
    ),
    addresses,
    st.sampled_from([0, 8, 16, 22, 24, 25, 30, 32]),
    st.integers(1, 5),
)


def look_up(table: PeerTable, wanted: list[int]) -> list[int]:
    """The native table's answers."""
    result = array("I")
    result.frombytes(_native.lookup(pack_rows(table), array("I", wanted).tobytes()))
    return result.tolist()


@given(st.lists(peers, max_size=40), st.lists(addresses, min_size=1))
def test_look_ups_agree_with_the_reference_table(rows: list[Peer], wanted: list[int]) -> None:
    """Longest prefix wins, and the same peer where two claim one subnet."""
    table = PeerTable(rows)
    expected = [int(peer.address) if (peer := table.lookup(a)) else 0 for a in wanted]
    assert look_up(table, wanted) == expected


def test_each_of_ten_thousand_peers_is_found() -> None:
    first = 0x0A000000
    rows = [
        Peer(IPv4Network((first + (i << 8), 24)), IPv4Address(0xC0000201 + i))
        for i in range(10_000)
    ]
    found = look_up(PeerTable(rows), [first + (i << 8) + 9 for i in range(10_001)])
    assert found == [0xC0000201 + i for i in range(10_000)] + [0]


@pytest.mark.parametrize("row", [(0x0A000000, 33, 1), (0x0A000001, 24, 1), (0x0A000000, 24, 0)])
def test_a_row_that_is_none_is_refused(row: tuple[int, int, int]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        _native.lookup(array("I", row).tobytes(), b"")


def test_the_counters_are_those_of_the_contract_in_its_order() -> None:
    assert _native.COUNTERS == COUNTERS
    assert _native.PEER_COUNTERS == PEER_COUNTERS


def test_every_offload_can_be_forced_off() -> None:
    assert {name for group in OFF_GROUPS.values() for name in group} == set(_native.OFFLOADS)
