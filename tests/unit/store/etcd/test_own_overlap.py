"""A subnet that the node is connected to otherwise: another one is taken, or the start ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import SubnetsOverlap
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import LeaseAttrs
from pyflannel.core.overlap import Judge, Obstacles, Surroundings
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PREFIX = "/coreos.com/network"
ATTRS = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"))
CONFIG = b'{"Network":"10.0.0.0/16","SubnetMin":"10.0.1.0","SubnetMax":"10.0.3.0"}'
DAY = 86400


class Node:
    """A lease store on a machine whose connected prefixes may change."""

    def __init__(self, state: str, previous: SubnetKey | None = None) -> None:
        self.etcd = FakeEtcd(FakeClock())
        self.etcd.put(codec.config_key(PREFIX), CONFIG)
        self.connected: set[str] = set()
        self.asked: list[tuple[object, ...]] = []
        self.store = EtcdLeaseStore(
            FakeStore(self.etcd),
            PREFIX,
            kinds=KINDS,
            clock=self.etcd.clock,
            record=LeaseRecord(state, PREFIX),
            previous=previous,
            obstacles=self.look,
            rng=random.Random(1),
        )

    async def look(self, networks, store, public) -> Obstacles:
        self.asked.append((networks, tuple(store), tuple(public)))
        prefixes = {ip_network(text): f"{text} of eth1" for text in self.connected}
        judge = Judge(Surroundings(connected=prefixes))
        return Obstacles(new=judge, kept=judge)

    async def acquire(self) -> str:
        await self.store.network_config()
        acquiring = asyncio.create_task(self.store.acquire(ATTRS))
        await self.etcd.clock.advance(3)
        return str(acquiring.result().key.v4)

    def put(self, third: int, *, lease: bool = True) -> bytes:
        """A lease of this node, or a reservation for it."""
        key = codec.lease_key(PREFIX, subnet(third))
        self.etcd.put(key, codec.encode_attrs(ATTRS), lease=self.etcd.grant(DAY) if lease else 0)
        return key


def subnet(third: int) -> SubnetKey:
    return SubnetKey(IPv4Network(f"10.0.{third}.0/24"))


@asynccontextmanager
async def kept(directory: Path, previous: int = 0) -> AsyncIterator[Node]:
    node = Node(str(directory), subnet(previous) if previous else None)
    try:
        yield node
    finally:
        await node.store.close()


@pytest.fixture
def node(tmp_path):
    return kept(tmp_path)


async def test_a_lease_that_is_in_the_way_is_given_back_for_another_one(tmp_path, caplog):
    async with kept(tmp_path) as node:
        key = node.put(2)
        node.connected = {"10.0.2.0/25"}
        assert await node.acquire() != "10.0.2.0/24"
        assert node.etcd.get(key) is None
        assert len(node.etcd.leases) == 1, "its etcd lease is revoked"
    (line,) = (r for r in caplog.records if "given back" in r.getMessage())
    assert "10.0.2.0/25 of eth1" in str(line.__dict__)


async def test_a_previous_subnet_that_is_in_the_way_is_not_taken_back(tmp_path):
    async with kept(tmp_path, previous=2) as node:
        node.connected = {"10.0.2.0/24"}
        assert await node.acquire() != "10.0.2.0/24"


async def test_a_reservation_that_is_in_the_way_stays_and_another_subnet_is_taken(node: Node):
    key = node.put(2, lease=False)
    before = node.etcd.get(key)
    node.connected = {"10.0.2.0/24"}
    assert await node.acquire() != "10.0.2.0/24"
    assert node.etcd.get(key) == before


async def test_the_start_ends_with_78_when_nothing_can_be_had_and_nothing_is_given_back(node: Node):
    key = node.put(2)
    node.connected = {"10.0.1.0/24", "10.0.2.0/24", "10.0.3.7/32"}
    with pytest.raises(SubnetsOverlap) as told:
        await node.acquire()
    assert told.value.exit_code == 78
    assert "10.0.1.0/24 of eth1" in str(told.value)
    assert node.etcd.get(key) is not None


async def test_the_node_is_looked_at_with_what_the_lease_is_for(node: Node):
    await node.acquire()
    (asked,) = node.asked
    assert asked == ((IPv4Network("10.0.0.0/16"),), (), (IPv4Address("192.0.2.1"),))


async def test_a_running_node_that_lost_its_lease_goes_on_until_something_can_be_had(node: Node):
    held = await node.acquire()
    moves: list[str] = []

    async def watch() -> None:
        async for _ in node.store.watch_leases():
            pass

    async def keep() -> None:
        async for lease in node.store.keep():
            moves.append(str(lease.key.v4))

    tasks = [asyncio.create_task(watch()), asyncio.create_task(keep())]
    await node.etcd.clock.advance(1)
    node.connected = {"10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"}
    node.etcd.delete(codec.lease_key(PREFIX, SubnetKey(IPv4Network(held))))
    await node.etcd.clock.advance(60)
    assert moves == []
    assert not any(task.done() for task in tasks)
    node.connected.discard("10.0.3.0/24")
    node.connected.add(held)
    await node.etcd.clock.advance(60)
    assert moves or held == "10.0.3.0/24"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
