"""The plain Python data path among real descriptors: errors, sharing the loop, and two real nodes.

What goes in and out packet by packet is the contract suite's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from typing import Any

import pytest
import uvloop

from pyflannel.core.errors import DatapathError
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.python import BATCH, PythonDatapath
from pyflannel.kernel.tun import open_tun
from pyflannel.testing.tunpair import tun_pair
from tests.contract.datapath_cases import AT_A, AT_B, OURS, one_hop_later, packet
from tests.contract.datapath_rigs import DeviceRig, Namespace, PairRig, Rig, Wire, udp_socket

IP_TTL, IP_RECVERR = 2, 11
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoop:
    """An event loop of each kind; the stand closes it."""
    made: asyncio.AbstractEventLoop = request.param()
    return made


@pytest.fixture
def pair(loop: asyncio.AbstractEventLoop) -> Iterator[PairRig]:
    """A started data path without a kernel device."""
    with PairRig(loop=loop) as rig:
        rig.start(PythonDatapath)
        yield rig


@pytest.fixture
def device(loop: asyncio.AbstractEventLoop) -> Iterator[DeviceRig]:
    """A started data path on a TUN of its own."""
    with contextlib.closing(Wire()) as wire, DeviceRig(wire, loop=loop) as rig:
        rig.start(PythonDatapath)
        yield rig


def cpu_seconds_while_idle(rig: Rig, seconds: float = 0.2) -> float:
    """What the loop burns while nothing happens."""
    before = time.process_time()
    rig.loop.run_until_complete(asyncio.sleep(seconds))
    return time.process_time() - before


@pytest.mark.root
@pytest.mark.slow
def test_a_deleted_device_is_reported_once_and_nothing_spins(device: DeviceRig) -> None:
    """Upstream's proxy spins at 80 % of a core then."""
    device.wire.node.ip("link del flannel0")
    device.step(lambda: device.path.failure() is not None, "the failure is noticed")
    assert device.path.failure() in (
        "EBADFD: flannel0 is gone",
        "EBADF: flannel0 is gone",
    )
    assert cpu_seconds_while_idle(device) < 0.1
    device.path.stop()
    with pytest.raises(DatapathError, match="make a new one"):
        device.path.start()


@pytest.mark.root
@pytest.mark.slow
def test_a_device_that_is_down_refuses_packets_until_it_is_up_again(device: DeviceRig) -> None:
    device.wire.node.ip("link set flannel0 down")
    device.deliver("a", packet(AT_A, OURS), packet(AT_A, OURS))
    device.settle()
    assert device.counters() == {"udp_write_error": 2}
    assert device.path.failure() is None
    assert cpu_seconds_while_idle(device) < 0.1
    device.wire.node.ip("link set flannel0 up")
    device.deliver("a", packet(AT_A, OURS))
    device.inject(packet())
    device.settle()
    assert device.to_tun == [one_hop_later(packet(AT_A, OURS))]
    assert device.to_peer == [("a", one_hop_later(packet()))]


@pytest.mark.root
def test_an_underlay_that_is_down_costs_packets_and_nothing_else(device: DeviceRig) -> None:
    device.wire.node.ip("link set under0 down")
    device.inject(packet(), packet())
    device.settle()
    assert device.counters() == {"tun_send_error": 2}
    device.wire.node.ip("link set under0 up")
    device.inject(packet())
    device.settle()
    assert device.to_peer == [("a", one_hop_later(packet()))]


def test_icmp_errors_about_one_peer_cost_no_packet_of_another(pair: PairRig) -> None:
    """With IP_RECVERR a closed port at `b` makes the next call on the socket fail."""
    with socket.socket(fileno=socket.dup(pair.config.udp_fd)) as ours:
        ours.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    pair.peers.pop("b").close()
    out = [packet(destination=AT_A if i % 2 else AT_B, identification=i) for i in range(40)]
    back = [packet(AT_A, OURS, identification=i) for i in range(40)]
    for sent, received in zip(out, back, strict=True):
        pair.inject(sent)
        pair.deliver("a", received)
    pair.step(lambda: len(pair.collected().to_tun) == 40, "all of it comes back")
    pair.step(lambda: len(pair.collected().to_peer) == 20, "all for the living peer arrives")
    assert [data for _, data in pair.to_peer] == [one_hop_later(data) for data in out[1::2]]
    assert pair.to_tun == [one_hop_later(data) for data in back]
    counters = pair.path.counters()
    assert (counters["tun_packets"], counters["tun_send_error"]) == (40, 0)
    assert pair.path.failure() is None


@pytest.mark.slow
def test_a_queue_of_icmp_errors_does_not_keep_the_loop_busy(pair: PairRig) -> None:
    with socket.socket(fileno=socket.dup(pair.config.udp_fd)) as ours:
        ours.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    pair.peers.pop("b").close()
    pair.inject(*(packet(destination=AT_B) for _ in range(100)))
    pair.step(lambda: pair.path.counters()["tun_packets"] == 100, "all of it is sent")
    assert cpu_seconds_while_idle(pair) < 0.1
    pair.inject(packet())
    pair.step(lambda: len(pair.collected().to_peer) == 1, "a packet still passes")


def test_a_reader_that_does_not_read_costs_packets_and_nothing_else(
    loop: asyncio.AbstractEventLoop,
) -> None:
    with PairRig(loop=loop) as rig, tun_pair(4096) as small:
        rig.start(PythonDatapath, tun_fd=small.device.fileno())
        rig.deliver("a", *(packet(AT_A, OURS, identification=i) for i in range(100)))
        rig.step(
            lambda: sum(rig.path.counters()[n] for n in ("udp_packets", "udp_write_error")) == 100,
            "all accounted for",
        )
        counters = rig.path.counters()
        assert counters["udp_write_error"] > 0
        arrived = small.emitted()
        assert len(arrived) == counters["udp_packets"] > 0
        assert rig.path.failure() is None


def test_the_closed_end_of_a_pair_is_a_device_that_is_gone(pair: PairRig) -> None:
    pair.pair.kernel.close()
    pair.step(lambda: pair.path.failure() is not None, "the failure is noticed")
    assert pair.path.failure() == "end of file: pair is gone"


@pytest.mark.slow
def test_a_socket_that_was_shut_down_is_reported_and_nothing_spins(pair: PairRig) -> None:
    with (
        socket.socket(fileno=socket.dup(pair.config.udp_fd)) as ours,
        contextlib.suppress(OSError),
    ):
        ours.shutdown(socket.SHUT_RDWR)  # ENOTCONN, and done nevertheless
    pair.step(lambda: pair.path.failure() is not None, "the failure is noticed")
    assert "UDP socket" in str(pair.path.failure())
    assert cpu_seconds_while_idle(pair) < 0.1


class FaultySocket(socket.socket):
    """A socket whose calls fail as often as asked for."""

    def __init__(self, fd: int) -> None:
        super().__init__(fileno=socket.dup(fd))
        self.send_faults: list[int] = []
        self.receive_fault = 0
        self.attempts = 0

    def sendto(self, *arguments: Any) -> int:
        self.attempts += 1
        if self.send_faults:
            raise OSError(self.send_faults.pop(0), "asked for")
        return super().sendto(*arguments)

    def recvfrom_into(self, *arguments: Any) -> tuple[int, Any]:
        if self.receive_fault:
            raise OSError(self.receive_fault, "asked for")
        return super().recvfrom_into(*arguments)


@pytest.fixture
def faulty(pair: PairRig) -> Iterator[FaultySocket]:
    """The socket that the data path uses."""
    assert isinstance(pair.path, PythonDatapath)
    with FaultySocket(pair.config.udp_fd) as faulty:
        pair.path._udp.close()
        pair.path._socket = faulty
        yield faulty


@pytest.mark.parametrize("fault", [errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM])
def test_into_a_full_queue_a_packet_is_tried_once(
    pair: PairRig, faulty: FaultySocket, fault: int
) -> None:
    faulty.send_faults = [fault, fault]
    pair.inject(packet(), packet(), packet(payload=b"third"))
    pair.settle()
    assert pair.path.counters()["tun_send_error"] == 2
    assert pair.to_peer == [("a", one_hop_later(packet(payload=b"third")))]
    assert faulty.attempts == 3


def test_a_refused_packet_is_tried_twice_and_no_more(pair: PairRig, faulty: FaultySocket) -> None:
    faulty.send_faults = [errno.EPERM] * 3
    pair.inject(packet(), packet())
    pair.settle()
    assert pair.path.counters()["tun_send_error"] == 1
    assert len(pair.to_peer) == 1
    assert faulty.attempts == 4


def test_a_socket_that_gives_nothing_but_errors_ends_the_data_path(
    pair: PairRig, faulty: FaultySocket
) -> None:
    faulty.receive_fault = errno.EIO
    pair.deliver("a", packet(AT_A, OURS))
    pair.step(lambda: pair.path.failure() is not None, "the failure is noticed")
    assert pair.path.failure() == "EIO: the UDP socket is gone"


@pytest.mark.parametrize("direction", ["out", "back"])
def test_a_flood_is_moved_in_slices_with_turns_for_others_between(
    loop: asyncio.AbstractEventLoop, direction: str
) -> None:
    """On a clock that runs 1 ms a look, a slice of 2 ms is over after two batches."""
    ticks = iter(range(1_000_000))
    with PairRig(loop=loop) as rig:
        rig.start(partial(PythonDatapath, clock=lambda: next(ticks) / 1000))
        if direction == "out":
            rig.inject(*(packet() for _ in range(200)))
        else:
            rig.deliver("a", *(packet(AT_A, OURS) for _ in range(200)))
        counter = "tun_packets" if direction == "out" else "udp_packets"
        seen = [0]

        async def watch() -> None:
            while seen[-1] < 200:
                await asyncio.sleep(0)
                seen.append(rig.path.counters()[counter])

        rig.loop.run_until_complete(watch())
        moved = [after - before for before, after in pairwise(seen)]
        assert max(moved) <= 2 * BATCH
        assert sum(moved) == 200


def test_a_defect_ends_the_data_path_instead_of_repeating_without_end(
    pair: PairRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: PythonDatapath) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(PythonDatapath, "_drain_tun", broken)
    pair.inject(packet())
    pair.step(lambda: pair.path.failure() is not None, "the failure is noticed")
    assert pair.path.failure() == "defect in the python data path: ZeroDivisionError()"
    assert [record.getMessage() for record in caplog.records] == ["data path failed"]


# --- Two nodes with a pod each


NETWORK = IPv4Network("10.5.0.0/16")


class Node:
    """A node with `flannel0`, a data path, and a pod behind a veth; they end with it."""

    def __init__(self, number: int, undo: ExitStack) -> None:
        self.subnet = IPv4Network(f"10.5.{number}.0/24")
        self.tun_address, gateway, self.pod_address = (self.subnet[i] for i in range(3))
        self.public_ip = IPv4Address(f"192.0.2.{number}")
        self.host, self.pod = Namespace(), Namespace()
        undo.callback(self.host.close)
        undo.callback(self.pod.close)
        with self.host.entered():
            tun = open_tun("flannel0")
            undo.callback(tun.close)
        self.host.ip(
            f"addr add {self.tun_address}/32 dev flannel0",
            "link set flannel0 mtu 1472 up",
            f"route add {NETWORK} dev flannel0",
            f"link add pod0 type veth peer name eth0 netns {self.pod.path}",
            f"addr add {gateway}/24 dev pod0",
            "link set pod0 up",
        )
        self.host.run(
            "sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv4.conf.flannel0.accept_local=1"
        )
        self.pod.ip(
            "link set lo up",
            f"addr add {self.pod_address}/24 dev eth0",
            "link set eth0 mtu 1472 up",
            f"route add default via {gateway}",
        )
        self.tun_fd = tun.fd

    def start(self, peer: Node, loop: asyncio.AbstractEventLoop, undo: ExitStack) -> None:
        """Starts the data path; the underlay must be there."""
        with self.host.entered():
            sock = undo.enter_context(udp_socket(self.public_ip, 8285))
        path = PythonDatapath(
            DatapathConfig(
                tun_fd=self.tun_fd,
                udp_fd=sock.fileno(),
                tun_name="flannel0",
                tun_address=self.tun_address,
                network=NETWORK,
                mtu=1472,
                port=8285,
            ),
            loop,
        )
        path.replace_table(PeerTable([Peer(peer.subnet, peer.public_ip)]))
        path.start()
        undo.callback(path.stop)


@pytest.fixture
def nodes(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Node, Node]]:
    """Two nodes on one wire, both data paths on one loop."""
    with ExitStack() as undo:
        undo.callback(loop.close)
        one, two = Node(1, undo), Node(2, undo)
        one.host.ip(f"link add eth0 type veth peer name eth0 netns {two.host.path}")
        for node in (one, two):
            node.host.ip(f"addr add {node.public_ip}/24 dev eth0", "link set eth0 up")
        one.start(two, loop, undo)
        two.start(one, loop, undo)
        yield one, two


@pytest.mark.root
@pytest.mark.slow
def test_pods_on_two_nodes_reach_each_other(
    nodes: tuple[Node, Node], loop: asyncio.AbstractEventLoop
) -> None:
    """Four hops away, as with upstream; and the MTU of the TUN fits exactly."""
    one, two = nodes

    def ping(*options: str) -> subprocess.CompletedProcess[str]:
        command = ("nsenter", f"--net={one.pod.path}", "ping", *options, str(two.pod_address))
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)

    small = loop.run_until_complete(loop.run_in_executor(None, ping, "-c", "20", "-i", "0.01"))
    assert " 0% packet loss" in small.stdout
    assert small.stdout.count("ttl=60") == 20
    full = loop.run_until_complete(
        loop.run_in_executor(None, ping, "-c", "3", "-i", "0.01", "-M", "do", "-s", "1444")
    )
    assert " 0% packet loss" in full.stdout
    loop.run_until_complete(loop.shutdown_default_executor())


def told(
    node: Node, destination: IPv4Address, loop: asyncio.AbstractEventLoop, ttl: int = 64
) -> tuple[int, int, IPv4Address]:
    """Type, code and sender of the ICMP error that a pod gets for a UDP packet."""
    with node.pod.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_TTL, ttl)
        sock.sendto(b"anybody there?", (str(destination), 9))

        async def error() -> bytes:
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    _, ancillary, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
                    return ancillary[0][2]
                await asyncio.sleep(0.001)
            raise AssertionError(f"no answer about {destination} with TTL {ttl}")

        # struct sock_extended_err and the sockaddr_in of who answered (ip(7), IP_RECVERR).
        type_, code, answerer = struct.unpack_from("=5xBB13x4s", loop.run_until_complete(error()))
        return type_, code, IPv4Address(answerer)


@pytest.mark.root
@pytest.mark.slow
def test_a_pod_learns_that_there_is_no_such_subnet(
    nodes: tuple[Node, Node], loop: asyncio.AbstractEventLoop
) -> None:
    """Upstream's answer dies as a martian on the node; with accept_local ours arrives."""
    one, _ = nodes
    assert told(one, IPv4Address("10.5.99.9"), loop) == (3, 0, one.tun_address)


@pytest.mark.root
@pytest.mark.slow
def test_every_hop_of_the_way_shows_itself(
    nodes: tuple[Node, Node], loop: asyncio.AbstractEventLoop
) -> None:
    """Gateway, our TUN, the TUN of the other node, its kernel, and then the pod (port closed)."""
    one, two = nodes
    answers = [told(one, two.pod_address, loop, ttl) for ttl in range(1, 6)]
    assert answers == [
        (11, 0, one.subnet[1]),
        (11, 0, one.tun_address),
        (11, 0, two.tun_address),
        (11, 0, two.tun_address),
        (3, 3, two.pod_address),
    ]
