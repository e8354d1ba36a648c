"""What a data path must do with a packet, as a naive model, and packets to try it with.

The model is written from the prose of `pyflannel.datapath.base` with slow, obvious means and shares
no code with the implementations: two readings of one text.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from hypothesis import strategies as st

from pyflannel.core.lpm import Peer
from pyflannel.datapath.base import DatapathConfig

NETWORK = IPv4Network("10.5.0.0/16")
TUN_ADDRESS = IPv4Address("10.5.1.0")
MTU = 1472
SUBNETS = {"a": IPv4Network("10.5.2.0/24"), "b": IPv4Network("10.5.3.0/24")}
"""The subnets of the two peers; ours is 10.5.1.0/24."""
OURS = IPv4Address("10.5.1.2")
AT_A = IPv4Address("10.5.2.2")
AT_B = IPv4Address("10.5.3.2")
NOWHERE = IPv4Address("10.5.99.9")
OUTSIDE = IPv4Address("192.0.2.77")


def sum16(data: bytes) -> int:
    """The Internet checksum, word by word."""
    total = 0
    for high, low in zip(data[::2], (data + b"\0")[1::2], strict=False):
        total += high * 256 + low
    while total > 0xFFFF:
        total = total % 0x10000 + total // 0x10000
    return 0xFFFF - total


def packet(
    source: IPv4Address = OURS,
    destination: IPv4Address = AT_A,
    *,
    ttl: int = 64,
    protocol: int = 17,
    payload: bytes = b"sixteen bytes...",
    tos: int = 0,
    identification: int = 0x1234,
    flags: int = 0,
    options: bytes = b"",
    version: int = 4,
    checksum: int | None = None,
) -> bytes:
    """An IPv4 packet, right unless told otherwise.

    Args:
        flags: the whole 16-bit field: DF is 0x4000, MF 0x2000, the rest the offset in 8 bytes.
        checksum: written as it is instead of the right one.
    """
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | words,
        tos,
        words * 4 + len(payload),
        identification,
        flags,
        ttl,
        protocol,
        0,
        source.packed,
        destination.packed,
    )
    header += options
    value = sum16(header) if checksum is None else checksum
    return header[:10] + struct.pack("!H", value) + header[12:] + payload


def echo(source: IPv4Address = OURS, destination: IPv4Address = AT_A, *, ttl: int = 64) -> bytes:
    """A ping."""
    message = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"abcdefgh"
    message = message[:2] + struct.pack("!H", sum16(message)) + message[4:]
    return packet(source, destination, ttl=ttl, protocol=1, payload=message)


def one_hop_later(data: bytes) -> bytes:
    """The packet as a forwarder sends it on."""
    value = struct.unpack_from("!H", data, 10)[0] + 0x0100
    if value > 0xFFFF:
        value = value - 0x10000 + 1
    if value == 0xFFFF:
        value = 0
    return data[:8] + bytes([data[8] - 1]) + data[9:10] + struct.pack("!H", value) + data[12:]


def icmp_about(
    data: bytes, type_: int, code: int, rest: int = 0, *, source: IPv4Address = TUN_ADDRESS
) -> bytes:
    """The ICMP error about a packet, from the TUN's address."""
    quote = data[: (data[0] & 15) * 4 + 8]
    message = struct.pack("!BBHI", type_, code, 0, rest) + quote
    message = message[:2] + struct.pack("!H", sum16(message)) + message[4:]
    return packet(
        source,
        IPv4Address(data[12:16]),
        ttl=8,
        protocol=1,
        identification=0,
        payload=message,
    )


@dataclass(slots=True)
class Model:
    """What the contract says must come out, and be counted.

    The rate limit is left out: who uses the model makes fewer than fifty ICMP errors.
    """

    config: DatapathConfig
    peers: dict[str, Peer]
    """By the name under which the test knows their sockets."""
    counters: Counter[str] = field(default_factory=Counter)
    to_tun: list[bytes] = field(default_factory=list)
    to_peer: list[tuple[str, bytes]] = field(default_factory=list)

    def _owner(self, address: IPv4Address) -> str | None:
        best: tuple[int, str] | None = None
        for name, peer in self.peers.items():
            if address in peer.subnet:
                candidate = (peer.subnet.prefixlen, name)
                best = candidate if best is None else max(best, candidate)
        return best[1] if best else None

    def _is_malformed(self, data: bytes) -> bool:
        if len(data) < 20 or data[0] >> 4 != 4:
            return True
        header = (data[0] & 15) * 4
        total = int.from_bytes(data[2:4], "big")
        return header < 20 or header > len(data) or total != len(data)

    def _answerable(self, data: bytes, *, icmp: bool) -> bool:
        header = (data[0] & 15) * 4
        source, destination = IPv4Address(data[12:16]), IPv4Address(data[16:20])
        one_host = not (
            source in IPv4Network("0.0.0.0/8")
            or source.is_loopback
            or source >= IPv4Address("224.0.0.0")
            or destination >= IPv4Address("224.0.0.0")
        )
        first_fragment = int.from_bytes(data[6:8], "big") % 0x2000 == 0
        if not (one_host and first_fragment and header < 60):
            return False
        if data[9] == 1:
            return icmp and len(data) > header and data[header] not in (3, 4, 5, 11, 12)
        return True

    def _error(self, data: bytes, type_: int) -> bytes:
        return icmp_about(data, type_, 0, source=self.config.tun_address)

    def from_tun(self, data: bytes) -> None:
        """One packet that the kernel routed into the TUN."""
        if self._is_malformed(data):
            self.counters["tun_malformed"] += 1
            return
        if len(data) > self.config.mtu:
            self.counters["tun_oversize"] += 1
            return
        peer = self._owner(IPv4Address(data[16:20]))
        if peer is None:
            self.counters["tun_no_route"] += 1
            if self._answerable(data, icmp=False):
                self.counters["icmp_unreachable"] += 1
                self.to_tun.append(self._error(data, 3))
            return
        if data[8] <= 1:
            self.counters["tun_ttl"] += 1
            if self._answerable(data, icmp=True):
                self.counters["icmp_time_exceeded"] += 1
                self.to_tun.append(self._error(data, 11))
            return
        self.counters["tun_packets"] += 1
        self.counters["tun_bytes"] += len(data)
        self.to_peer.append((peer, one_hop_later(data)))

    def from_udp(self, sender: str, data: bytes) -> None:
        """One datagram from a peer or, under a name that is none, from a stranger."""
        if self._is_malformed(data):
            self.counters["udp_malformed"] += 1
            return
        if len(data) > self.config.mtu:
            self.counters["udp_oversize"] += 1
            return
        owner = self._owner(IPv4Address(data[12:16]))
        if not self.config.accept_any:
            if sender not in self.peers:
                self.counters["udp_unknown_sender"] += 1
                return
            if owner != sender:
                self.counters["udp_wrong_source"] += 1
                return
            if IPv4Address(data[16:20]) not in self.config.network:
                self.counters["udp_wrong_destination"] += 1
                return
        if data[8] <= 1:
            self.counters["udp_ttl"] += 1
            if owner is not None and self._answerable(data, icmp=True):
                self.counters["icmp_time_exceeded"] += 1
                self.to_peer.append((owner, self._error(data, 11)))
            return
        self.counters["udp_packets"] += 1
        self.counters["udp_bytes"] += len(data)
        self.to_tun.append(one_hop_later(data))


ADDRESSES = st.sampled_from(
    [
        OURS,
        AT_A,
        AT_B,
        NOWHERE,
        OUTSIDE,
        TUN_ADDRESS,
        IPv4Address("10.5.255.255"),
        IPv4Address("0.0.0.0"),
        IPv4Address("127.0.0.1"),
        IPv4Address("224.0.0.251"),
        IPv4Address("255.255.255.255"),
    ]
)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Packets around every edge of the rules: mostly whole, sometimes damaged at one place."""
    data = packet(
        draw(ADDRESSES | st.sampled_from([OURS, AT_A, AT_B])),
        draw(ADDRESSES | st.sampled_from([OURS, AT_A, AT_B])),
        ttl=draw(st.sampled_from([0, 1, 2, 64, 255])),
        protocol=draw(st.sampled_from([1, 6, 17, 17, 253])),
        payload=draw(st.binary(max_size=40)),
        tos=draw(st.integers(0, 255)),
        identification=draw(st.integers(0, 0xFFFF)),
        flags=draw(st.sampled_from([0, 0x4000, 0x2000, 0x2001, 0x0001, 0x8000])),
        options=bytes(4 * draw(st.sampled_from([0, 0, 0, 1, 9, 10]))),
        version=draw(st.sampled_from([4, 4, 4, 4, 4, 4, 4, 0, 5, 6, 15])),
        checksum=draw(st.none() | st.sampled_from([0, 0xFEFF, 0xFFFF, 0xFF12, 0xFE00, 0xFDFF])),
    )
    damage = draw(st.sampled_from(["", "", "", "", "cut", "grown", "byte", "ihl"]))
    if damage == "cut":
        return data[: draw(st.integers(1, len(data) - 1))]
    if damage == "grown":
        return data + draw(st.binary(min_size=1, max_size=8))
    if damage == "byte":
        place = draw(st.integers(0, len(data) - 1))
        return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    if damage == "ihl":
        return bytes([0x40 | draw(st.integers(0, 15))]) + data[1:]
    return data


def captured_datagrams(pcap: bytes, port: int) -> list[tuple[IPv4Address, bytes]]:
    """Sender and payload of each UDP datagram to a port in a little-endian Ethernet capture."""
    found = []
    magic, linktype = struct.unpack_from("<I16xI", pcap)
    assert (magic, linktype) == (0xA1B2C3D4, 1)
    at = 24
    while at < len(pcap):
        length = struct.unpack_from("<8xI", pcap, at)[0]
        frame = pcap[at + 16 : at + 16 + length]
        at += 16 + length
        if frame[12:14] != b"\x08\x00" or frame[23] != 17:
            continue
        outer = frame[14 : 14 + int.from_bytes(frame[16:18], "big")]
        if int.from_bytes(outer[22:24], "big") == port:
            found.append((IPv4Address(outer[12:16]), outer[28:]))
    return found
