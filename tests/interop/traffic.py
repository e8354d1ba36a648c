"""The traffic of the matrix, and the pods between which it goes.

Each kind of traffic is a function of the pod that sends and the pod that receives. It raises
`Trouble` unless all of it arrives, unchanged. A capture at each pod's device checks the checksums.
"""

from __future__ import annotations

import errno
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pyflannel.kernel.sockopts import SO_RCVBUFFORCE
from tests.contract.datapath_rigs import Namespace
from tests.interop.nodes import DEADLINE_S, IP_MTU_DISCOVER, IP_PMTUDISC_DONT, Trouble
from tests.support.guests import has_device

TCP_BYTES: Final = 300_000
HEADERS: Final = 28
"""Bytes of the headers of IPv4 and of UDP or ICMP."""
LONGEST_DATAGRAM: Final = 65535 - HEADERS
AT_LIMITS: Final = (15_290, 15_291, 15_950, 15_994, 15_995, 16_030, 16_050, 16_400)
"""Bytes of datagrams at the limits of our programs, of the helpers that they call, and of pages."""
TTL_LEFT: Final = 60
"""64 less two routers and two ends of the tunnel."""
IP_TOS, IP_OPTIONS, IP_RECVOPTS, IP_RECVTOS = 1, 4, 6, 13
SO_NO_CHECK, UDP_SEGMENT = 11, 103
SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 263, 8, 4
TP_STATUS_CSUMNOTREADY: Final = 1 << 3
"""linux/if_packet.h: the checksum is left to a device, so a capture cannot show it."""
ETH_P_ALL: Final = 3


@dataclass
class Pod:
    """Where traffic begins and ends, with an ear at its device."""

    space: Namespace
    address: str
    tap: socket.socket
    mtu: int
    finishes: bool = False
    """Whether its device finishes checksums (`tx off`)."""
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


def attach(
    number: int, node: Namespace, pod: Namespace, mtu: int, undo: ExitStack, *, finishes: bool
) -> Pod:
    """Sets up bridge and pod of a node.

    Args:
        number: of the node.
        node: its namespace.
        pod: the namespace that becomes the pod.
        mtu: of the overlay.
        undo: takes what must be closed at the end.
        finishes: whether the pod's device finishes checksums (`tx off`).
    """
    address = f"10.240.{number}.2"
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
    if finishes:
        pod.run("ethtool", "-K", "eth0", "tx", "off")
    with pod.entered():
        tap = undo.enter_context(
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        )
    tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    tap.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    tap.bind(("eth0", ETH_P_ALL))
    tap.setblocking(False)
    return Pod(pod, address, tap, mtu, finishes)


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


def ping(size: int, *options: str) -> Callable[[Pod, Pod], None]:
    """Echo there and back; what is longer than the MTU goes in fragments."""
    ping = ["ping", "-n", "-c", "2", "-i", "0.1", "-W", "10", "-s", str(size), *options]

    def go(source: Pod, target: Pod) -> None:
        with source.space.entered():
            done = subprocess.run(
                [*ping, target.address], capture_output=True, text=True, check=False
            )
        good = done.returncode == 0 and " 0% packet loss" in done.stdout
        if not good or "wrong data" in done.stdout or f"ttl={TTL_LEFT}" not in done.stdout:
            raise Trouble(done.stdout + done.stderr)

    return go


def ping_of_the_mtu(source: Pod, target: Pod) -> None:
    """In one packet."""
    ping(source.mtu - HEADERS, "-M", "do")(source, target)


def ping_fragmented(source: Pod, target: Pod) -> None:
    ping(min(4 * source.mtu, LONGEST_DATAGRAM))(source, target)


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
        long = (*(n for n in AT_LIMITS if n < source.mtu), source.mtu - HEADERS)
        with target.socket(socket.SOCK_DGRAM) as sink, source.socket(socket.SOCK_DGRAM) as out:
            sink.bind((target.address, 0))
            out.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, not checksum)
            # Fragments of an IP packet are carried like any other.
            out.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            for data in sent:
                out.sendto(data, sink.getsockname())
            _require(sorted(_receive(sink, len(sent))), sorted(sent), "datagrams")
            # One by one: a socket on the way has room for few.
            for n in long:
                out.sendto(bytes([n & 255]) * n, sink.getsockname())
                _require(_receive(sink, 1), [bytes([n & 255]) * n], f"a datagram of {n} bytes")

    return go


def udp_gso(source: Pod, target: Pod) -> None:
    """Datagrams that the sender's kernel is handed as one."""
    data = random.Random(3).randbytes(24 * 1000 + 333)
    sent = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    with target.socket(socket.SOCK_DGRAM) as sink, source.socket(socket.SOCK_DGRAM) as out:
        sink.bind((target.address, 0))
        out.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        try:
            out.sendto(data, sink.getsockname())
        except OSError as error:
            # Before Linux 6.11 not out of a device without checksum offload (net/ipv4/udp.c).
            if source.finishes and error.errno == errno.EIO:
                return
            raise
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
    """DSCP and ECN of the packet inside stay, congestion as well.

    In any order: native sends equal packets together, and ebpf receives those another way than
    single ones.
    """
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
        _require(sorted(found), sorted((tos, tos) for tos in wanted), "TOS")


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


def tunnel(kind: str, network: str) -> Callable[[Pod, Pod], None]:
    """TCP in a tunnel of the pods' own that is IP in IP, or GRE: no port, no checksum."""

    def go(source: Pod, target: Pod) -> None:
        with ExitStack() as undo:
            for number, (here, there) in enumerate(((source, target), (target, source)), 1):
                here.space.ip(
                    f"link add in0 type {kind} local {here.address} remote {there.address}",
                    f"addr add {network}.{number}/24 dev in0",
                    "link set in0 up",
                )
                undo.callback(here.space.ip, "link del in0")
            _stream(source, target, f"{network}.2")

    return go


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
    "ping of the MTU": ping_of_the_mtu,
    "ping fragmented": ping_fragmented,
    "TCP": tcp,
    "UDP": udp(checksum=True),
    "UDP without checksum": udp(checksum=False),
    "UDP GSO": udp_gso,
    "SCTP": sctp,
    "ECN and DSCP": marks,
    "IPv4 options": options,
    "VXLAN inside": nested,
    "multicast": multicast,
}
# Where the programs, or the kernel's devices, are there.
if shutil.which("wireguard-go") and shutil.which("wg"):
    TRAFFIC["WireGuard inside"] = wireguard
if has_device("ipip"):
    TRAFFIC["IPIP inside"] = tunnel("ipip", "10.99.9")
if has_device("gre"):
    TRAFFIC["GRE inside"] = tunnel("gre", "10.99.10")
