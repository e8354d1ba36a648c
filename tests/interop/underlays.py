"""The underlays of the matrix: how its two nodes are connected."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from pyflannel.kernel.tun import open_tun
from tests.contract.datapath_rigs import Namespace
from tests.interop.nodes import TUN_READ
from tests.support.guests import has_device


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
    Underlay("veth, MTU 65520", mtu=65520),  # the longest of IP over InfiniBand
    Underlay("bridge", "bridge"),
    Underlay("macvlan", "macvlan"),
    Underlay("tun", "tun"),
    # Where the kernel has them: in the guests of `make kernels`.
    *(Underlay(shape, shape) for shape in ("vlan", "bond") if has_device(shape)),
)


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


def wire(
    underlay: Underlay, nodes: Sequence[Namespace], switch: Namespace, undo: ExitStack
) -> None:
    """Connects two nodes by `eth0`, and returns when they reach each other.

    Args:
        underlay: how.
        nodes: their namespaces.
        switch: namespace for devices between them.
        undo: takes what must be closed at the end.
    """
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
        case "vlan":
            nodes[0].ip(f"link add base type veth peer name base netns {nodes[1].path}")
            for node in nodes:
                node.ip("link set base up", "link add link base name eth0 type vlan id 7")
        case "bond":
            for node in nodes:
                node.ip("link add eth0 type bond mode active-backup miimon 100")
            for port in ("port0", "port1"):
                nodes[0].ip(f"link add {port} type veth peer name {port} netns {nodes[1].path}")
                for node in nodes:
                    node.ip(f"link set {port} master eth0", f"link set {port} up")
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
