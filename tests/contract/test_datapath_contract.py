"""The contract of `pyflannel.datapath.base`, kept by every data path that works on this machine.

Each implementation runs on each stand that can carry it (see `datapath_rigs`), with and without the
virtio-net header. One that `pyflannel.datapath.select` lists but that cannot be used here is
skipped with what its probe says.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP

from pyflannel.core.errors import DatapathError
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import VNET_F_NEEDS_CSUM, VnetHeader
from pyflannel.datapath.base import (
    COUNTERS,
    MOST_COUNTED,
    PEER_COUNTERS,
    Datapath,
    DatapathConfig,
)
from pyflannel.datapath.ebpf import EbpfDatapath
from pyflannel.datapath.ebpf.cardplan import FIRST_LINUX
from pyflannel.datapath.select import IMPLEMENTATIONS
from pyflannel.kernel.limits import linux_version
from tests.contract.datapath_cases import (
    AT_A,
    AT_B,
    MTU,
    NOWHERE,
    OURS,
    OUTSIDE,
    SUBNETS,
    TUN_ADDRESS,
    Model,
    captured_datagrams,
    echo,
    icmp_about,
    one_hop_later,
    packet,
    packets,
    sum16,
)
from tests.contract.datapath_rigs import DeviceRig, PairRig, Rig, Wire
from tests.support.guests import GUEST, need_fou
from tests.support.packets import IPv4View

pytestmark = pytest.mark.guest

CAPTURE = Path(__file__).parent.parent / "data" / "upstream-udp.pcap"
NEEDS_DEVICE = {"ebpf"}
"""Implementations that live in the kernel and so need real devices."""


@dataclass(frozen=True, slots=True)
class Stand:
    """An implementation, and where it runs."""

    kind: str
    on_device: bool
    vnet_hdr: bool
    at_card: bool = False
    """With a FOU port that joins what comes in (`CardGRO`)."""

    def make(self, config: DatapathConfig) -> Datapath:
        """A data path of this kind."""
        return IMPLEMENTATIONS[self.kind].make(replace(config, card_gro=self.at_card))

    def in_fragments(self, counter: str) -> str:
        """What counts a datagram that came in fragments, instead of `counter`."""
        return "udp_write_error" if self.at_card else counter


def _stands(
    *, on_device: tuple[bool, ...] = (False, True), headers: tuple[bool, ...] = (False, True)
) -> list[object]:
    stands: list[object] = []
    for kind, implementation in IMPLEMENTATIONS.items():
        found = implementation.probe()
        for device, vnet_hdr in product(on_device, headers):
            if kind in NEEDS_DEVICE and (not device or vnet_hdr):
                continue
            marks = [pytest.mark.root] if device else []
            if isinstance(found, str):
                marks.append(pytest.mark.skip(reason=f"data path {kind}: {found}"))
            name = f"{kind}-{'device' if device else 'pair'}{'+vnet' if vnet_hdr else ''}"
            stands.append(pytest.param(Stand(kind, device, vnet_hdr), id=name, marks=marks))
    if GUEST and True in on_device and False in headers and linux_version() >= FIRST_LINUX:
        at_card = Stand("ebpf", on_device=True, vnet_hdr=False, at_card=True)
        stands.append(pytest.param(at_card, id="ebpf-device+card", marks=pytest.mark.root))
    return stands


@pytest.fixture(params=_stands())
def stand(request: pytest.FixtureRequest) -> Stand:
    """Each implementation on each stand that can carry it."""
    found: Stand = request.param
    return found


@pytest.fixture(scope="module")
def wires() -> Iterator[Callable[[Stand], Wire]]:
    """A wire for each stand, made when first asked for."""
    with ExitStack() as made:
        known: dict[Stand, Wire] = {}

        def wire(stand: Stand) -> Wire:
            if stand not in known:
                known[stand] = Wire(vnet_hdr=stand.vnet_hdr)
                made.callback(known[stand].close)
            return known[stand]

        yield wire


@pytest.fixture
def new_rig(stand: Stand, wires: Callable[[Stand], Wire]) -> Callable[[], Rig]:
    """Makes test stands, one at a time."""
    if stand.at_card:
        need_fou()

    def make() -> Rig:
        return DeviceRig(wires(stand)) if stand.on_device else PairRig(vnet_hdr=stand.vnet_hdr)

    return make


@pytest.fixture
def rig(new_rig: Callable[[], Rig]) -> Iterator[Rig]:
    """A test stand; the data path is not made yet."""
    with new_rig() as made:
        yield made


@pytest.fixture
def start(stand: Stand, rig: Rig) -> Callable[..., Rig]:
    """Starts the implementation under test on the stand: `start(table, **config changes)`."""

    def begin(table: PeerTable | None = None, **changes: object) -> Rig:
        rig.start(stand.make, table, **changes)
        return rig

    return begin


@pytest.fixture
def running(start: Callable[..., Rig]) -> Rig:
    """The implementation under test, started with the usual table."""
    return start()


def outcome(rig: Rig) -> tuple[dict[str, int], list[bytes], list[tuple[str, bytes]]]:
    """Counters that are not 0, packets to the kernel, datagrams to the peers: all there is."""
    rig.settle()
    return rig.counters(), rig.to_tun, rig.to_peer


# --- TUN → UDP


def test_a_packet_goes_to_the_peer_that_owns_its_destination(running: Rig) -> None:
    to_a, to_b = packet(destination=AT_A), packet(destination=AT_B, payload=b"b")
    running.inject(to_a, to_b)
    counters, to_tun, to_peer = outcome(running)
    assert sorted(to_peer) == [("a", one_hop_later(to_a)), ("b", one_hop_later(to_b))]
    assert to_tun == []
    assert counters == {"tun_packets": 2, "tun_bytes": len(to_a) + len(to_b)}


def malformed(source: IPv4Address, destination: IPv4Address) -> dict[str, bytes]:
    """What is no whole packet, but for that from here to there."""
    whole, empty = packet(source, destination), packet(source, destination, payload=b"")
    return {
        "one byte": b"E",
        "19 bytes": empty[:19],
        "IPv6": bytes([0x60]) + bytes(3) + bytes([59, 64]) + bytes(34),
        "version 0": packet(source, destination, version=0),
        "version 5": packet(source, destination, version=5),
        "header of 16 bytes": b"\x44" + whole[1:],
        "header of 0 bytes": b"\x40" + whole[1:],
        "header past the end": b"\x4f" + whole[1:],
        "total length one too long": whole[:-1],
        "total length one too short": whole + b"\0",
        "total length 0": whole[:2] + b"\0\0" + whole[4:],
        "total length 19": empty[:2] + b"\0\x13" + empty[4:],
        "total length 65535": whole[:2] + b"\xff\xff" + whole[4:],
        "longer than the MTU and with a wrong length": packet(
            source, destination, payload=bytes(MTU)
        )
        + b"\0",
    }


MALFORMED = malformed(OURS, AT_A)
MALFORMED_DATAGRAMS = malformed(AT_A, OURS)


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_whole_packet_is_dropped(running: Rig, data: bytes) -> None:
    running.inject(data)
    assert outcome(running) == ({"tun_malformed": 1}, [], [])


@pytest.mark.parametrize("data", MALFORMED_DATAGRAMS.values(), ids=MALFORMED_DATAGRAMS.keys())
def test_a_datagram_that_is_no_whole_packet_is_dropped(
    stand: Stand, running: Rig, data: bytes
) -> None:
    running.deliver("a", data)
    is_whole = not stand.on_device or len(data) <= MTU
    counter = "udp_malformed" if is_whole else stand.in_fragments("udp_malformed")
    assert outcome(running) == ({counter: 1}, [], [])


def test_an_empty_datagram_is_malformed(running: Rig) -> None:
    running.deliver("a", b"")
    assert outcome(running) == ({"udp_malformed": 1}, [], [])


def test_the_mtu_is_the_longest_packet_that_passes(running: Rig) -> None:
    fits = packet(payload=bytes(MTU - 20))
    running.inject(fits, packet(payload=bytes(MTU - 19)))
    counters, to_tun, to_peer = outcome(running)
    assert to_peer == [("a", one_hop_later(fits))]
    assert to_tun == []
    assert counters == {"tun_packets": 1, "tun_bytes": MTU, "tun_oversize": 1}


@pytest.mark.parametrize(
    "destination",
    [NOWHERE, OURS, TUN_ADDRESS, OUTSIDE, IPv4Address("10.5.1.255"), IPv4Address("10.5.4.0")],
    ids=str,
)
def test_without_a_peer_the_sender_is_told(running: Rig, destination: IPv4Address) -> None:
    """Our own subnet is in no table, so a packet for it that gets to the TUN has no peer."""
    data = packet(destination=destination)
    running.inject(data)
    counters, to_tun, to_peer = outcome(running)
    assert to_tun == [icmp_about(data, 3, 0)]
    assert to_peer == []
    assert counters == {"tun_no_route": 1, "icmp_unreachable": 1}


def test_the_quote_has_all_options_and_what_there_is_of_eight_bytes(running: Rig) -> None:
    optioned = packet(destination=NOWHERE, options=bytes(36), payload=bytes(100))
    short = packet(destination=NOWHERE, payload=b"abc")
    bare = packet(destination=NOWHERE, payload=b"")
    running.inject(optioned, short, bare)
    _, to_tun, _ = outcome(running)
    assert to_tun == [icmp_about(data, 3, 0) for data in (optioned, short, bare)]
    assert [len(data) for data in to_tun] == [28 + 56 + 8, 28 + 23, 28 + 20]


SILENT: dict[str, dict[str, object]] = {
    "later fragment": {"flags": 0x0001},
    "later fragment with more to come": {"flags": 0x2064},
    "header of 60 bytes": {"options": bytes(40)},
    "multicast source": {"source": IPv4Address("224.0.0.1")},
    "broadcast source": {"source": IPv4Address("255.255.255.255")},
    "reserved source": {"source": IPv4Address("240.0.0.1")},
    "no source": {"source": IPv4Address("0.0.0.0")},
    "loopback source": {"source": IPv4Address("127.0.0.1")},
    "ICMP unreachable": {"protocol": 1, "payload": bytes([3, 1]) + bytes(34)},
    "ICMP source quench": {"protocol": 1, "payload": bytes([4, 0]) + bytes(34)},
    "ICMP redirect": {"protocol": 1, "payload": bytes([5, 0]) + bytes(34)},
    "ICMP time exceeded": {"protocol": 1, "payload": bytes([11, 0]) + bytes(34)},
    "ICMP parameter problem": {"protocol": 1, "payload": bytes([12, 0]) + bytes(34)},
    "ICMP without a type": {"protocol": 1, "payload": b""},
}


@pytest.mark.parametrize("fields", SILENT.values(), ids=SILENT.keys())
def test_who_must_not_be_answered_is_not(running: Rig, fields: dict[str, object]) -> None:
    running.inject(packet(destination=NOWHERE, **fields), packet(ttl=1, **fields))  # type: ignore[arg-type]
    assert outcome(running) == ({"tun_no_route": 1, "tun_ttl": 1}, [], [])


@pytest.mark.parametrize("destination", ["224.0.0.251", "239.1.1.1", "255.255.255.255"])
def test_what_was_sent_to_many_is_not_answered(running: Rig, destination: str) -> None:
    running.inject(packet(destination=IPv4Address(destination)))
    assert outcome(running) == ({"tun_no_route": 1}, [], [])


def test_a_first_fragment_is_answered(running: Rig) -> None:
    data = packet(destination=NOWHERE, flags=0x2000)
    running.inject(data)
    assert outcome(running)[1] == [icmp_about(data, 3, 0)]


def test_a_ping_to_nowhere_is_not_answered_but_an_expired_one_is(running: Rig) -> None:
    """The first is upstream's rule; without the second, traceroute -I would be blind."""
    expired = echo(ttl=1)
    running.inject(echo(destination=NOWHERE), expired)
    counters, to_tun, to_peer = outcome(running)
    assert to_tun == [icmp_about(expired, 11, 0)]
    assert to_peer == []
    assert counters == {"tun_no_route": 1, "tun_ttl": 1, "icmp_time_exceeded": 1}


def test_no_route_is_told_before_an_expired_ttl(running: Rig) -> None:
    data = packet(destination=NOWHERE, ttl=1)
    running.inject(data)
    assert outcome(running) == (
        {"tun_no_route": 1, "icmp_unreachable": 1},
        [icmp_about(data, 3, 0)],
        [],
    )


@pytest.mark.parametrize("ttl", [0, 1])
def test_the_last_hop_is_the_tun(running: Rig, ttl: int) -> None:
    data = packet(ttl=ttl)
    running.inject(data)
    counters, to_tun, to_peer = outcome(running)
    assert to_tun == [icmp_about(data, 11, 0)]
    assert to_peer == []
    assert counters == {"tun_ttl": 1, "icmp_time_exceeded": 1}


@pytest.mark.parametrize("ttl", [2, 3, 128, 255])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0xB1E6, 0xB2E6),
        (0xFE12, 0xFF12),
        (0xFF12, 0x0013),
        (0xFEFF, 0x0000),
        (0xFFFF, 0x0100),
        (0xFDFF, 0xFEFF),
        (0xFE00, 0xFF00),
        (0xFEFE, 0xFFFE),
        (0xFF00, 0x0001),
        (0x0000, 0x0100),
    ],
    ids=hex,
)
def test_ttl_falls_by_one_and_the_checksum_is_patched(
    running: Rig, ttl: int, before: int, after: int
) -> None:
    """Patched, not computed: these checksums are wrong, and stay wrong for the receiver to find."""
    out = packet(ttl=ttl, checksum=before)
    back = packet(AT_A, OURS, ttl=ttl, checksum=before)
    running.inject(out)
    running.deliver("a", back)
    _, to_tun, to_peer = outcome(running)
    for sent, got in ((out, to_peer[0][1]), (back, to_tun[0])):
        assert got[8] == ttl - 1
        assert got[10:12] == after.to_bytes(2, "big")
        assert got[:8] + got[9:10] + got[12:] == sent[:8] + sent[9:10] + sent[12:]


UNTOUCHED: dict[str, dict[str, object]] = {
    "ECN and DSCP": {"tos": 0xBB},
    "DF": {"flags": 0x4000},
    "the reserved flag": {"flags": 0x8000},
    "first fragment": {"flags": 0x2000},
    "middle fragment": {"flags": 0x20B7},
    "last fragment": {"flags": 0x016E},
    "options": {"options": bytes([7, 7, 4, 0, 0, 0, 0, 0])},
    "40 bytes of options": {"options": b"\x01" * 40},
    "no payload": {"payload": b""},
    "no protocol we know": {"protocol": 253},
    "TCP": {"protocol": 6, "payload": bytes(12) + b"\x50\x12" + bytes(6)},
    "UDP of no use": {"payload": b"\0"},
}


@pytest.mark.parametrize("fields", UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_everything_but_ttl_and_checksum_is_carried_as_it_is(
    running: Rig, fields: dict[str, object]
) -> None:
    out, back = packet(**fields), packet(AT_A, OURS, **fields)  # type: ignore[arg-type]
    running.inject(out)
    running.deliver("a", back)
    counters, to_tun, to_peer = outcome(running)
    assert to_peer == [("a", one_hop_later(out))]
    assert to_tun == [one_hop_later(back)]
    assert counters == {
        "tun_packets": 1,
        "tun_bytes": len(out),
        "udp_packets": 1,
        "udp_bytes": len(back),
    }


def test_the_order_of_a_flow_is_kept(running: Rig) -> None:
    out = [packet(identification=i, payload=bytes(i % 90)) for i in range(150)]
    back = [packet(AT_A, OURS, identification=i, payload=bytes(i % 90)) for i in range(150)]
    running.inject(*out)
    running.deliver("a", *back)
    _, to_tun, to_peer = outcome(running)
    assert [data for _, data in to_peer] == [one_hop_later(data) for data in out]
    assert to_tun == [one_hop_later(data) for data in back]


with_header_of_its_own = pytest.mark.parametrize(
    "stand", _stands(on_device=(False,), headers=(True,)), indirect=True
)
CHECKSUM_PLACES = {
    "UDP's": (20, 6, True),
    "TCP's, further in": (28, 16, True),
    "the first byte": (0, 0, False),
    "the total length": (0, 2, False),
    "the addresses": (0, 16, False),
    "half in the IP header": (14, 6, False),
    "no checksum's": (20, 0, False),
    "behind the end": (60, 6, False),
}


@with_header_of_its_own
@pytest.mark.parametrize("place", CHECKSUM_PLACES.values(), ids=CHECKSUM_PLACES.keys())
def test_a_checksum_is_finished_behind_the_ip_header_alone(
    running: Rig, place: tuple[int, int, bool]
) -> None:
    """Who may send raw packets writes the virtio-net header himself, and may point anywhere."""
    assert isinstance(running, PairRig)
    start, offset, fits = place
    data = packet(payload=bytes(range(32)))
    running.inject_with_header(
        VnetHeader(flags=VNET_F_NEEDS_CSUM, csum_start=start, csum_offset=offset), data
    )
    counters, to_tun, to_peer = outcome(running)
    assert to_tun == []
    if not fits:
        assert (counters, to_peer) == ({"tun_malformed": 1}, [])
        return
    at = start + offset
    want = data[:at] + sum16(data[start:]).to_bytes(2, "big") + data[at + 2 :]
    assert to_peer == [("a", one_hop_later(want))]


# --- UDP → TUN


def test_a_datagram_longer_than_the_mtu_is_dropped_whole(stand: Stand, running: Rig) -> None:
    fits = packet(AT_A, OURS, payload=bytes(MTU - 20))
    too_long = packet(AT_A, OURS, payload=bytes(MTU - 19))
    running.deliver("a", fits, too_long)
    assert outcome(running) == (
        {"udp_packets": 1, "udp_bytes": MTU, stand.in_fragments("udp_oversize"): 1},
        [one_hop_later(fits)],
        [],
    )


def test_oversize_is_judged_by_the_mtu_of_the_config(start: Callable[..., Rig]) -> None:
    rig = start(mtu=600)
    fits, too_long = packet(AT_A, OURS, payload=bytes(580)), packet(AT_A, OURS, payload=bytes(581))
    rig.deliver("a", fits, too_long)
    rig.inject(packet(payload=bytes(580)), packet(payload=bytes(581)))
    counters, to_tun, to_peer = outcome(rig)
    assert to_tun == [one_hop_later(fits)]
    assert len(to_peer) == 1
    assert counters["udp_oversize"] == counters["tun_oversize"] == 1


def test_a_stranger_is_not_heard(running: Rig) -> None:
    running.deliver("stranger", packet(AT_A, OURS), packet(NOWHERE, OURS), packet(AT_A, OUTSIDE))
    assert outcome(running) == ({"udp_unknown_sender": 3}, [], [])


@pytest.mark.parametrize("source", [AT_B, OURS, NOWHERE, OUTSIDE, TUN_ADDRESS], ids=str)
def test_a_peer_speaks_only_for_its_own_subnet(running: Rig, source: IPv4Address) -> None:
    running.deliver("a", packet(source, OURS), packet(source, OUTSIDE))
    assert outcome(running) == ({"udp_wrong_source": 2}, [], [])


@pytest.mark.parametrize("destination", ["192.0.2.77", "10.6.0.1", "224.0.0.1", "127.0.0.1"])
def test_nothing_gets_in_for_who_is_not_in_the_network(running: Rig, destination: str) -> None:
    running.deliver("a", packet(AT_A, IPv4Address(destination)))
    assert outcome(running) == ({"udp_wrong_destination": 1}, [], [])


def test_where_in_the_network_a_packet_goes_is_the_kernels_business(running: Rig) -> None:
    back = [packet(AT_A, to) for to in (OURS, TUN_ADDRESS, NOWHERE, AT_B)]
    running.deliver("a", *back)
    assert outcome(running)[1] == [one_hop_later(data) for data in back]


def test_a_peer_speaks_from_the_backends_port(running: Rig) -> None:
    """A pod or a user of the peer's node has its address, but not its port."""
    running.deliver_from_other_port("a", packet(AT_A, OURS))
    assert outcome(running) == ({"udp_unknown_sender": 1}, [], [])


def test_behind_a_nat_a_peer_may_speak_from_any_port(start: Callable[..., Rig]) -> None:
    rig = start(any_port=True)
    back = packet(AT_A, OURS)
    rig.deliver_from_other_port("a", back)
    rig.deliver_from_other_port("b", back)
    counters, to_tun, _ = outcome(rig)
    assert to_tun == [one_hop_later(back)]
    assert counters == {"udp_packets": 1, "udp_bytes": len(back), "udp_wrong_source": 1}


def test_accept_any_takes_everything_that_is_a_packet(start: Callable[..., Rig]) -> None:
    rig = start(accept_any=True)
    back = [packet(AT_B, OURS), packet(OUTSIDE, OUTSIDE), packet(NOWHERE, OURS)]
    rig.deliver("stranger", *back, packet(version=6), packet(OUTSIDE, OURS, ttl=1))
    counters, to_tun, to_peer = outcome(rig)
    assert to_tun == [one_hop_later(data) for data in back]
    assert to_peer == []
    assert counters == {
        "udp_packets": 3,
        "udp_bytes": sum(map(len, back)),
        "udp_malformed": 1,
        "udp_ttl": 1,
    }


@pytest.mark.parametrize("ttl", [0, 1])
def test_an_expired_datagram_is_answered_through_the_overlay(running: Rig, ttl: int) -> None:
    expired, ping = packet(AT_A, OURS, ttl=ttl), echo(AT_B, OURS, ttl=ttl)
    running.deliver("a", expired)
    running.deliver("b", ping)
    counters, to_tun, to_peer = outcome(running)
    assert to_tun == []
    assert sorted(to_peer) == [("a", icmp_about(expired, 11, 0)), ("b", icmp_about(ping, 11, 0))]
    assert counters == {"udp_ttl": 2, "icmp_time_exceeded": 2}


@pytest.mark.parametrize(
    "fields",
    [fields for fields in SILENT.values() if "source" not in fields],
    ids=[name for name, fields in SILENT.items() if "source" not in fields],
)
def test_an_expired_datagram_that_must_not_be_answered_is_not(
    running: Rig, fields: dict[str, object]
) -> None:
    running.deliver("a", packet(AT_A, OURS, ttl=1, **fields))  # type: ignore[arg-type]
    assert outcome(running) == ({"udp_ttl": 1}, [], [])


def test_under_accept_any_the_owner_of_the_source_is_told(start: Callable[..., Rig]) -> None:
    rig = start(accept_any=True)
    expired = packet(AT_B, OURS, ttl=1)
    rig.deliver("stranger", expired)
    assert outcome(rig) == (
        {"udp_ttl": 1, "icmp_time_exceeded": 1},
        [],
        [("b", icmp_about(expired, 11, 0))],
    )


def test_what_upstream_puts_on_the_wire_is_understood(rig: Rig, start: Callable[..., Rig]) -> None:
    """tests/data/upstream-udp.md tells what is in the capture."""
    network = IPv4Network("10.240.0.0/12")
    names = {IPv4Address("10.99.0.1"): "a", IPv4Address("10.99.0.2"): "b"}
    subnets = {"a": IPv4Network("10.240.35.0/24"), "b": IPv4Network("10.240.9.0/24")}
    peers = {name: Peer(subnets[name], rig.addresses[name]) for name in subnets}
    start(PeerTable(peers.values()), network=network)
    model = Model(rig.config, peers)
    captured = captured_datagrams(CAPTURE.read_bytes(), 8285)
    for sender, data in captured:
        rig.deliver(names[sender], data)
        rig.settle()
        model.from_udp(names[sender], data)
    counters, to_tun, to_peer = outcome(rig)
    assert (counters["udp_packets"], counters["udp_ttl"]) == (6, 1)
    assert counters == dict(model.counters)
    assert to_tun == model.to_tun
    assert to_peer == model.to_peer
    assert all(IPv4View(data).checksum_is_right for data in to_tun)


# --- The table


def test_an_empty_table_knows_no_peer(start: Callable[..., Rig]) -> None:
    rig = start(PeerTable())
    out = packet()
    rig.inject(out)
    rig.deliver("a", packet(AT_A, OURS))
    assert outcome(rig) == (
        {"tun_no_route": 1, "icmp_unreachable": 1, "udp_unknown_sender": 1},
        [icmp_about(out, 3, 0)],
        [],
    )


def test_the_longest_prefix_wins_both_ways(rig: Rig, start: Callable[..., Rig]) -> None:
    """`a` has all of 10.5.128.0/17 but for the one address that `b` has."""
    inner = IPv4Address("10.5.200.7")
    start(
        rig.table(
            Peer(IPv4Network("10.5.128.0/17"), rig.addresses["a"]),
            Peer(IPv4Network("10.5.200.7/32"), rig.addresses["b"]),
        )
    )
    out = [packet(destination=to) for to in (inner, IPv4Address("10.5.200.8"), AT_A)]
    rig.inject(*out)
    rig.deliver("a", packet(inner, OURS))
    rig.deliver("b", back := packet(inner, OURS))
    counters, to_tun, to_peer = outcome(rig)
    assert [data for name, data in to_peer if name == "a"] == [one_hop_later(d) for d in out[1:]]
    assert [data for name, data in to_peer if name == "b"] == [one_hop_later(out[0])]
    assert to_tun == [one_hop_later(back)]
    assert counters["udp_wrong_source"] == 1


def test_one_address_may_have_several_subnets(rig: Rig, start: Callable[..., Rig]) -> None:
    start(rig.table(Peer(IPv4Network("10.5.9.0/24"), rig.addresses["a"])))
    second = IPv4Address("10.5.9.9")
    rig.inject(packet(destination=second))
    rig.deliver("a", packet(second, OURS), packet(AT_A, OURS))
    counters, _, _ = outcome(rig)
    assert (counters["tun_packets"], counters["udp_packets"]) == (1, 2)


@pytest.mark.slow
def test_a_table_is_replaced_between_two_packets_and_none_is_lost(running: Rig) -> None:
    swapped = PeerTable(
        [Peer(SUBNETS["a"], running.addresses["b"]), Peer(SUBNETS["b"], running.addresses["a"])]
    )
    sent = 0
    expected: list[tuple[str, bytes]] = []
    for turn in range(60):
        running.path.replace_table(swapped if turn % 2 else running.table())
        out = [packet(identification=sent + i) for i in range(5)]
        running.inject(*out)
        expected += [("b" if turn % 2 else "a", one_hop_later(data)) for data in out]
        sent += len(out)
        running.settle()
    counters, to_tun, to_peer = outcome(running)
    assert counters == {"tun_packets": sent, "tun_bytes": sent * len(packet())}
    assert to_tun == []
    for name in ("a", "b"):
        assert [d for n, d in to_peer if n == name] == [d for n, d in expected if n == name]


@pytest.mark.slow
def test_no_packet_is_lost_while_the_table_is_replaced_under_it(running: Rig) -> None:
    other = running.table(*(Peer(IPv4Network(f"10.5.{i}.0/24"), running.addresses["b"])
                            for i in range(10, 99)))  # fmt: skip
    for turn in range(50):
        running.inject(*(packet(identification=i) for i in range(10)))
        running.deliver("a", *(packet(AT_A, OURS, identification=i) for i in range(10)))
        running.path.replace_table(other if turn % 2 else running.table())
        running.loop.run_until_complete(_turn())
        running.collected()
    counters, _, to_peer = outcome(running)
    assert (counters["tun_packets"], counters["udp_packets"]) == (500, 500)
    assert [name for name, _ in to_peer] == ["a"] * 500


async def _turn() -> None:
    """One pass of the event loop."""


# --- Limits, and life


def test_icmp_errors_come_in_bursts_of_fifty(running: Rig) -> None:
    """The bucket refills while we test, so what is exact is the sum."""
    running.inject(*(packet(destination=NOWHERE, identification=i) for i in range(200)))
    running.inject(echo(destination=NOWHERE))  # never answered, so never suppressed
    running.settle()
    counters = running.counters()
    assert counters["tun_no_route"] == 201
    assert counters["icmp_unreachable"] >= 50
    assert counters["icmp_suppressed"] >= 50
    assert counters["icmp_unreachable"] + counters["icmp_suppressed"] == 200
    assert len(running.to_tun) == counters["icmp_unreachable"]


def test_one_pods_flood_does_not_suppress_the_errors_of_others(running: Rig) -> None:
    running.inject(*(packet(destination=NOWHERE, identification=i) for i in range(400)))
    other = packet(OURS + 1, destination=NOWHERE)
    running.inject(other)
    running.settle()
    assert running.counters()["icmp_suppressed"] > 0
    assert icmp_about(other, 3, 0) in running.to_tun


def test_all_kinds_of_icmp_errors_share_the_limit(running: Rig) -> None:
    for _ in range(50):
        running.inject(packet(ttl=1), packet(destination=NOWHERE))
        running.deliver("a", packet(AT_A, OURS, ttl=1))
    running.settle()
    counters = running.path.counters()
    made = counters["icmp_unreachable"] + counters["icmp_time_exceeded"]
    assert made + counters["icmp_suppressed"] == 150
    assert counters["icmp_suppressed"] > 0


def test_counters_are_all_there_from_the_start(running: Rig) -> None:
    assert running.path.counters() == dict.fromkeys(COUNTERS, 0)
    assert tuple(running.path.counters()) == COUNTERS


# --- Counters of each peer


def of_peer(rig: Rig, name: str) -> dict[str, int] | None:
    """A peer's counters that are not 0."""
    found = rig.path.peer_counters(rig.addresses[name])
    if found is None:
        return None
    assert tuple(found) == PEER_COUNTERS
    return {reason: count for reason, count in found.items() if count}


def test_what_goes_to_a_peer_and_comes_of_it_is_counted_for_it(running: Rig) -> None:
    out = [packet(destination=AT_A, payload=bytes(n)) for n in (10, 900, 900, 20)]
    other = packet(destination=AT_B)
    running.inject(out[0], out[1], other, out[2], out[3])
    back, answer = packet(AT_A, OURS, payload=bytes(300)), packet(AT_B, OURS)
    running.deliver("a", back, back)
    running.deliver("b", answer)
    running.deliver("stranger", back)
    running.settle()
    assert of_peer(running, "a") == {
        "packets_in": 2,
        "bytes_in": 2 * len(back),
        "packets_out": 4,
        "bytes_out": sum(map(len, out)),
    }
    assert of_peer(running, "b") == {
        "packets_in": 1,
        "bytes_in": len(answer),
        "packets_out": 1,
        "bytes_out": len(other),
    }
    assert of_peer(running, "stranger") is None


def test_what_is_dropped_is_counted_for_the_peer_by_reason(running: Rig) -> None:
    running.inject(packet(destination=AT_A, ttl=1), packet(destination=NOWHERE))
    running.deliver(
        "a",
        packet(AT_B, OURS),
        packet(AT_B, OURS),
        packet(AT_A, OUTSIDE),
        packet(AT_A, OURS, ttl=1),
        MALFORMED_DATAGRAMS["IPv6"],
    )
    running.settle()
    assert of_peer(running, "a") == {
        "tun_ttl": 1,
        "udp_malformed": 1,
        "udp_wrong_source": 2,
        "udp_wrong_destination": 1,
        "udp_ttl": 1,
    }
    assert of_peer(running, "b") == {}


def test_a_peer_keeps_its_counters_while_it_is_in_the_table(running: Rig) -> None:
    """Even if other peers change. A peer that returns starts at zero."""
    both, alone = running.table(), PeerTable([Peer(SUBNETS["b"], running.addresses["b"])])
    running.inject(packet(destination=AT_A), packet(destination=AT_B))
    running.settle()
    running.path.replace_table(alone)
    assert of_peer(running, "a") is None
    # A newcomer may be counted in the place of the one that has gone.
    moved = Peer(SUBNETS["a"], running.addresses["stranger"])
    running.path.replace_table(PeerTable([*alone.peers, moved]))
    running.deliver("stranger", packet(AT_A, OURS))
    running.settle()
    assert of_peer(running, "stranger") == {"packets_in": 1, "bytes_in": len(packet(AT_A, OURS))}
    running.path.replace_table(both)
    assert of_peer(running, "a") == {}
    assert of_peer(running, "b") == {"packets_out": 1, "bytes_out": len(packet(destination=AT_B))}


def test_so_many_peers_are_counted_and_the_rest_is_carried_all_the_same(running: Rig) -> None:
    many = [
        Peer(IPv4Network((0x0A058000 + 16 * n, 28)), IPv4Address(0xCB007100 + n))
        for n in range(MOST_COUNTED)
    ]
    running.path.replace_table(PeerTable([*many, Peer(SUBNETS["b"], running.addresses["b"])]))
    # It was there before them. `a` has given its place back.
    assert of_peer(running, "b") == {}
    assert sum(running.path.peer_counters(each.address) is not None for each in many) == 1023
    late = Peer(SUBNETS["a"], running.addresses["a"])
    running.path.replace_table(PeerTable([*many, late]))
    running.inject(packet(destination=AT_A))
    counters, _, to_peer = outcome(running)
    assert to_peer == [("a", one_hop_later(packet(destination=AT_A)))]
    assert counters["tun_packets"] == 1


def test_it_names_itself_and_has_not_failed(running: Rig) -> None:
    assert running.path.capabilities.name in IMPLEMENTATIONS
    assert running.path.failure() is None


def test_after_stop_nothing_moves_and_the_descriptors_are_still_open(running: Rig) -> None:
    running.inject(packet())
    running.settle()
    running.path.stop()
    running.path.stop()
    before = running.counters()
    running.inject(packet())
    running.deliver("a", packet(AT_A, OURS))
    for _ in range(5):
        running.loop.run_until_complete(_turn())
    running.collected()
    assert running.counters() == before
    assert running.to_tun == []
    assert len(running.to_peer) == 1
    assert running.descriptors_are_open()


def test_a_second_data_path_takes_over_the_descriptors(stand: Stand, running: Rig) -> None:
    """As after a failure: the first was stopped, another is made on the same TUN and socket."""
    running.inject(packet())
    running.settle()
    running.path.stop()
    running.restart(stand.make)
    running.inject(out := packet(payload=b"second"))
    counters, _, to_peer = outcome(running)
    assert counters == {"tun_packets": 1, "tun_bytes": len(out)}
    assert of_peer(running, "a") == {"packets_out": 1, "bytes_out": len(out)}
    assert to_peer == [("a", one_hop_later(packet())), ("a", one_hop_later(out))]


def test_a_descriptor_that_is_none_is_a_datapath_error(stand: Stand, rig: Rig) -> None:
    with pytest.raises(DatapathError):
        rig.start(stand.make, tun_fd=1 << 20, udp_fd=1 << 20)


# --- Path MTU (a real wire only)


on_a_real_wire = pytest.mark.parametrize("stand", _stands(on_device=(True,)), indirect=True)


@pytest.fixture
def narrow(running: Rig) -> Iterator[DeviceRig]:
    """A running data path to whose peer `a` only 1300 bytes fit."""
    assert isinstance(running, DeviceRig)
    # Locked: bpf_fib_lookup() takes no other for more than advice (net/ipv4/route.c,
    # ip_mtu_from_fib_result).
    route = f"{running.addresses['a']}/32 dev under0 mtu lock 1300"
    running.wire.node.ip(f"route add {route}")
    yield running
    running.wire.node.ip(f"route del {route}")


@on_a_real_wire
def test_what_the_path_does_not_take_is_answered_if_it_must_not_be_cut(narrow: DeviceRig) -> None:
    fits, too_big = (packet(flags=0x4000, payload=bytes(n)) for n in (1272 - 20, 1273 - 20))
    narrow.inject(fits, too_big)
    counters, to_tun, to_peer = outcome(narrow)
    assert to_peer == [("a", one_hop_later(fits))]
    assert counters == {
        "tun_packets": 1,
        "tun_bytes": 1272,
        "tun_too_big": 1,
        "icmp_frag_needed": 1,
    }
    # Whether TTL and checksum in the quote are those from before or after is left open.
    before, after = (icmp_about(d, 3, 4, 1272) for d in (too_big, one_hop_later(too_big)))
    assert to_tun in ([before], [after])


@on_a_real_wire
def test_what_may_be_cut_is_sent_in_fragments(narrow: DeviceRig) -> None:
    """The receiving kernel puts them together again; what must not be cut is still not cut.

    One after the other: what is cut in user space may be overtaken by what the kernel carries.
    """
    big, small = packet(payload=bytes(1400)), packet(payload=b"small")
    for data in (big, small, packet(flags=0x4000, payload=bytes(1400)), big):
        narrow.inject(data)
        narrow.settle()
    counters, to_tun, to_peer = outcome(narrow)
    assert [data for _, data in to_peer] == [one_hop_later(data) for data in (big, small, big)]
    assert len(to_tun) == 1
    assert counters == {
        "tun_packets": 3,
        "tun_bytes": 2 * len(big) + len(small),
        "tun_too_big": 1,
        "icmp_frag_needed": 1,
    }


@on_a_real_wire
def test_too_big_is_not_told_to_who_must_not_be_answered(narrow: DeviceRig) -> None:
    narrow.inject(
        packet(flags=0x4000, options=bytes(40), payload=bytes(1300)),
        packet(flags=0x4001, payload=bytes(1300)),
        packet(flags=0x4000, protocol=1, payload=bytes([11]) + bytes(1300)),
    )
    assert outcome(narrow) == ({"tun_too_big": 3}, [], [])


FORGED_MTU = 576


QUOTED = {
    "a datagram of ours": UDP(sport=DeviceRig.PORT, dport=DeviceRig.PORT) / bytes(20),
    "an answer to a ping": ICMP(type=0, id=7),
}


@on_a_real_wire
@pytest.mark.parametrize("quote", QUOTED.values(), ids=QUOTED.keys())
def test_no_path_is_believed_to_take_less_than_1280_bytes(running: DeviceRig, quote: Any) -> None:
    """Anybody may send "fragmentation needed", and about anything: here a stranger does."""
    rig = running
    ours, peer = (str(rig.addresses[name]) for name in ("ours", "a"))
    quoted = IP(src=ours, dst=peer) / quote
    forged = IP(src=str(rig.addresses["stranger"]), dst=ours)
    forged /= ICMP(type=3, code=4, nexthopmtu=FORGED_MTU) / bytes(quoted)
    with (
        rig.in_peers_namespace(),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender,
    ):
        sender.sendto(bytes(forged), (ours, 0))
    known = ""
    for _ in range(200):
        known = rig.wire.node.run("ip", "route", "get", peer)
        if f"mtu {FORGED_MTU}" in known:
            break
        time.sleep(0.01)
    assert f"mtu {FORGED_MTU}" in known, "the kernel believes it"
    try:
        fits, too_big = (packet(flags=0x4000, payload=bytes(n - 20)) for n in (1252, 1253))
        rig.inject(packet(payload=bytes(600)), fits)
        rig.inject(too_big)
        counters, to_tun, to_peer = outcome(rig)
        sent = (one_hop_later(packet(payload=bytes(600))), one_hop_later(fits))
        assert sorted(data for _, data in to_peer) == sorted(sent)
        assert counters["tun_packets"] == 2
        assert counters["tun_too_big"] == counters["icmp_frag_needed"] == 1
        before, after = (icmp_about(d, 3, 4, 1252) for d in (too_big, one_hop_later(too_big)))
        assert to_tun in ([before], [after])
    finally:
        rig.wire.node.run("sysctl", "-qw", "net.ipv4.route.flush=1")


in_the_kernel = pytest.mark.parametrize(
    "stand",
    [each for each in _stands(on_device=(True,), headers=(False,)) if "ebpf" in str(each.id)],
    indirect=True,
)


@in_the_kernel
def test_the_programs_have_the_table_that_was_given_before_the_start(running: DeviceRig) -> None:
    """Else this whole suite would ask the data path beside them."""

    def through_the_tun() -> int:
        shown = running.wire.node.run("ip", "-s", "-j", "link", "show", "dev", running.wire.TUN)
        (link,) = json.loads(shown)
        return int(link["stats64"]["tx"]["packets"])

    before = through_the_tun()
    running.inject(packet())
    counters, _, to_peer = outcome(running)
    assert to_peer == [("a", one_hop_later(packet()))]
    assert counters["tun_packets"] == 1
    assert through_the_tun() == before


TAIL_BYTES = (*range(8), 500, 503, 1444)
"""Around every edge of summing by pieces."""


@on_a_real_wire
def test_a_datagram_whose_checksum_was_finished_arrives(running: DeviceRig) -> None:
    """No flag says that its checksum is right, so it is computed."""
    sent = [packet(AT_A, OURS, payload=bytes(range(256)) * 5 + bytes(n)) for n in range(8)]
    sent += [packet(AT_A, OURS, payload=bytes([7] * n)) for n in TAIL_BYTES]
    for data in sent:
        running.deliver_frame("a", data)
    running.step(lambda: len(running.collected().to_tun) == len(sent), "all arrive")
    assert running.to_tun == [one_hop_later(data) for data in sent]


@on_a_real_wire
def test_a_tag_that_has_a_priority_alone_is_no_vlans(running: DeviceRig) -> None:
    """VLAN 0, as some switches and adapters send it (IEEE 802.1Q, priority-tagged frames)."""
    sent = [packet(AT_A, OURS, payload=bytes(range(256)) * 5 + bytes(n)) for n in range(4)]
    for data in sent:
        running.deliver_frame("a", data, vlan=0)
        running.deliver_frame("a", data, vlan=0, checksum=0)
    running.step(lambda: len(running.collected().to_tun) == 2 * len(sent), "all arrive")
    assert running.to_tun == [one_hop_later(data) for data in sent for _ in range(2)]
    if isinstance(running.path, EbpfDatapath):
        assert running.path._slow.counters()["udp_packets"] == 0


NOT_FOR_US = {
    "another station's": {"station": "02:00:00:00:00:77"},
    "a VLAN's": {"vlan": 5},
    "a wrong checksum": {"checksum": 0x1234},
    "a wrong header checksum": {"header_checksum": 0x1234},
    "one that ends before its datagram": {"cut_bytes": 1},
    "one that ends before its datagram, without a checksum": {"cut_bytes": 1, "checksum": 0},
}


@on_a_real_wire
@pytest.mark.parametrize("spoilt", NOT_FOR_US.values(), ids=NOT_FOR_US.keys())
def test_a_frame_that_the_kernel_would_drop_is_dropped(
    running: DeviceRig, spoilt: dict[str, object]
) -> None:
    """By the kernel: it never reaches a data path in user space, and no counter has it."""
    data = packet(AT_A, OURS, payload=b"honest")
    for size in (0, 100, 1400):
        running.deliver_frame("a", packet(AT_A, OURS, payload=bytes(size)), **spoilt)
    running.deliver_frame("a", data)
    running.step(lambda: bool(running.collected().to_tun), "the honest one arrives")
    assert running.to_tun == [one_hop_later(data)]
    assert running.counters() == {"udp_packets": 1, "udp_bytes": len(data)}


# --- Random packets against the model


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    out=st.lists(packets() | st.binary(min_size=1, max_size=80), max_size=20),
    back=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "stranger"]),
            packets() | st.binary(max_size=80),
        ),
        max_size=20,
    ),
    accept_any=st.booleans(),
)
@pytest.mark.slow
def test_any_input_gives_the_models_output(
    stand: Stand,
    new_rig: Callable[[], Rig],
    out: list[bytes],
    back: list[tuple[str, bytes]],
    accept_any: bool,
) -> None:
    with new_rig() as rig:
        rig.start(stand.make, accept_any=accept_any)
        model = Model(rig.config, rig.rows())
        rig.inject(*out)
        for data in out:
            model.from_tun(data)
        for sender, data in back:
            rig.deliver(sender, data)
            model.from_udp(sender, data)
        counters, to_tun, to_peer = outcome(rig)
        assert rig.path.failure() is None
    assert counters == dict(model.counters)
    assert sorted(to_tun) == sorted(model.to_tun)
    assert sorted(to_peer) == sorted(model.to_peer)
