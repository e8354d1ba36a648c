"""A manager over a fake etcd, and the keys and values that its tests are about."""

from __future__ import annotations

import asyncio
import random
from ipaddress import IPv4Address, IPv4Network

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeclock import settle
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PREFIX = "/coreos.com/network"
CONFIG = (
    b'{"Network":"10.0.0.0/16","SubnetLen":24,"SubnetMin":"10.0.1.0","SubnetMax":"10.0.3.0",'
    b'"Backend":{"Type":"udp"}}'
)
DUAL_STACK = b'{"Network":"10.0.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}'
OUR_ADDRESS = IPv4Address("192.0.2.1")
ATTRS = LeaseAttrs(public_ip=OUR_ADDRESS)
DAY = 86400


def subnet_key(third: int) -> SubnetKey:
    return SubnetKey(IPv4Network(f"10.0.{third}.0/24"))


def key(third: int) -> bytes:
    return codec.lease_key(PREFIX, subnet_key(third))


def value(address: str) -> bytes:
    return codec.encode_attrs(LeaseAttrs(public_ip=IPv4Address(address)))


class Node:
    """A manager with everything around it, and what it has said."""

    def __init__(
        self, etcd: FakeEtcd, state: str, previous: SubnetKey | None = None, ttl: int = 0
    ) -> None:
        self.etcd = etcd
        self.store = FakeStore(etcd)
        self.reports: list[str] = []
        self.updates: list[LeaseUpdate] = []
        self.moves: list[Lease] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.manager = EtcdLeaseStore(
            self.store,
            PREFIX,
            kinds=KINDS,
            clock=etcd.clock,
            record=LeaseRecord(state, PREFIX),
            previous=previous,
            lease_ttl_s=ttl,
            rng=random.Random(state),
            tell=self.reports.append,
        )

    async def acquire(self, attrs: LeaseAttrs = ATTRS) -> Lease:
        await self.manager.network_config()
        return await self.manager.acquire(attrs)

    async def start(self, attrs: LeaseAttrs = ATTRS) -> Lease:
        lease = await self.acquire(attrs)

        async def watch() -> None:
            async for update in self.manager.watch_leases():
                self.updates.append(update)

        async def keep() -> None:
            async for moved in self.manager.keep():
                self.moves.append(moved)

        self.tasks = [asyncio.create_task(watch()), asyncio.create_task(keep())]
        await settle()
        return lease

    @property
    def lease(self) -> Lease:
        assert self.manager.lease is not None
        return self.manager.lease

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.store.close()
