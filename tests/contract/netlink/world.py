"""What the contract of `pyflannel/kernel/base.py` is tested in.

An underlay bridge and vxlan devices over it, in memory or in a network namespace. Changes by
another program are made with the fake's own methods, or with `ip` and `bridge`.
"""

import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, Protocol

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.kernel.base import (
    Address,
    Delete,
    FdbEntry,
    Link,
    LinkSpec,
    Netlink,
    Route,
    Set,
    VxlanAttrs,
)
from pyflannel.testing.fakeroutes import Hop

MAC = "0e:00:00:00:00:02"
OTHER_MAC = "0e:00:00:00:00:03"


class Others(Protocol):
    """Changes of the tables by another program."""

    def append_route(self, route: Route) -> None: ...
    def add_multipath(self, dst: IPNetwork, hops: Sequence[Hop]) -> None: ...
    def learn(self, entry: FdbEntry) -> None: ...


class OtherPrograms:
    """`ip` and `bridge` in the namespace of the test."""

    def append_route(self, route: Route) -> None:
        where = ["dev", _device(route.oif)] if route.oif else []
        via = ["via", str(route.gateway)] if route.gateway else []
        _ip("route", "append", str(route.dst), *via, *where, "proto", "boot", scope=route)

    def add_multipath(self, dst: IPNetwork, hops: Sequence[Hop]) -> None:
        words: list[str] = []
        for gateway, oif in hops:
            words += ["nexthop", "via", str(gateway), "dev", _device(oif), "onlink"]
        _ip("route", "add", str(dst), *words)

    def learn(self, entry: FdbEntry) -> None:
        device = _device(entry.index)
        words = ["bridge", "fdb", "replace", entry.mac, "dev", device, "dst", str(entry.dst)]
        subprocess.run([*words, "dynamic"], check=True)


def _ip(*words: str, scope: Route | None = None) -> None:
    family = "-6" if any(":" in word and "/" in word for word in words) else "-4"
    tail = ["scope", "global"] if scope is not None and family == "-4" else []
    subprocess.run(["ip", family, *words, *tail], check=True)


def _device(index: int | None) -> str:
    """The name of a device in the namespace of the test."""
    assert index is not None
    return socket.if_indextoname(index)


@dataclass
class World:
    """An underlay with addresses, and vxlan devices over it, up and addressed like flannel's."""

    netlink: Netlink
    others: Others
    under: Link
    device: Link
    device6: Link

    async def done(self, *operations: Set | Delete) -> None:
        assert await self.netlink.apply(operations) == {}

    async def refusal(self, operation: Set | Delete) -> KernelError:
        failures = await self.netlink.apply([operation])
        assert list(failures) == [0]
        return failures[0]

    async def routes(self, dst: str) -> list[Route]:
        network = ip_network(dst)
        family = Family(network.version)
        return [route for route in await self.netlink.routes(family) if route.dst == network]

    def route(self, dst: str, gateway: str | None = None, **more: Any) -> Route:
        """A route of a backend: through the vxlan device of its family, gateways on the link."""
        network = ip_network(dst)
        device = self.device if network.version == 4 else self.device6
        fields: dict[str, Any] = {
            "oif": device.index,
            "gateway": ip_address(gateway) if gateway else None,
            "onlink": gateway is not None,
        }
        return Route(dst=network, **(fields | more))

    async def link(self, name: str = "flannel.1") -> Link:
        link = await self.netlink.link(name)
        assert link is not None
        return link


async def build(netlink: Netlink, others: Others) -> World:
    under = await netlink.create_link(
        LinkSpec(name="under0", kind="bridge", mac="02:00:00:00:00:01")
    )
    await netlink.set_link(under.index, up=True)
    device = await netlink.create_link(
        LinkSpec(
            name="flannel.1",
            kind="vxlan",
            mac="0e:00:00:00:00:01",
            txqlen=0,
            vxlan=VxlanAttrs(vni=1, link=under.index, local=IPv4Address("192.0.2.1")),
        )
    )
    device6 = await netlink.create_link(
        LinkSpec(
            name="flannel-v6.1",
            kind="vxlan",
            mac="0e:00:00:00:06:01",
            vxlan=VxlanAttrs(vni=1, link=under.index, local=IPv6Address("2001:db8::1")),
        )
    )
    await netlink.set_link(device.index, up=True)
    await netlink.set_link(device6.index, up=True)
    addresses = [
        address(under, "192.0.2.1/24"),
        address(under, "2001:db8::1/64"),
        address(device, "10.5.0.0/32"),
        address(device6, "fd00:5::/128"),
    ]
    assert await netlink.apply([Set(one) for one in addresses]) == {}
    return World(netlink, others, under, device, device6)


def address(link: Link, interface: str, **more: Any) -> Address:
    return Address(index=link.index, interface=ip_interface(interface), **more)


BOTH = pytest.mark.parametrize(
    ("dst", "one", "two"),
    [
        ("10.5.7.0/24", "10.5.7.0", "10.5.8.0"),
        ("fd00:5:7::/64", "fd00:5:7::", "fd00:5:8::"),
    ],
    ids=["v4", "v6"],
)
"""A destination and two gateways, in each family."""
