"""A small overlay in values: one network, one node's machine, and leases of peers by number.

network 10.5.0.0/16, fd00:5::/48      node n: subnet 10.5.<n>.0/24, fd00:5:0:<n>::/64
underlay 192.0.2.0/24, 2001:db8::/64  node n: 192.0.2.<n>, 2001:db8::<n>
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any, TypeVar

from pyflannel.backend.base import BackendContext
from pyflannel.backend.kinds import KINDS
from pyflannel.core.config import NetworkConfig
from pyflannel.core.configparse import load_network_config
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Address, KernelObject, Link, Notification, Set, Topic
from pyflannel.testing.fakenetlink import FakeNetlink

T = TypeVar("T")
ME = 1
NETWORK = IPv4Network("10.5.0.0/16")
NETWORK6 = IPv6Network("fd00:5::/48")


def config(backend: dict[str, object], *, ipv4: bool = True, ipv6: bool = False) -> NetworkConfig:
    v4 = {"Network": str(NETWORK), "SubnetMax": "10.5.250.0"} if ipv4 else {}
    v6 = {"IPv6Network": str(NETWORK6)} if ipv6 else {}
    text = json.dumps({"EnableIPv4": ipv4, "EnableIPv6": ipv6, **v4, **v6, "Backend": backend})
    return load_network_config(text, KINDS)


def key(number: int, *, ipv4: bool = True, ipv6: bool = False) -> SubnetKey:
    return SubnetKey(
        IPv4Network(f"10.5.{number}.0/24") if ipv4 else None,
        IPv6Network(f"fd00:5:0:{number:x}::/64") if ipv6 else None,
    )


def mac(number: int) -> str:
    return f"0a:00:00:00:00:{number:02x}"


def lease(number: int, backend: str, *, ipv4: bool = True, ipv6: bool = False) -> Lease:
    data = data6 = None
    if backend == "vxlan":
        data = f'{{"VNI":1,"VtepMAC":"{mac(number)}"}}'
        data6 = f'{{"VNI":1,"VtepMAC":"0a:00:00:00:06:{number:02x}"}}'
    return Lease(
        key=key(number, ipv4=ipv4, ipv6=ipv6),
        attrs=LeaseAttrs(
            public_ip=IPv4Address(f"192.0.2.{number}") if ipv4 else None,
            public_ipv6=IPv6Address(f"2001:db8::{number:x}") if ipv6 else None,
            # udp and alloc publish no type.
            backend_type="" if backend in ("udp", "alloc") else backend,
            backend_data=data if ipv4 else None,
            backend_v6_data=data6 if ipv6 else None,
        ),
    )


class Machine:
    """A node's kernel, with eth0 on the underlay."""

    def __init__(self, *, mtu: int = 1500, kinds: tuple[str, ...] = ("vxlan", "ipip")) -> None:
        self.netlink = FakeNetlink(kinds=kinds)
        self.sysctls: dict[str, str] = {}
        self.eth0 = self.plug("eth0", mtu=mtu)

    def plug(self, name: str, *, mtu: int = 1500) -> Link:
        link = self.netlink.add_link(name, mtu=mtu)
        for interface in (IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8::1/64")):
            self.netlink.meddle(Set(Address(index=link.index, interface=interface)))
        return link

    def external(self, *, ipv6: bool = False) -> ExternalInterface:
        here, here6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1") if ipv6 else None
        return ExternalInterface(
            name="eth0",
            index=self.eth0.index,
            mtu=self.eth0.mtu,
            address=here,
            address6=here6,
            public_ip=here,
            public_ipv6=here6,
        )

    def context(self, conf: NetworkConfig, state_dir: object) -> BackendContext:
        return BackendContext(
            config=conf,
            is_own_device=KINDS.is_device,
            state_dir=str(state_dir),
            underlay=self.external(ipv6=conf.enable_ipv6),
            netlink=self.netlink,
            write_sysctl=self._write_sysctl,
        )

    def _write_sysctl(self, name: str, value: str) -> bool:
        self.sysctls[name] = value
        return True

    async def state(self) -> frozenset[KernelObject]:
        """All routes, neighbours, FDB entries and addresses there are."""
        found: set[KernelObject] = set(await self.netlink.addresses())
        for family in Family:
            found |= set(await self.netlink.routes(family))
            for link in await self.netlink.links():
                found |= set(await self.netlink.neighbours(link.index, family))
        for link in await self.netlink.links():
            found |= set(await self.netlink.fdb(link.index))
        return frozenset(found)


def overflow() -> Notification:
    return Notification(topic=Topic.OVERFLOW)


def moved(peer: Lease, address: str) -> Lease:
    """The same lease at another underlay address."""
    return replace(peer, attrs=replace(peer.attrs, public_ip=IPv4Address(address)))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)
