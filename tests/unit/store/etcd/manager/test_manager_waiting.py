"""In a full network."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from pyflannel.core.errors import (
    StoreDenied,
)
from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.etcd import codec
from tests.unit.store.etcd.manager.node import CONFIG, OUR_ADDRESS, PREFIX, key, subnet_key, value


class TestWaiting:
    """Nodes without a lease in a full network, and the news that end their wait."""

    @staticmethod
    @asynccontextmanager
    async def waiting(etcd, make, count):
        ends = etcd.grant(300)
        etcd.put(key(1), value("192.0.2.101"), lease=ends)
        for third in (2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"))
        nodes = [make(f"node{n}") for n in range(count)]
        tasks = [
            asyncio.create_task(node.acquire(LeaseAttrs(public_ip=OUR_ADDRESS + n)))
            for n, node in enumerate(nodes)
        ]
        await etcd.clock.advance(200)
        assert not any(task.done() for task in tasks)
        yield nodes, tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def one_wins(etcd, tasks):
        await etcd.clock.advance(2)
        won = [task for task in tasks if task.done()]
        assert len(won) == 1
        await etcd.clock.advance(60)
        assert [task for task in tasks if task.done()] == won
        assert len(etcd.leases) == 1

    async def test_of_several_exactly_one_gets_a_subnet_that_is_freed_within_two_seconds(
        self, etcd, make
    ):
        async with self.waiting(etcd, make, 5) as (_, tasks):
            etcd.delete(key(2))
            etcd.revoke(etcd.get(key(1)).lease)
            etcd.put(key(1), value("192.0.2.101"))
            await self.one_wins(etcd, tasks)

    async def test_of_several_exactly_one_gets_a_subnet_whose_lease_ends(self, etcd, make):
        async with self.waiting(etcd, make, 5) as (_, tasks):
            await etcd.clock.advance(99.5)
            assert etcd.get(key(1)) is not None
            await etcd.clock.advance(0.5)
            await self.one_wins(etcd, tasks)

    async def test_a_hundred_do_not_come_all_at_once(self, etcd, make):
        """The network is widened: each starts over within two seconds, spread over one."""
        async with self.waiting(etcd, make, 100) as (_, tasks):
            etcd.put(codec.config_key(PREFIX), CONFIG.replace(b"10.0.3.0", b"10.0.250.0"))
            done = []
            for _ in range(20):
                await etcd.clock.advance(0.1)
                done.append(sum(task.done() for task in tasks))
            assert done[-1] == 100
            steps = [after - before for before, after in zip([0, *done], done, strict=False)]
            assert max(steps) <= 25

    async def test_waiting_costs_a_listing_twice_a_minute(self, etcd, make):
        """Once it listens: news end the wait, polling is for the day on which they do not come."""
        async with self.waiting(etcd, make, 1) as (nodes, _):
            await etcd.clock.advance(60)
            before = nodes[0].store.calls.count("range_prefix")
            await etcd.clock.advance(600)
            after = nodes[0].store.calls.count("range_prefix")
            assert after - before <= 45

    async def test_where_watching_is_not_allowed_it_looks_again_all_the_same(self, etcd, make):
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"))
        node = make()
        node.store.refuse(StoreDenied("no watches"), "watch_prefix")
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(300)
        etcd.delete(key(2))
        await etcd.clock.advance(30)
        assert acquiring.result().key == subnet_key(2)

    async def test_nothing_is_left_behind_by_a_wait_that_is_broken_off(self, etcd, make):
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"))
        acquiring = asyncio.create_task(make().acquire())
        await etcd.clock.advance(60)
        assert etcd.watches == 2
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=True)
        assert etcd.watches == 0
        assert etcd.leases == {}
