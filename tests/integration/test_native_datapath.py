"""The native data path among real descriptors: offloads, threads, life and death.

What goes in and out packet by packet is the contract suite's business, what the C does with bytes
that of `tests/unit/datapath/test_native_packets.py` and of the fuzzers.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.core.errors import DatapathError, KernelError
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import VNET_HEADER_BYTES
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.native import NativeDatapath, _native
from pyflannel.kernel.tun import open_tun, set_offload
from tests.contract.datapath_cases import AT_A, MTU, NETWORK, OURS, one_hop_later, packet
from tests.contract.datapath_rigs import DeviceRig, Namespace, PairRig, Rig, Wire, udp_socket
from tests.unit.datapath.test_native_packets import (
    TCP,
    UDP,
    Packet,
    segments_of,
    stream,
    super_packet,
)

TUN_F_CSUM, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x20, 0x40  # linux/if_tun.h

pytestmark = pytest.mark.guest

SO_NO_CHECK, UDP_GRO = 11, 104


@pytest.fixture
def pair() -> Iterator[PairRig]:
    """Socket pair and loopback, with virtio headers; the data path is not started yet."""
    with PairRig(vnet_hdr=True) as rig:
        yield rig


@pytest.fixture
def device() -> Iterator[DeviceRig]:
    """A started data path on a TUN of its own."""
    with contextlib.closing(Wire(vnet_hdr=True)) as wire, DeviceRig(wire) as rig:
        rig.start(NativeDatapath)
        yield rig


def start(rig: Rig, **options: object) -> NativeDatapath:
    """Starts a data path that takes the socket pair for a TUN with all offloads."""
    rig.start(partial(NativeDatapath, assume_offloads=True, **options))  # type: ignore[arg-type]
    path = rig.path
    assert isinstance(path, NativeDatapath)
    return path


def thread_seconds() -> float:
    """CPU time of the data path's threads in this process."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name, _, rest = (task / "stat").read_text().rpartition(")")
            if "(flannel-" in name:
                fields = rest.split()
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def native_threads() -> list[str]:
    """Names of the data path's threads in this process."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = (task / "comm").read_text().strip()
            if name.startswith("flannel-"):
                names.append(name)
    return sorted(names)


def hop(data: bytes) -> bytes:
    """TTL − 1 with a fresh checksum."""
    return one_hop_later(data)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("off", [(), ("gso",)], ids=["gso", "no gso"])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_super_packet_becomes_datagrams_of_one_packet_each(
    pair: PairRig, protocol: int, off: tuple[str, ...], threads: int
) -> None:
    """On the wire it cannot be told that there was an offload."""
    path = start(pair, off=off, threads=threads)
    whole = Packet(payload=bytes(range(256)) * 100, protocol=protocol)
    pair.pair.inject(super_packet(whole, 1400))
    expected = [hop(data) for data in segments_of(whole, 1400)]
    pair.step(lambda: len(pair.collected().to_peer) == len(expected), "all segments arrive")
    assert pair.to_peer == [("a", data) for data in expected]
    assert path.counters()["tun_packets"] == len(expected)
    assert path.counters()["tun_bytes"] == sum(map(len, expected))
    assert path.capabilities.offloads["gso"] == ("off (forced)" if off else "on")


def test_segments_longer_than_the_mtu_never_leave(pair: PairRig) -> None:
    start(pair)
    pair.pair.inject(super_packet(Packet(payload=bytes(6000)), 1433))
    pair.step(lambda: pair.path.counters()["tun_oversize"] == 5, "all five are counted")
    assert pair.collected().to_peer == []


def test_one_answer_for_a_super_packet_that_has_no_way(pair: PairRig) -> None:
    """It is counted as its segments, and the quote is the first of them."""
    start(pair)
    pair.path.replace_table(PeerTable())
    whole = Packet(payload=bytes(4000))
    pair.pair.inject(super_packet(whole, 1000))
    pair.step(lambda: pair.path.counters()["tun_no_route"] == 4, "counted")
    pair.step(lambda: bool(pair.collected().to_tun), "answered")
    (answer,) = pair.to_tun
    assert answer[20:22] == b"\x03\x00"
    assert answer[28:56] == segments_of(whole, 1000)[0][:28]
    assert pair.path.counters()["icmp_unreachable"] == 1


def taken(rig: PairRig) -> list[bytes]:
    """What was written to the TUN, virtio headers included."""
    return rig.pair.emitted()


@pytest.mark.parametrize("off", [(), ("gro",)], ids=["gro", "no gro"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_packets_of_a_flow_enter_the_tun_as_one(
    pair: PairRig, protocol: int, off: tuple[str, ...]
) -> None:
    fixed = [retarget(bytes(p)) for p in stream(*[1200] * 20, protocol=protocol)]
    # Before the start: on one CPU the reader may be woken, and be done, for each of them.
    pair.deliver("a", *fixed)
    path = start(pair, off=off)
    written: list[bytes] = []

    def complete() -> bool:
        written.extend(taken(pair))
        return path.counters()["udp_packets"] == len(fixed)

    pair.step(complete, "all are counted")
    written += taken(pair)
    assert len(written) < len(fixed)
    cut = [part for data in written for part in cut_again(data)]
    assert cut == [hop(data) for data in fixed]
    assert path.counters()["udp_bytes"] == sum(map(len, fixed))


def cut_again(data: bytes) -> list[bytes]:
    """The packets that a write to the TUN stands for."""
    return _native.segment(data) or [] if data[1] else [data[VNET_HEADER_BYTES:]]


def retarget(data: bytes) -> bytes:
    """A packet of `Packet` with source and destination swapped: every checksum stays right."""
    return data[:12] + data[16:20] + data[12:16] + data[20:]


def test_udp_segmentation_that_is_refused_is_withdrawn_without_loss(
    pair: PairRig, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket without checksums takes no UDP_SEGMENT: EINVAL, found out by the first train."""
    path = start(pair)
    whole = Packet(payload=bytes(14_000), protocol=UDP)
    with socket.socket(fileno=os.dup(pair.config.udp_fd)) as ours:
        ours.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    expected = [hop(data) for data in segments_of(whole, 1000)]
    for _ in range(3):
        pair.pair.inject(super_packet(whole, 1000))
    with caplog.at_level(logging.WARNING):
        pair.step(lambda: len(pair.collected().to_peer) == 42, "nothing is lost")
        for _ in range(3):
            path.counters()
    assert pair.to_peer == [("a", data) for data in expected * 3]
    assert path.capabilities.offloads["gso"] == "withdrawn (EINVAL)"
    assert [record.getMessage() for record in caplog.records] == ["offload withdrawn"]


@pytest.fixture(scope="module")
def granted() -> dict[str, str]:
    """All offloads, and what is to be said of them on this kernel: those of UDP came with 6.2."""
    with contextlib.closing(Wire(vnet_hdr=True)) as wire:
        try:
            set_offload(wire.tun_fd, TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6)
        except KernelError as error:
            code = errno.errorcode[error.errno]
            lacking = dict.fromkeys(("uso", "join_udp"), f"off (not supported: {code})")
        else:
            lacking = {}
    return dict.fromkeys(_native.OFFLOADS, "on") | lacking


@pytest.mark.root
@pytest.mark.slow
def test_a_real_tun_grants_every_offload_that_the_kernel_has(
    device: DeviceRig, granted: dict[str, str]
) -> None:
    assert dict(device.path.capabilities.offloads) == granted


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ("tso", {"tso4", "tso6", "tso_ecn"}),
        ("uso", {"uso"}),
        ("gso", {"gso"}),
        ("gro", {"gro"}),
        ("join", {"join_tcp", "join_udp"}),
        ("csum", {"csum", "tso4", "tso6", "tso_ecn", "uso"}),
    ],
)
def test_each_offload_can_be_forced_off_by_the_environment(
    off: str, gone: set[str], granted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel cannot write anyway is not said to be forced."""
    monkeypatch.setenv("PYFLANNEL_NATIVE_OFF", off)
    with contextlib.closing(Wire(vnet_hdr=True)) as wire, DeviceRig(wire) as rig:
        rig.start(NativeDatapath)
        forced = dict.fromkeys(gone, "off (forced)")
        if granted["join_udp"] != "on":
            forced.pop("join_udp", None)
        assert dict(rig.path.capabilities.offloads) == granted | forced


def test_without_virtio_headers_the_tun_has_no_offloads() -> None:
    with PairRig() as rig:
        rig.start(NativeDatapath)
        offloads = rig.path.capabilities.offloads
        assert offloads["tso4"] == "off (not supported: ENOPROTOOPT)"
        assert (offloads["gso"], offloads["gro"]) == ("on", "on")


def test_the_socket_is_given_back_as_it_was(pair: PairRig) -> None:
    """Another data path on the same socket would take a train for one broken datagram."""
    path = start(pair)
    with socket.socket(fileno=os.dup(pair.config.udp_fd)) as ours:
        assert ours.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 1
        path.stop()
        assert ours.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 0


@pytest.mark.root
@pytest.mark.slow
def test_a_deleted_device_is_reported_and_nothing_spins(device: DeviceRig) -> None:
    device.wire.node.ip("link del flannel0")
    device.step(lambda: device.path.failure() is not None, "the failure is noticed")
    assert device.path.failure() == "EBADFD: flannel0 is gone"
    before = thread_seconds()
    time.sleep(0.1)
    assert thread_seconds() - before < 0.03
    device.path.stop()


def test_the_sockets_buffers_stay_as_they_were_opened(pair: PairRig) -> None:
    """`kernel.udp.BUFFER_BYTES` decides for every data path."""
    with socket.socket(fileno=os.dup(pair.config.udp_fd)) as ours:
        sizes = [(socket.SOL_SOCKET, name) for name in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
        before = [ours.getsockopt(*size) for size in sizes]
        start(pair)
        assert [ours.getsockopt(*size) for size in sizes] == before


def test_a_stand_in_whose_other_end_is_closed_is_gone(pair: PairRig) -> None:
    path = start(pair)
    pair.pair.kernel.close()
    pair.step(lambda: path.failure() is not None, "the failure is noticed")
    assert path.failure() == "end of file: pair is gone"


@pytest.mark.root
@pytest.mark.slow
def test_a_device_that_is_down_costs_packets_until_it_is_up_again(device: DeviceRig) -> None:
    device.wire.node.ip("link set flannel0 down")
    device.deliver("a", packet(AT_A, OURS), packet(AT_A, OURS))
    device.settle()
    assert device.counters() == {"udp_write_error": 2}
    before = thread_seconds()
    time.sleep(0.1)
    assert thread_seconds() - before < 0.03
    device.wire.node.ip("link set flannel0 up")
    device.deliver("a", packet(AT_A, OURS))
    device.inject(packet())
    device.settle()
    assert device.to_tun == [one_hop_later(packet(AT_A, OURS))]
    assert device.to_peer == [("a", one_hop_later(packet()))]
    assert device.path.failure() is None


@pytest.mark.slow
def test_at_rest_it_costs_nothing(pair: PairRig) -> None:
    start(pair, threads=2)
    pair.pair.inject(super_packet(Packet(payload=bytes(100), protocol=UDP), 50))
    pair.step(lambda: len(pair.collected().to_peer) == 2, "it works")
    before = thread_seconds()
    time.sleep(0.3)
    assert thread_seconds() - before <= 0.01


@pytest.mark.slow
def test_a_hundred_lives_leave_nothing_behind() -> None:
    """Descriptors, threads and memory, counted over 100 starts and stops; each stop in 100 ms."""
    with PairRig(vnet_hdr=True) as rig:

        def live() -> float:
            path = NativeDatapath(rig.config, assume_offloads=True, threads=2)
            path.replace_table(rig.table())
            path.start()
            assert native_threads() == ["flannel-rx1", "flannel-tx0"]
            rig.pair.inject(super_packet(Packet(payload=bytes(3000)), 1000))
            deadline = time.monotonic() + 5
            while path.counters()["tun_packets"] < 3:
                assert time.monotonic() < deadline
            path.replace_table(PeerTable())
            begun = time.monotonic()
            path.stop()
            took = time.monotonic() - begun
            path.stop()
            return took

        def state() -> tuple[int, int, int]:
            gc.collect()
            statm = Path("/proc/self/statm").read_text().split()
            return (
                len(list(Path("/proc/self/fd").iterdir())),
                threading.active_count(),
                int(statm[1]),
            )

        for _ in range(10):
            live()
        fds, threads, pages = state()
        slowest = max(live() for _ in range(100))
        rig.collected()
        assert native_threads() == []
        assert state()[:2] == (fds, threads)
        assert (state()[2] - pages) * 4096 < 2 << 20
        assert slowest < 0.1


def test_an_instance_that_is_forgotten_ends_its_threads(pair: PairRig) -> None:
    """The extension's own safety net, if `stop` was not called."""
    path = NativeDatapath(pair.config)
    path.start()
    assert native_threads()
    del path
    gc.collect()
    assert native_threads() == []


def test_two_instances_in_one_process_do_not_meet() -> None:
    with PairRig() as one, PairRig() as two:
        one.start(NativeDatapath)
        two.start(NativeDatapath)
        one.path.replace_table(PeerTable())
        for rig in (one, two):
            rig.inject(packet())
            rig.settle()
        assert one.counters()["tun_no_route"] == 1
        assert two.to_peer == [("a", one_hop_later(packet()))]


def test_it_starts_once(pair: PairRig) -> None:
    path = start(pair)
    with pytest.raises(DatapathError, match="make a new one"):
        path.start()


@pytest.mark.slow
def test_tables_change_under_full_load_and_no_packet_takes_a_stale_way(pair: PairRig) -> None:
    """100,000 replacements while packets flow; after each of the last, the next packet obeys it."""
    path = start(pair, threads=2)
    to_a = pair.table()
    to_b = PeerTable([Peer(IPv4Network("10.5.2.0/24"), pair.addresses["b"])])
    data = super_packet(Packet(payload=bytes(20_000), protocol=UDP), 500)
    pair.pair.kernel.setblocking(True)
    with open_load(pair.pair.kernel, data):
        eventually(lambda: path.counters()["tun_packets"] > 1000, "the load is on")
        before = path.counters()["tun_packets"]
        for i in range(100_000):
            path.replace_table(to_b if i % 2 else to_a)
        assert path.counters()["tun_packets"] > before + 10_000
    pair.pair.kernel.setblocking(False)
    engine = path._engine
    assert engine is not None
    pair.step(lambda: engine.retired() == 0 or not path.counters(), "old tables are let go")
    for i in range(50):
        table, name = (to_b, "b") if i % 2 else (to_a, "a")
        pair.step(lambda: idle(path), "the load has drained")
        pair.collected()
        pair.to_peer.clear()
        path.replace_table(table)
        pair.inject(packet(identification=i))
        pair.step(lambda: bool(pair.collected().to_peer), "it arrives")
        assert pair.to_peer == [(name, one_hop_later(packet(identification=i)))]


@contextlib.contextmanager
def open_load(into: socket.socket, data: bytes) -> Iterator[None]:
    """A process that sends the same message over and over."""
    source = f"import socket; s = socket.socket(fileno={into.fileno()}); d = bytes.fromhex(input())"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{source}\nwhile True: s.send(d)"],
        pass_fds=[into.fileno()],
        stdin=subprocess.PIPE,
    )
    try:
        assert child.stdin is not None
        child.stdin.write(data.hex().encode() + b"\n")
        child.stdin.close()
        yield
    finally:
        child.kill()
        child.wait()


def idle(path: NativeDatapath) -> bool:
    """Whether nothing has moved for a moment."""
    before = path.counters()
    time.sleep(0.002)
    return path.counters() == before


@pytest.mark.root
@pytest.mark.slow
def test_every_queue_of_a_multi_queue_tun_is_served() -> None:
    node = Namespace()
    with contextlib.ExitStack() as stack:
        stack.callback(node.close)
        stack.enter_context(node.entered())
        tun = open_tun("flannel0", vnet_hdr=True, multi_queue=True)
        stack.callback(tun.close)
        node.ip("link set lo up", "link set flannel0 up", "route add 10.5.0.0/16 dev flannel0")
        node.ip("addr add 10.5.1.1/32 dev flannel0")
        ours = stack.enter_context(udp_socket(IPv4Address("127.0.0.1"), 8285))
        peer = stack.enter_context(udp_socket(IPv4Address("127.0.0.2"), 8285))
        path = NativeDatapath(
            DatapathConfig(
                tun_fd=tun.fd,
                udp_fd=ours.fileno(),
                tun_name="flannel0",
                tun_address=IPv4Address("10.5.1.0"),
                network=NETWORK,
                mtu=MTU,
                port=8285,
                vnet_hdr=True,
            ),
            threads=2,
            queues=3,
        )
        path.replace_table(PeerTable([Peer(IPv4Network("10.5.2.0/24"), IPv4Address("127.0.0.2"))]))
        path.start()
        stack.callback(path.stop)
        wanted = ["flannel-rx3", "flannel-tx0", "flannel-tx1", "flannel-tx2"]
        eventually(lambda: native_threads() == wanted, "a thread a queue")
        sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for i in range(64):
            sender.sendto(b"x", ("10.5.2.9", 9000 + i))
        eventually(lambda: path.counters()["tun_packets"] >= 64, "all queues are read")
        assert peer.recv(2048)[-1:] == b"x"


def eventually(condition: Callable[[], bool], what: str, seconds: float = 5) -> None:
    """Polls with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


class Nodes:
    """Two nodes with a TUN and a native data path each, and a wire between them.

    [ 10.5.1.1 ] flannel0 - under0 === under0 - flannel0 [ 10.5.2.1 ]
    """

    def __init__(self, stack: contextlib.ExitStack, **options: object) -> None:
        self.a, self.b = Namespace(), Namespace()
        self.paths: dict[str, NativeDatapath] = {}
        stack.callback(self.a.close)
        stack.callback(self.b.close)
        self.a.ip(f"link add under0 type veth peer name under0 netns {self.b.path}")
        for number, (name, node) in enumerate((("a", self.a), ("b", self.b)), 1):
            node.ip(
                f"addr add 192.0.2.{number}/24 dev under0", "link set lo up", "link set under0 up"
            )
            with node.entered():
                tun = open_tun("flannel0", vnet_hdr=True)
                stack.callback(tun.close)
                udp = stack.enter_context(udp_socket(IPv4Address(f"192.0.2.{number}"), 8285))
                node.ip(
                    f"addr add 10.5.{number}.1/32 dev flannel0",
                    f"link set flannel0 mtu {MTU} up",
                    f"route add 10.5.0.0/16 dev flannel0 src 10.5.{number}.1",
                )
                Path("/proc/sys/net/ipv4/conf/flannel0/accept_local").write_text("1")
                path = NativeDatapath(
                    DatapathConfig(
                        tun_fd=tun.fd,
                        udp_fd=udp.fileno(),
                        tun_name="flannel0",
                        tun_address=IPv4Address(f"10.5.{number}.0"),
                        network=NETWORK,
                        mtu=MTU,
                        port=8285,
                        vnet_hdr=True,
                    ),
                    **options,  # type: ignore[arg-type]
                )
                path.replace_table(
                    PeerTable(
                        [
                            Peer(
                                IPv4Network(f"10.5.{3 - number}.0/24"),
                                IPv4Address(f"192.0.2.{3 - number}"),
                            )
                        ]
                    )
                )
                path.start()
                stack.callback(path.stop)
                self.paths[name] = path


SEND = """
import hashlib, socket, sys
data = bytes(i * 7 % 251 for i in range(4099)) * 2000
s = socket.create_connection(("10.5.2.1", 5000))
s.sendall(data); s.shutdown(1)
assert s.recv(64) == hashlib.sha256(data).digest(), "damaged on the way"
"""
RECEIVE = """
import hashlib, socket
s = socket.create_server(("10.5.2.1", 5000)); print("ready", flush=True)
c, _ = s.accept(); h = hashlib.sha256()
while block := c.recv(65536): h.update(block)
c.sendall(h.digest()); c.close()
"""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("off", ["", "tso", "gso", "gro", "join", "csum,uso,gso,gro,join"])
def test_a_tcp_stream_survives_every_set_of_offloads(
    off: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 MB from node to node, compared by digest; super packets are used where they are allowed."""
    monkeypatch.setenv("PYFLANNEL_NATIVE_OFF", off)
    with contextlib.ExitStack() as stack:
        nodes = Nodes(stack, threads=threads)
        with nodes.b.entered():
            server = subprocess.Popen([sys.executable, "-c", RECEIVE], stdout=subprocess.PIPE)
        stack.enter_context(server)
        stack.callback(server.kill)
        assert server.stdout is not None
        server.stdout.readline()
        with nodes.a.entered():
            subprocess.run([sys.executable, "-c", SEND], check=True, timeout=30)
        server.wait(5)
        for path in nodes.paths.values():
            count = path.counters()
            assert path.failure() is None
            assert count["tun_malformed"] == count["udp_malformed"] == 0
            assert not [s for s in path.capabilities.offloads.values() if "withdrawn" in s]
        assert nodes.paths["b"].counters()["udp_packets"] > 8_000_000 / MTU


@pytest.mark.root
@pytest.mark.slow
def test_a_narrow_path_is_told_to_the_sender_and_trains_are_not_lost() -> None:
    """A super packet of segments too big for the path: EMSGSIZE for the run, then for each."""
    with contextlib.ExitStack() as stack:
        nodes = Nodes(stack)
        nodes.a.ip("route add 192.0.2.2/32 dev under0 mtu 1300")
        with nodes.a.entered():
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with nodes.b.entered():
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            receiver.bind(("10.5.2.1", 5000))
        receiver.settimeout(5)
        sender.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER = IP_PMTUDISC_DO
        sender.connect(("10.5.2.1", 5000))
        segment = [(socket.IPPROTO_UDP, 103, struct.pack("H", 1400))]  # UDP_SEGMENT
        sender.sendmsg([bytes(7000)], segment)
        path = nodes.paths["a"]
        eventually(lambda: path.counters()["tun_too_big"] == 5, "every one is counted")
        assert path.counters()["icmp_frag_needed"] == 5
        eventually(lambda: sender.getsockopt(socket.IPPROTO_IP, 14) == 1272, "IP_MTU is learned")
        with contextlib.suppress(OSError):
            sender.send(b"")  # takes the error that the ICMP answer left
        sender.sendmsg([bytes(7000)], [(socket.IPPROTO_UDP, 103, struct.pack("H", 1200))])
        assert len([receiver.recv(2000) for _ in range(6)]) == 6
        # Without DF the same packet is allowed to be cut on the way.
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)
        sender.send(bytes(1400))
        while len(receiver.recv(2000)) != 1400:
            pass
        assert path.capabilities.offloads["gso"] == "on"
