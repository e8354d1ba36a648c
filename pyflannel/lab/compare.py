"""Two other ways for a lab's packets: kernel vxlan and plain routes, between two of its nodes.

Same pods, same underlay, same traffic, one after the other. The ways are made by hand beside the
daemons' own objects: a route to the other pod's subnet is more specific than the overlay's, so the
packets take it, and return to the overlay when it is deleted. The result is a cost in CPU on this
machine, which has both ends and the path between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from typing import Final

from pyflannel.lab import bench
from pyflannel.lab.errors import LabError
from pyflannel.lab.nodes import Node
from pyflannel.records import dataclass

_DEVICE: Final = "lab-vxlan"
"""Not one of flannel's names, so that no daemon takes it for its own."""
_VNI: Final = 77
_PORT: Final = 4789
"""IANA's; flannel's vxlan has the kernel's 8472."""
_LINK: Final = ("203.0.113.1", "203.0.113.2")
"""RFC 5737, for documentation: no network of a lab."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Bulk TCP by one way."""

    way: str
    gbit_per_s: float | None
    """`None` if this machine cannot make that way."""

    def __str__(self) -> str:
        """As a part of a line."""
        speed = "none here" if self.gbit_per_s is None else f"{self.gbit_per_s:.2f}"
        return f"{self.way} {speed}"


def others(one: Node, other: Node, *, seconds: float) -> list[Rate]:
    """Bulk TCP between their pods by kernel vxlan, then by plain routes."""
    rates = []
    for way, made in (("kernel vxlan", kernel_vxlan), ("plain routing", plain_routes)):
        try:
            with made(one, other):
                rates.append(Rate(way, bench.tcp(one, other, seconds=seconds).gbit_per_s))
        except LabError:
            rates.append(Rate(way, None))
    return rates


@contextmanager
def plain_routes(one: Node, other: Node) -> Iterator[None]:
    """Both pods' subnets by the nodes' own addresses, without a tunnel."""
    with _routes(one, other, other.address, "eth0"), _routes(other, one, one.address, "eth0"):
        yield


@contextmanager
def kernel_vxlan(one: Node, other: Node) -> Iterator[None]:
    """A vxlan device of the kernel's on each, and the subnets behind it."""
    here, there = _LINK
    with (
        _vxlan(one, other, here),
        _vxlan(other, one, there),
        _routes(one, other, there, _DEVICE),
        _routes(other, one, here, _DEVICE),
    ):
        yield


@contextmanager
def _routes(node: Node, peer: Node, gateway: str, device: str) -> Iterator[None]:
    route = [_subnet(peer), "via", gateway, "dev", device]
    node.exec(["ip", "route", "add", *route, "proto", "static"])
    try:
        yield
    finally:
        node.exec(["ip", "route", "del", *route], check=False)


@contextmanager
def _vxlan(node: Node, peer: Node, address: str) -> Iterator[None]:
    # The lower device gives it the right MTU. Without one its packets would be fragmented.
    ends = ["dev", "eth0", "local", node.address, "remote", peer.address, "dstport", str(_PORT)]
    node.exec(["ip", "link", "add", _DEVICE, "type", "vxlan", "id", str(_VNI), *ends])
    try:
        node.exec(["ip", "address", "add", f"{address}/30", "dev", _DEVICE])
        node.exec(["ip", "link", "set", _DEVICE, "up"])
        yield
    finally:
        node.exec(["ip", "link", "del", _DEVICE], check=False)


def _subnet(node: Node) -> str:
    """As a route has it: `10.0.7.0/24`."""
    return str(ip_interface(node.subnet_env()["FLANNEL_SUBNET"]).network)
