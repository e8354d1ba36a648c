"""Two or more nodes on one underlay, each a network namespace with a backend running in it.

    n1 eth0 192.0.2.1/24 ─┐
                          ├─ bridge in a namespace of its own
    n2 eth0 192.0.2.2/24 ─┘

A node runs its event loop in a thread that entered the namespace (sockets and /proc/sys/net belong
to the thread's namespace). Its "container" is the address 10.5.<n>.1 on its loopback device.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Self, TypeVar

from pyflannel.backend.base import Backend, BackendContext, Network
from pyflannel.backend.driver import Driver
from pyflannel.backend.kinds import KINDS, create
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAdded, LeaseAttrs, LeaseRemoved
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel import netns
from pyflannel.kernel.netlink import KernelNetlink

T = TypeVar("T")
_SERIAL = itertools.count()


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: {done.stderr or done.stdout}")
    return done.stdout


def eventually(claim: Callable[[], bool], within: float, what: str) -> float:
    """Waits until a claim holds; returns how long that took."""
    start = time.monotonic()
    while not claim():
        if time.monotonic() - start > within:
            raise AssertionError(f"{what}: not within {within} s")
        time.sleep(0.02)
    return time.monotonic() - start


class Underlay:
    """The bridge and the nodes on it."""

    def __init__(self) -> None:
        self.prefix = f"pfb{os.getpid()}x{next(_SERIAL)}"
        self.switch = f"{self.prefix}-sw"
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.shut_down()
        for name in (self.switch, *(node.ns for node in self.nodes)):
            run("ip", "netns", "del", name, check=False)

    def node(self, conf: NetworkConfig, state_dir: Path) -> Node:
        node = Node(self, len(self.nodes) + 1, conf, state_dir)
        self.nodes.append(node)
        node.set_up()
        return node

    def pair(self, conf: NetworkConfig, state_dir: Path) -> tuple[Node, Node]:
        """Two nodes that reach each other."""
        a, b = (self.node(conf, state_dir) for _ in range(2))
        for node in (a, b):
            node.start()
            node.drive()
        self.introduce()
        eventually(lambda: a.pings(b) and b.pings(a), 3, "first ping")
        return a, b

    def introduce(self) -> None:
        """Tells every node of all others."""
        for node in self.nodes:
            others = [LeaseAdded(peer.lease) for peer in self.nodes if peer is not node]
            node.submit(others)


class Node:
    """One node."""

    def __init__(self, underlay: Underlay, number: int, conf: NetworkConfig, state: Path) -> None:
        self._underlay = underlay
        self.number = number
        self.config = conf
        self.ns = f"{underlay.prefix}-n{number}"
        self.state_dir = str(state / f"node{number}")
        self.lease: Lease
        self.network: Network
        self.driver: Driver
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=self.ns)
        self._runner: asyncio.Future[Any] | None = None

    # the machine

    def set_up(self) -> None:
        run("ip", "netns", "add", self.ns)
        self.ip("link", "set", "lo", "up")
        if self.config.enable_ipv4:
            self.ip("addr", "add", f"10.5.{self.number}.1/32", "dev", "lo")
        if self.config.enable_ipv6:
            self.ip("addr", "add", f"fd00:5:0:{self.number}::1/128", "dev", "lo", "nodad")
        self.plug()
        self._thread.start()

    def plug(self) -> None:
        """Makes the external interface, always with the same MAC: peers' ARP caches are theirs."""
        port = f"p{self.number}"
        run("ip", "-n", self._underlay.switch, "link", "add", port, "type", "veth",
            "peer", "name", "eth0", "address", f"02:00:00:00:00:{self.number:02x}",
            "netns", self.ns)  # fmt: skip
        run("ip", "-n", self._underlay.switch, "link", "set", port, "master", "br0", "up")
        self.ip("link", "set", "eth0", "up")
        self.address()

    def unplug(self) -> None:
        self.ip("link", "del", "eth0")

    def address(self) -> None:
        self.ip("addr", "add", f"192.0.2.{self.number}/24", "dev", "eth0")
        six = f"2001:db8::{self.number}/64"
        self.ip("addr", "add", six, "dev", "eth0", "nodad", check=False)  # may have stayed

    def ip(self, *args: str, check: bool = True) -> str:
        return run("ip", "-n", self.ns, *args, check=check)

    def bridge(self, *args: str) -> str:
        return run("bridge", "-n", self.ns, *args)

    def pings(self, peer: Node, *, ipv6: bool = False, size: int = 56) -> bool:
        source, target = (
            (f"fd00:5:0:{n}::1" if ipv6 else f"10.5.{n}.1") for n in (self.number, peer.number)
        )
        argv = ["ip", "netns", "exec", self.ns, "ping", "-n", "-c", "1", "-W", "0.2"]
        argv += ["-s", str(size), "-I", source, target]
        return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode == 0

    # the daemon

    @property
    def external(self) -> ExternalInterface:
        address, address6 = (
            IPv4Address(f"192.0.2.{self.number}"),
            IPv6Address(f"2001:db8::{self.number}"),
        )
        index = int(self.ip("-o", "link", "show", "eth0").split(":")[0])
        v6 = self.config.enable_ipv6
        return ExternalInterface(
            name="eth0", index=index, mtu=1500, address=address,
            address6=address6 if v6 else None, public_ip=address,
            public_ipv6=address6 if v6 else None,
        )  # fmt: skip

    @property
    def key(self) -> SubnetKey:
        v4 = IPv4Network(f"10.5.{self.number}.0/24") if self.config.enable_ipv4 else None
        v6 = IPv6Network(f"fd00:5:0:{self.number}::/64") if self.config.enable_ipv6 else None
        return SubnetKey(v4, v6)

    def start(self, previous: LeaseAttrs | None = None) -> None:
        """Starts the backend as the daemon does, without its main loop."""
        self._call(self._start(previous))

    async def _start(self, previous: LeaseAttrs | None) -> None:
        self.netlink = KernelNetlink()
        context = BackendContext(
            config=self.config,
            is_own_device=KINDS.is_device,
            state_dir=self.state_dir,
            underlay=self.external,
            netlink=self.netlink,
        )
        backend: Backend = create(context)
        attrs = await backend.prepare(previous)
        self.lease = Lease(key=self.key, attrs=attrs)
        self.network = await backend.attach(self.lease)
        self.driver = Driver(self.network, self.netlink)

    def drive(self) -> None:
        """Starts the main loop."""
        self._runner = asyncio.run_coroutine_threadsafe(self.driver.run(), self._loop)

    def submit(self, events: list[LeaseAdded | LeaseRemoved], *, synced: bool = True) -> None:
        async def hand_over() -> None:
            self.driver.submit(events)
            if synced:
                self.driver.synced()

        self._call(hand_over())

    def kill(self) -> None:
        """Ends the daemon as `kill -9` does: nothing is taken down."""
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None
        if hasattr(self, "netlink"):
            self._call(self._settle())

    async def _settle(self) -> None:
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.005)
        await self.netlink.close()

    def shut_down(self) -> None:
        if self._thread.is_alive():
            try:
                self.kill()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs something in the node's loop."""
        return self._call(work)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def _serve(self) -> None:
        netns.enter(self.ns)
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
