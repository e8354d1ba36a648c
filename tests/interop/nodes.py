"""The nodes of the matrix: each runs one data path between its TUN and its socket.

`Node` runs ours, and `Plain`, in a thread that has entered the node's namespace. `UpstreamNode`
runs upstream's daemon, with an etcd of its own in the namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from pyflannel.core.lpm import Peer, PeerTable
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
"""For a node to be ready, and for each kind of traffic: long, because the machine may be busy."""
PLAIN: Final = "plain"
UPSTREAM: Final = "upstream"
KINDS: Final = ("ebpf", "native", "python", PLAIN, UPSTREAM)
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
TUN_READ: Final = 65535


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


class Plain:
    """Upstream's way in a few lines: one packet at a time, and nothing else."""

    def __init__(self, config: DatapathConfig) -> None:
        self._config = config
        self._table = PeerTable()
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

    def replace_table(self, table: PeerTable) -> None:
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
        except BaseException as error:  # noqa: BLE001  `start` raises it
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
            for each in ("flannel0", "eth0", "lo"):
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
            self.path.replace_table(PeerTable([peer]))
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
