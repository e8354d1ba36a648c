"""Every data path with every other, on every underlay: does all traffic arrive, unchanged?

    python -m tests.interop.matrix [--seed N] [--cells N]

    [ pod 1 ]---[ docker0, node 1 ]===[ underlay ]===[ node 2, docker0 ]---[ pod 2 ]

A cell is two data paths face to face on one underlay, with pods behind devices that finish
checksums or do not; every kind of traffic goes through it, both ways. No daemons and no etcd: each
node is a thread of this process in a namespace, with the data path on a TUN and a socket as the udp
backend opens them. `plain` is a sender and receiver of its own that behaves like upstream's: a
read, a look-up, TTL - 1, a send. With PYFLANNEL_UPSTREAM, the path of upstream's daemon, that is a
kind as well, with an etcd of its own in its namespace. Where wireguard-go and wg are installed, the
pods have a tunnel of WireGuard's too.

What a cell proves: each payload arrives as it was sent; the capture in the receiving pod has no
wrong checksum; TTL, TOS and IP options are as they are to be; what one node counts as sent (packets
and bytes) the other counts as received, and nothing is counted as dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from pyflannel.core.lpm import Peer, RouteTable
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.select import IMPLEMENTATIONS
from pyflannel.kernel import netns
from pyflannel.kernel.tun import open_tun
from pyflannel.kernel.udp import IP_PMTUDISC_PROBE, IP_PMTUDISC_WANT, open_udp
from pyflannel.testing.etcdserver import EtcdServer
from tests.contract.datapath_cases import one_hop_later
from tests.contract.datapath_rigs import Namespace

NETWORK: Final = IPv4Network("10.240.0.0/16")
PORT: Final = 8285
DEADLINE_S: Final = 30.0
"""For each kind of traffic: long, because the machine may be busy."""
PLAIN: Final = "plain"
UPSTREAM: Final = "upstream"
KINDS: Final = ("ebpf", "native", "python", PLAIN, UPSTREAM)
TCP_BYTES: Final = 300_000
TTL_LEFT: Final = 60
"""64 less two routers and two ends of the tunnel."""
IP_TOS, IP_OPTIONS, IP_RECVOPTS, IP_RECVTOS = 1, 4, 6, 13
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
SO_NO_CHECK, UDP_SEGMENT = 11, 103
SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 263, 8, 4
TP_STATUS_CSUMNOTREADY: Final = 1 << 3
"""linux/if_packet.h: the checksum is left to a device, so a capture cannot show it."""
ETH_P_ALL: Final = 3
TUN_READ: Final = 65535


@dataclass(frozen=True, slots=True)
class Underlay:
    """How the nodes are connected."""

    name: str
    shape: str = "veth"
    off: tuple[str, ...] = ()
    """Features of the devices that are switched off, as `ethtool -K` calls them."""
    mtu: int = 1500


FEATURES: Final = ("tx", "tso", "gso", "gro", "tx-udp-segmentation", "sg")
UNDERLAYS: Final = (
    Underlay("veth"),
    *(Underlay(f"veth, {name} off", off=(name,)) for name in FEATURES),
    Underlay("veth, all off", off=FEATURES),
    Underlay("veth, MTU 1280", mtu=1280),
    Underlay("veth, MTU 9000", mtu=9000),
    Underlay("bridge", "bridge"),
    Underlay("macvlan", "macvlan"),
    Underlay("tun", "tun"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is tried together."""

    left: str
    right: str
    underlay: Underlay
    pods_finish: bool
    """Whether the pods' devices finish checksums (`tx off`)."""

    def __str__(self) -> str:
        pods = "pods that finish checksums" if self.pods_finish else "pods as they come"
        return f"{self.left} and {self.right}, {self.underlay.name}, {pods}"


class Trouble(AssertionError):
    """Something did not arrive, or not as it was sent."""


def kinds() -> tuple[str, ...]:
    """The data paths that work here."""
    return tuple(kind for kind in KINDS if _works(kind))


def _works(kind: str) -> bool:
    if kind == UPSTREAM:
        return bool(os.environ.get("PYFLANNEL_UPSTREAM"))
    return kind == PLAIN or not isinstance(_probe(kind), str)


def _probe(kind: str) -> object:
    return IMPLEMENTATIONS[kind].probe()


def all_cells() -> list[Cell]:
    """Each pair of data paths on each underlay; the pods' devices in turn."""
    every = itertools.combinations_with_replacement(kinds(), 2)
    pairs = [pair for pair in every if pair != (UPSTREAM, UPSTREAM)]  # nothing of ours in it
    return [
        Cell(left, right, underlay, bool(number % 2))
        for number, ((left, right), underlay) in enumerate(itertools.product(pairs, UNDERLAYS))
    ]


def pairwise(cells: list[Cell], rng: random.Random, most: int) -> list[Cell]:
    """Cells that have as many pairs of properties in them as so many can have, at random else."""

    def pairs(cell: Cell) -> set[tuple[object, object]]:
        values = (cell.left, cell.right, cell.underlay.name, f"pods {cell.pods_finish}")
        return set(itertools.combinations(values, 2))

    left, seen, chosen = list(cells), set[tuple[object, object]](), []
    rng.shuffle(left)
    while left and len(chosen) < most:
        best = max(left, key=lambda cell: len(pairs(cell) - seen))
        left.remove(best)
        seen |= pairs(best)
        chosen.append(best)
    return chosen


# The nodes.


class Plain:
    """Upstream's way in a few lines: one packet at a time, and nothing else."""

    def __init__(self, config: DatapathConfig) -> None:
        self._config = config
        self._table = RouteTable()
        self._count = dict.fromkeys(
            ("tun_packets", "tun_bytes", "udp_packets", "udp_bytes", "dropped"), 0
        )
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(fileno=os.dup(self._config.udp_fd))
        self._socket.setblocking(False)
        self._loop.add_reader(self._config.tun_fd, self._from_tun)
        self._loop.add_reader(self._socket.fileno(), self._from_udp)

    def replace_table(self, table: RouteTable) -> None:
        self._table = table

    def counters(self) -> dict[str, int]:
        return dict(self._count)

    def _from_tun(self) -> None:
        assert self._socket is not None
        data = os.read(self._config.tun_fd, TUN_READ)
        target = IPv4Address(data[16:20])
        for peer in self._table.peers:
            if target in peer.subnet and data[0] >> 4 == 4 and data[8] > 1:
                self._send(one_hop_later(data), (str(peer.address), self._config.port))
                self._count["tun_packets"] += 1
                self._count["tun_bytes"] += len(data)
                return
        self._count["dropped"] += 1

    def _send(self, data: bytes, target: tuple[str, int]) -> None:
        assert self._socket is not None
        try:
            self._socket.sendto(data, target)
        except OSError:
            # Longer than the path: upstream's socket fragments then.
            for how in (IP_PMTUDISC_DONT, IP_PMTUDISC_WANT):
                self._socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, how)
                if how == IP_PMTUDISC_DONT:
                    self._socket.sendto(data, target)

    def _from_udp(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(TUN_READ)
        os.write(self._config.tun_fd, one_hop_later(data))
        self._count["udp_packets"] += 1
        self._count["udp_bytes"] += len(data)

    def stop(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._config.tun_fd)
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None


class Node:
    """A data path in a thread that lives in the node's namespace."""

    def __init__(self, number: int, kind: str, space: Namespace, mtu: int) -> None:
        self.number, self.kind, self.space = number, kind, space
        self.path: Any = None
        self._mtu = mtu - 28
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name=f"node {number}: {kind}")

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(DEADLINE_S) or self._error is not None:
            self.stop()
            raise Trouble(f"{self.kind} does not start: {self._error!r}")

    def stop(self) -> None:
        if self._loop is not None and self._end is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._end.set)
        if self._thread.is_alive():
            self._thread.join(DEADLINE_S)

    def counters(self) -> dict[str, int]:
        return dict(self.path.counters())

    def _main(self) -> None:
        try:
            netns.enter(self.space.path)
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001  told to who waits
            self._error = error
        finally:
            self._ready.set()

    async def _run(self) -> None:
        me, other = self.number, 3 - self.number
        found = None if self.kind == PLAIN else _probe(self.kind)
        vnet_hdr = bool(found is not None and found.wants_vnet_hdr)  # type: ignore[attr-defined]
        how = IP_PMTUDISC_WANT if self.kind == PLAIN else IP_PMTUDISC_PROBE
        with ExitStack() as undo:
            tun = open_tun("flannel0", vnet_hdr=vnet_hdr)
            undo.callback(tun.close)
            address = IPv4Address(f"192.0.2.{me}")
            udp = undo.enter_context(open_udp(address, PORT, mtu_discover=how))
            self.space.ip(
                f"link set flannel0 mtu {self._mtu} up",
                f"addr add 10.240.{me}.0/32 dev flannel0",
                f"route add {NETWORK} dev flannel0",
            )
            for each in ("flannel0", "eth0"):
                self.space.run("sysctl", "-qw", f"net.ipv4.conf.{each}.forwarding=1")
            config = DatapathConfig(
                tun_fd=tun.fd,
                udp_fd=udp.fileno(),
                tun_name="flannel0",
                tun_address=IPv4Address(f"10.240.{me}.0"),
                network=NETWORK,
                mtu=self._mtu,
                port=PORT,
                underlay_name="eth0",
                underlay_address=address,
                vnet_hdr=vnet_hdr,
            )
            self.path = (Plain if self.kind == PLAIN else IMPLEMENTATIONS[self.kind].make)(config)
            peer = Peer(IPv4Network(f"10.240.{other}.0/24"), IPv4Address(f"192.0.2.{other}"))
            self.path.replace_table(RouteTable([peer]))
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            self.path.start()
            if self.kind != PLAIN:
                self.path.complete()
            undo.callback(self.path.stop)
            self._ready.set()
            await self._end.wait()


class UpstreamNode:
    """Upstream's daemon, which finds its own lease and the other node's in etcd."""

    def __init__(self, number: int, space: Namespace) -> None:
        self.number, self.kind, self.space = number, UPSTREAM, space
        self._undo = ExitStack()
        self._directory = Path(self._undo.enter_context(tempfile.TemporaryDirectory()))
        self._log = self._directory / "log"

    def start(self) -> None:
        with self.space.entered():
            etcd = self._undo.enter_context(EtcdServer(self._directory / "etcd"))
            wanted: dict[str, object] = {
                "config": {"Network": str(NETWORK), "Backend": {"Type": "udp", "Port": PORT}},
                "subnets/10.240.1.0-24": {"PublicIP": "192.0.2.1"},
                "subnets/10.240.2.0-24": {"PublicIP": "192.0.2.2"},
            }
            for key, value in wanted.items():
                etcd.put(f"/coreos.com/network/{key}".encode(), json.dumps(value).encode())
            subnet_file = self._directory / "subnet.env"
            with self._log.open("wb") as log:
                process = self._undo.enter_context(
                    subprocess.Popen(
                        [
                            os.environ["PYFLANNEL_UPSTREAM"],
                            f"-etcd-endpoints={etcd.endpoint}",
                            "-iface=eth0",
                            f"-subnet-file={subnet_file}",
                            "-iptables-forward-rules=false",
                        ],
                        stdout=log,
                        stderr=log,
                    )
                )
            self._undo.callback(process.kill)
        end = time.monotonic() + DEADLINE_S
        while not subnet_file.exists():
            if time.monotonic() > end or process.poll() is not None:
                said = self._log.read_text()[-2000:]
                self.stop()
                raise Trouble(f"upstream's daemon is not ready: {said}")
            time.sleep(0.05)
        if f"10.240.{self.number}.1/24" not in subnet_file.read_text():
            raise Trouble(f"upstream's daemon took another subnet: {subnet_file.read_text()}")
        for device in ("flannel0", "eth0"):
            self.space.run("sysctl", "-qw", f"net.ipv4.conf.{device}.forwarding=1")

    def stop(self) -> None:
        self._undo.close()

    def counters(self) -> None:
        """It has none."""


class Relay:
    """The wire between two TUN devices: no Ethernet header anywhere."""

    def __init__(self, fds: tuple[int, int]) -> None:
        self._other = {fds[0]: fds[1], fds[1]: fds[0]}
        self._waker, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._main, name="relay")
        self._thread.start()

    def _main(self) -> None:
        while True:
            ready, _, _ = select.select([*self._other, self._waker], [], [])
            if self._waker in ready:
                return
            for fd in ready:
                with contextlib.suppress(OSError):  # a device that is not up yet
                    os.write(self._other[fd], os.read(fd, TUN_READ))

    def stop(self) -> None:
        os.write(self._wake, b"x")
        self._thread.join()
        os.close(self._waker)
        os.close(self._wake)


@dataclass
class Pod:
    """Where traffic begins and ends, with an ear at its device."""

    space: Namespace
    address: str
    tap: socket.socket
    unfinished: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    def socket(self, kind: int, protocol: int = 0) -> socket.socket:
        with self.space.entered():
            return socket.socket(socket.AF_INET, kind, protocol)

    def listen(self) -> None:
        """Reads what the ear has heard and checks what can be checked."""
        while True:
            try:
                data, ancillary, _, sender = self.tap.recvmsg(65536 + 64, 64)
            except BlockingIOError:
                return
            if sender[2] == PACKET_OUTGOING or sender[1] != 0x0800:
                continue
            status = struct.unpack_from("=I", ancillary[0][2])[0]
            if status & TP_STATUS_CSUMNOTREADY:
                self.unfinished += 1
                continue
            self.checked += 1
            if reason := wrong_checksum(data[14:]):
                self.wrong.append(f"{reason}: {data[14:94].hex()}")


def _sum(data: bytes) -> int:
    words = array("H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def wrong_checksum(data: bytes) -> str:
    """Which checksum of an IPv4 packet is wrong; empty if none that can be told is."""
    header, total = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
    data = data[:total]
    if _sum(data[:header]) != 0xFFFF:
        return "IP header"
    body, protocol = data[header:], data[9]
    if int.from_bytes(data[6:8], "big") & 0x3FFF or protocol not in (1, 6, 17):
        return ""
    if protocol == 17 and body[6:8] == b"\0\0":
        return ""
    pseudo = b"" if protocol == 1 else data[12:20] + struct.pack("!HH", protocol, len(body))
    return "" if _sum(pseudo + body) == 0xFFFF else f"protocol {protocol}"


class Site:
    """The two nodes and their pods, for one cell."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        with ExitStack() as undo:
            spaces = [undo.enter_context(contextlib.closing(Namespace())) for _ in range(5)]
            self._switch, *nodes, pod1, pod2 = spaces
            self._wire(nodes, undo)
            self.pods = [
                self._attach(number, node, pod, undo)
                for number, (node, pod) in enumerate(zip(nodes, (pod1, pod2), strict=True), 1)
            ]
            self.nodes: list[Node | UpstreamNode] = []
            for number, (kind, space) in enumerate(
                zip((cell.left, cell.right), nodes, strict=True), 1
            ):
                node: Node | UpstreamNode = (
                    UpstreamNode(number, space)
                    if kind == UPSTREAM
                    else Node(number, kind, space, cell.underlay.mtu)
                )
                undo.callback(node.stop)
                node.start()
                self.nodes.append(node)
            if UPSTREAM in (cell.left, cell.right):
                self._until_they_talk()
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()

    def _until_they_talk(self) -> None:
        """Upstream's daemon learns of the other node when it is ready already."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                ping(56)(*self.pods)
            except Trouble:
                if time.monotonic() > end:
                    raise
            else:
                return

    def _wire(self, nodes: list[Namespace], undo: ExitStack) -> None:
        underlay, switch = self.cell.underlay, self._switch
        match underlay.shape:
            case "veth":
                nodes[0].ip(f"link add eth0 type veth peer name eth0 netns {nodes[1].path}")
            case "bridge":
                switch.ip("link add br0 type bridge", "link set br0 up")
                for number, node in enumerate(nodes, 1):
                    node.ip(f"link add eth0 type veth peer name p{number} netns {switch.path}")
                    switch.ip(f"link set p{number} master br0 up")
            case "macvlan":
                switch.ip("link add base type veth peer name far", "link set base up")
                switch.ip("link set far up")
                for number, node in enumerate(nodes, 1):
                    switch.ip(
                        f"link add m{number} link base type macvlan mode bridge",
                        f"link set m{number} netns {node.path} name eth0",
                    )
            case "tun":
                fds = []
                for node in nodes:
                    with node.entered():
                        tun = open_tun("eth0")
                    undo.callback(tun.close)
                    fds.append(tun.fd)
                undo.callback(Relay((fds[0], fds[1])).stop)
        for number, node in enumerate(nodes, 1):
            node.ip(
                f"link set eth0 mtu {underlay.mtu}",
                f"addr add 192.0.2.{number}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
            )
            for name in underlay.off:
                node.run("ethtool", "-K", "eth0", name, "off")
        for number, node in enumerate(nodes, 1):
            node.run("ping", "-n", "-c", "1", "-W", "10", f"192.0.2.{3 - number}")

    def _attach(self, number: int, node: Namespace, pod: Namespace, undo: ExitStack) -> Pod:
        mtu, address = self.cell.underlay.mtu - 28, f"10.240.{number}.2"
        node.ip(
            "link add docker0 type bridge",
            f"link add pod0 type veth peer name eth0 netns {pod.path}",
            f"link set pod0 mtu {mtu} master docker0 up",
            f"addr add 10.240.{number}.1/24 dev docker0",
            "link set docker0 up",
        )
        node.run("sysctl", "-qw", "net.ipv4.conf.docker0.forwarding=1")
        pod.ip(
            f"link set eth0 mtu {mtu} up",
            f"addr add {address}/24 dev eth0",
            "link set lo up",
            f"route add default via 10.240.{number}.1",
        )
        if self.cell.pods_finish:
            pod.run("ethtool", "-K", "eth0", "tx", "off")
        with pod.entered():
            tap = undo.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            )
        tap.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        tap.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        tap.bind(("eth0", ETH_P_ALL))
        tap.setblocking(False)
        return Pod(pod, address, tap)


# The traffic: each is called with a pod that sends and one that receives.


def _receive(source: socket.socket, count: int, ancillary: int = 0) -> list[Any]:
    """So many datagrams, or fewer if no more come before the deadline."""
    found: list[Any] = []
    end = time.monotonic() + DEADLINE_S
    source.setblocking(False)
    while len(found) < count and time.monotonic() < end:
        if not select.select([source], [], [], 0.5)[0]:
            continue
        found.append(source.recvmsg(65536, ancillary) if ancillary else source.recv(65536))
    return found


def _require(arrived: object, sent: object, what: str) -> None:
    if arrived != sent:
        raise Trouble(f"{what}: arrived {str(arrived)[:300]} instead of {str(sent)[:300]}")


def ping(size: int) -> Callable[[Pod, Pod], None]:
    """Echo there and back; what is longer than the MTU goes in fragments."""

    def go(source: Pod, target: Pod) -> None:
        with source.space.entered():
            done = subprocess.run(
                ["ping", "-n", "-c", "2", "-i", "0.1", "-W", "10", "-s", str(size), target.address],
                capture_output=True,
                text=True,
                check=False,
            )
        good = done.returncode == 0 and " 0% packet loss" in done.stdout
        if not good or "wrong data" in done.stdout or f"ttl={TTL_LEFT}" not in done.stdout:
            raise Trouble(done.stdout + done.stderr)

    return go


def _stream(source: Pod, target: Pod, address: str) -> None:
    rng = random.Random(7)
    there, back = rng.randbytes(TCP_BYTES), rng.randbytes(TCP_BYTES)
    with target.socket(socket.SOCK_STREAM) as listener, source.socket(socket.SOCK_STREAM) as near:
        listener.bind((address, 0))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        near.settimeout(DEADLINE_S)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            todo = {near: there, far: back}
            came: dict[socket.socket, bytearray] = {near: bytearray(), far: bytearray()}
            end = time.monotonic() + DEADLINE_S
            for each in (near, far):
                each.setblocking(False)
            while any(len(got) < TCP_BYTES for got in came.values()) and time.monotonic() < end:
                writers = [each for each, rest in todo.items() if rest]
                readable, writable, _ = select.select([near, far], writers, [], 0.5)
                for each in readable:
                    came[each] += each.recv(1 << 20)
                for each in writable:
                    todo[each] = todo[each][each.send(todo[each]) :]
            _require(len(came[far]), TCP_BYTES, "bytes over TCP there")
            _require(len(came[near]), TCP_BYTES, "bytes over TCP back")
            if bytes(came[far]) != there or bytes(came[near]) != back:
                raise Trouble("TCP carries other bytes")


def tcp(source: Pod, target: Pod) -> None:
    """A stream in each direction at once."""
    _stream(source, target, target.address)


def udp(*, checksum: bool) -> Callable[[Pod, Pod], None]:
    """Datagrams of many lengths, with a checksum or without."""

    def go(source: Pod, target: Pod) -> None:
        sent = [bytes([n & 255]) * n for n in (0, 1, 2, 17, 63, 64, 500, 1001, 1200, 3000)]
        with target.socket(socket.SOCK_DGRAM) as sink, source.socket(socket.SOCK_DGRAM) as out:
            sink.bind((target.address, 0))
            out.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, not checksum)
            # Fragments of an IP packet are carried like any other.
            out.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            for data in sent:
                out.sendto(data, sink.getsockname())
            _require(sorted(_receive(sink, len(sent))), sorted(sent), "datagrams")

    return go


def udp_gso(source: Pod, target: Pod) -> None:
    """Datagrams that the sender's kernel is handed as one."""
    data = random.Random(3).randbytes(24 * 1000 + 333)
    sent = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    with target.socket(socket.SOCK_DGRAM) as sink, source.socket(socket.SOCK_DGRAM) as out:
        sink.bind((target.address, 0))
        out.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        out.sendto(data, sink.getsockname())
        _require(_receive(sink, len(sent)), sent, "datagrams of UDP_SEGMENT")


def sctp(source: Pod, target: Pod) -> None:
    """Packets of a protocol whose checksum no device on the way may touch."""
    sent = [random.Random(n).randbytes(n) for n in (12, 28, 333, 1200)]
    with (
        target.socket(socket.SOCK_RAW, socket.IPPROTO_SCTP) as sink,
        source.socket(socket.SOCK_RAW, socket.IPPROTO_SCTP) as out,
    ):
        for data in sent:
            out.sendto(data, (target.address, 0))
        _require([data[20:] for data in _receive(sink, len(sent))], sent, "SCTP packets")


def marks(source: Pod, target: Pod) -> None:
    """DSCP and ECN of the packet inside stay, congestion as well."""
    wanted = [0x00, 0x01, 0x02, 0x03, 0xB8, 0xBB]
    with target.socket(socket.SOCK_DGRAM) as sink:
        sink.bind((target.address, 0))
        sink.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        for tos in wanted:
            with source.socket(socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                body = struct.pack("!HHHH", 9, sink.getsockname()[1], 9, 0) + bytes([tos])
                head = struct.pack(
                    "!BBHHHBBH4s4s",
                    *(0x45, tos, 20 + len(body), 1, 0, 64, 17, 0),
                    socket.inet_aton(source.address),
                    socket.inet_aton(target.address),
                )
                raw.sendto(head + body, (target.address, 0))
        found = [(data[0], ancillary[0][2][0]) for data, ancillary, _, _ in _receive(sink, 6, 64)]
        _require(found, [(tos, tos) for tos in wanted], "TOS")


def options(source: Pod, target: Pod) -> None:
    """IPv4 options, which the fast ways leave to the slow one."""
    with target.socket(socket.SOCK_DGRAM) as sink, source.socket(socket.SOCK_DGRAM) as out:
        sink.bind((target.address, 0))
        sink.setsockopt(socket.IPPROTO_IP, IP_RECVOPTS, 1)
        out.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, b"\x01\x01\x01\x00")
        out.sendto(b"with options", sink.getsockname())
        found = [
            (data, [(kind, bytes(value)) for _, kind, value in ancillary])
            for data, ancillary, _, _ in _receive(sink, 1, 64)
        ]
        _require(found, [(b"with options", [(IP_RECVOPTS, b"\x01\x01\x01\x00")])], "options")


def nested(source: Pod, target: Pod) -> None:
    """TCP in a VXLAN tunnel of the pods' own."""
    devices = []
    try:
        for number, (here, there) in enumerate(((source, target), (target, source)), 1):
            here.space.ip(
                f"link add vx0 type vxlan id 7 remote {there.address} dstport 4789 dev eth0",
                f"addr add 10.99.7.{number}/24 dev vx0",
                "link set vx0 up",
            )
            devices.append(here)
        _stream(source, target, "10.99.7.2")
    finally:
        for pod in devices:
            pod.space.ip("link del vx0")


def wireguard(source: Pod, target: Pod) -> None:
    """TCP in a WireGuard tunnel of the pods' own, by the implementation in user space."""
    names = [f"wg{os.getpid() % 10**6}x{number}" for number in (1, 2)]
    ends = list(zip(names, (source, target), strict=True))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as undo:
        keys = [_wg("genkey"), _wg("genkey")]
        for (name, pod), key in zip(ends, keys, strict=True):
            with pod.space.entered():
                # Its control socket is named like the device, and lies where no namespace is asked.
                process = undo.enter_context(
                    subprocess.Popen(
                        ["wireguard-go", "-f", name],
                        env={**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "silent"},
                    )
                )
            undo.callback(process.kill)
            control = Path(f"/var/run/wireguard/{name}.sock")
            undo.callback(control.unlink, missing_ok=True)
            end = time.monotonic() + DEADLINE_S
            while not control.exists():
                if time.monotonic() > end or process.poll() is not None:
                    raise Trouble("wireguard-go does not start")
                time.sleep(0.02)
            (Path(directory) / name).write_text(key)
        for number, (name, pod) in enumerate(ends, 1):
            far = ends[2 - number][1]
            pod.space.run(
                *("wg", "set", name, "private-key", str(Path(directory) / name)),
                *("listen-port", "51820", "peer", _wg("pubkey", keys[2 - number])),
                *("endpoint", f"{far.address}:51820", "allowed-ips", "10.99.8.0/24"),
            )
            pod.space.ip(f"addr add 10.99.8.{number}/24 dev {name}", f"link set {name} mtu 1300 up")
        _stream(source, target, "10.99.8.2")


def _wg(what: str, data: str = "") -> str:
    done = subprocess.run(["wg", what], input=data, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def multicast(source: Pod, target: Pod) -> None:
    """Stays in its subnet, as with upstream's daemon: no node routes it, and nothing is upset."""
    group = "239.255.7.7"
    with target.socket(socket.SOCK_DGRAM) as sink, source.socket(socket.SOCK_DGRAM) as out:
        sink.bind(("", 0))
        ours = socket.inet_aton(group) + socket.inet_aton(target.address)
        sink.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, ours)
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source.address))
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        for _ in range(3):
            out.sendto(b"to many", (group, sink.getsockname()[1]))
        out.sendto(b"to one", (target.address, sink.getsockname()[1]))
        _require(_receive(sink, 1), [b"to one"], "datagrams beside multicast")


TRAFFIC: Final[dict[str, Callable[[Pod, Pod], None]]] = {
    "ping small": ping(56),
    "ping large": ping(1200),
    "ping fragmented": ping(6000),
    "TCP": tcp,
    "UDP": udp(checksum=True),
    "UDP without checksum": udp(checksum=False),
    "UDP GSO": udp_gso,
    "SCTP": sctp,
    "ECN and DSCP": marks,
    "IPv4 options": options,
    "VXLAN inside": nested,
    "multicast": multicast,
} | ({"WireGuard inside": wireguard} if shutil.which("wireguard-go") and shutil.which("wg") else {})


def _balanced(site: Site) -> str:
    """What is wrong with the counters; empty if each has received what the other has sent."""
    left, right = (node.counters() for node in site.nodes)
    if left is None or right is None:
        return ""
    said = []
    for sender, receiver in ((left, right), (right, left)):
        for what in ("packets", "bytes"):
            sent, received = sender[f"tun_{what}"], receiver[f"udp_{what}"]
            if sent != received:
                said.append(f"{sent} {what} sent and {received} received")
    for node, count in zip(site.nodes, (left, right), strict=True):
        drops = {
            name: n
            for name, n in count.items()
            if n and name not in {"tun_packets", "tun_bytes", "udp_packets", "udp_bytes"}
        }
        if drops:
            said.append(f"{node.kind}: {drops}")
    return "; ".join(said)


def try_cell(cell: Cell) -> dict[str, str]:
    """All traffic through one cell, both ways: what is wrong with each; empty if nothing is."""
    site = Site(cell)
    found: dict[str, str] = {}
    try:
        for name, go in TRAFFIC.items():
            for source, target in (site.pods, site.pods[::-1]):
                try:
                    go(source, target)
                except (Trouble, OSError) as error:
                    found[name] = f"from {source.address}: {error}"
                for pod in site.pods:
                    pod.listen()
                    if pod.wrong:
                        found[name] = f"wrong checksum at {pod.address}: {pod.wrong[0]}"
                        pod.wrong.clear()
        end = time.monotonic() + DEADLINE_S
        while (reason := _balanced(site)) and not found and time.monotonic() < end:
            time.sleep(0.05)
        if reason:
            found["counters"] = reason
        if cell.pods_finish and not all(pod.checked for pod in site.pods):
            found["capture"] = "no checksum could be looked at"
    finally:
        site.close()
    return found


def run(cells: list[Cell], say: Callable[[str], None]) -> Iterator[tuple[Cell, dict[str, str]]]:
    """One cell after the other, each with a line."""
    for number, cell in enumerate(cells, 1):
        begun = time.monotonic()
        found = try_cell(cell)
        what = "; ".join(f"{name}: {why}" for name, why in found.items()) or "all arrives"
        say(f"{number}/{len(cells)} {cell}: {what} ({time.monotonic() - begun:.1f} s)")
        yield cell, found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="tries every data path with every other")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--cells", type=int, default=0, help="so many, chosen pairwise; 0 is all")
    parser.add_argument("--only", default="", help="cells with this in their name")
    options = parser.parse_args()
    cells = [cell for cell in all_cells() if options.only in str(cell)]
    if options.cells:
        print(f"seed {options.seed}", flush=True)
        cells = pairwise(cells, random.Random(options.seed), options.cells)

    def say(text: str) -> None:
        print(text, flush=True)

    failed = [str(cell) for cell, found in run(cells, say) if found]
    say(json.dumps({"cells": len(cells), "traffic": len(TRAFFIC), "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
