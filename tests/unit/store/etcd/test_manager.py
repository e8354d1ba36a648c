"""This node's lease over a fake etcd: won in upstream's order, kept, lost, and won again."""

from __future__ import annotations

import asyncio
import logging
import random
import shlex
import shutil
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core import allocation
from pyflannel.core.errors import (
    NetworkConfigChanged,
    StoreConflict,
    StoreDenied,
    StoreUnavailable,
)
from pyflannel.core.holding import CHECK_S
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate, Snapshot
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import GIVEN_BACK_S, EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeclock import FakeClock, settle
from pyflannel.testing.fakestore import FakeEtcd, FakeStore

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


@pytest.fixture
def etcd():
    """One that holds the config."""
    etcd = FakeEtcd(FakeClock())
    etcd.put(codec.config_key(PREFIX), CONFIG)
    return etcd


@pytest.fixture
@asynccontextmanager
async def make(etcd, tmp_path):
    """Makes nodes of this etcd; they are stopped at the end."""
    nodes: list[Node] = []

    def node(state: str = "a", previous: SubnetKey | None = None, ttl: int = 0) -> Node:
        nodes.append(Node(etcd, str(tmp_path / state), previous, ttl))
        return nodes[-1]

    try:
        yield node
    finally:
        for node_made in nodes:
            await node_made.stop()


class TestConfig:
    async def test_it_waits_for_etcd_and_for_the_key_and_says_which(self, etcd, make):
        """Nothing but an answer ends the wait; each state is reported once, by name."""
        etcd.delete(codec.config_key(PREFIX))
        node = make()
        node.store.down()
        waiting = asyncio.create_task(node.manager.network_config())
        await etcd.clock.advance(300)
        node.store.up()
        await etcd.clock.advance(300)
        assert not waiting.done()
        etcd.put(codec.config_key(PREFIX), CONFIG)
        await etcd.clock.advance(2)
        assert (await waiting).network == IPv4Network("10.0.0.0/16")
        assert len(node.reports) == 3
        assert "waiting for etcd" in node.reports[0]
        assert f"{PREFIX}/config" in node.reports[1]
        assert node.reports[2] == ""

    async def test_a_bad_config_is_waited_out(self, etcd, make):
        """Like upstream's, a wrong config does not end the daemon."""
        etcd.put(codec.config_key(PREFIX), b'{"Netwrok":"10.0.0.0/16"}')
        node = make()
        waiting = asyncio.create_task(node.manager.network_config())
        await etcd.clock.advance(10)
        assert not waiting.done()
        etcd.put(codec.config_key(PREFIX), CONFIG)
        await etcd.clock.advance(2)
        assert waiting.done()

    async def test_being_refused_ends_the_wait(self, etcd, make):
        """A wrong password does not get right by waiting."""
        node = make()
        node.store.fail_next("get", StoreDenied("wrong password"))
        with pytest.raises(StoreDenied):
            await node.manager.network_config()

    async def test_a_change_of_the_config_is_told(self, etcd, make):
        """Writes and the deletion of the key are yielded, other keys are not."""
        node = make()
        await node.manager.network_config()
        seen: list[bytes | None] = []

        async def watch() -> None:
            async for raw in node.manager.watch_config():
                seen.append(raw)

        task = asyncio.create_task(watch())
        await settle()
        etcd.put(codec.config_key(PREFIX) + b"-old", b"x")
        etcd.put(codec.config_key(PREFIX), b"garbage")
        etcd.delete(codec.config_key(PREFIX))
        await settle()
        assert seen == [b"garbage", None]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestWinning:
    async def test_a_free_subnet_is_created_with_a_lease_of_a_day(self, etcd, make):
        """Upstream's bytes, upstream's TTL, one etcd lease."""
        lease = await make().acquire()
        (kv,) = etcd.below(codec.subnets_prefix(PREFIX))
        assert kv.value == b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
        assert kv.key == codec.lease_key(PREFIX, lease.key)
        assert [status.granted_ttl for status in etcd.leases.values()] == [DAY]
        assert lease.expires == etcd.clock.time() + DAY

    async def test_the_lease_held_for_our_public_ip_comes_first(self, etcd, make):
        """Even if `subnet.env` names another subnet that is free."""
        etcd.put(key(2), value("192.0.2.1"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(3))
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(2)
        assert acquiring.result().key == subnet_key(2)

    async def test_the_previous_subnet_is_taken_if_it_is_free(self, etcd, make):
        assert (await make(previous=subnet_key(3)).acquire()).key == subnet_key(3)

    async def test_a_previous_subnet_of_somebody_else_is_left_to_him(self, etcd, make):
        etcd.put(key(3), value("192.0.2.9"), lease=etcd.grant(DAY))
        lease = await make(previous=subnet_key(3)).acquire()
        assert lease.key != subnet_key(3)
        assert etcd.get(key(3)).value == value("192.0.2.9")

    async def test_each_lost_race_widens_the_choice(self, etcd, make, monkeypatch):
        seen: list[int] = []
        choose = allocation.choose

        def noting(config, leases, rng, obstacles, races_lost):
            seen.append(races_lost)
            return choose(config, leases, rng, obstacles, races_lost)

        monkeypatch.setattr(allocation, "choose", noting)

        node = make()
        for _ in range(3):
            node.store.fail_next("put", StoreConflict("another node was faster"))
        starting = asyncio.create_task(node.acquire())
        await etcd.clock.advance(20)
        await starting
        assert seen == [0, 1, 2, 3]

    async def test_a_lost_race_is_run_again(self, etcd, make):
        """The faster one keeps its subnet; no etcd lease is wasted on the way."""
        node = make(previous=subnet_key(3))
        etcd_lease = etcd.grant(DAY)
        node.store.before_next(
            "put", lambda: etcd.put(key(3), value("192.0.2.9"), lease=etcd_lease)
        )
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(1)
        lease = acquiring.result()
        assert lease.key in {subnet_key(1), subnet_key(2)}
        assert etcd.get(key(3)).value == value("192.0.2.9")
        assert len(etcd.leases) == 2

    @pytest.mark.parametrize("before", [True, False], ids=["theirs first", "ours first"])
    async def test_of_two_that_start_together_the_later_gives_way_in_either_family(
        self, etcd, make, before
    ):
        """Different keys with one IPv6 subnet: etcd itself sees no conflict."""
        etcd.put(codec.config_key(PREFIX), DUAL_STACK)
        shared = IPv6Network("fd00:0:0:7::/64")
        rival = SubnetKey(subnet_key(1).v4, shared)
        ours = SubnetKey(subnet_key(2).v4, shared)
        node = make(previous=ours)

        def race() -> None:
            name = codec.lease_key(PREFIX, rival)
            etcd.put(name, value("192.0.2.9"), lease=etcd.grant(DAY))

        def after_ours() -> None:
            node.store.before_next("range_prefix", race)

        node.store.before_next("put", race if before else after_ours)
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(1)
        lease = acquiring.result()
        assert (lease.key == ours) is not before
        assert (lease.key.v6 == shared) is not before
        found = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert (found.mod_revision, found.lease) == (lease.revision, lease.store_lease)
        assert len(etcd.below(codec.subnets_prefix(PREFIX))) == 2
        assert len(etcd.leases) == 2

    async def test_out_of_subnets_is_told_with_numbers_and_tried_again(self, etcd, make):
        """The fourth node of three is told how many are taken, and gets the first that is freed."""
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(60)
        assert not acquiring.done()
        assert "out of subnets: 3 of 3" in node.reports[-1]
        etcd.delete(key(2))
        await etcd.clock.advance(10)
        assert acquiring.result().key == subnet_key(2)
        assert node.reports[-1] == ""

    async def test_a_full_network_that_is_widened_has_room_within_two_seconds(self, etcd, make):
        """The caller is told, so that what hangs on the config is derived anew, and calls again."""
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(60)
        etcd.put(codec.config_key(PREFIX), CONFIG.replace(b"10.0.3.0", b"10.0.9.0"))
        await etcd.clock.advance(2)
        with pytest.raises(NetworkConfigChanged):
            await acquiring
        assert (await node.acquire()).key in {subnet_key(third) for third in range(4, 10)}

    @pytest.mark.parametrize("what", [b"garbage", None, CONFIG + b" "])
    async def test_a_config_that_is_no_better_does_not_end_the_wait(self, etcd, make, what):
        """Wrong, deleted, or written again as it was: the valid one we know goes on."""
        for third in (1, 2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(30)
        if what is None:
            etcd.delete(codec.config_key(PREFIX))
        else:
            etcd.put(codec.config_key(PREFIX), what)
        await etcd.clock.advance(30)
        assert not acquiring.done()
        etcd.delete(key(3))
        await etcd.clock.advance(6)
        assert acquiring.result().key == subnet_key(3)

    async def test_a_node_that_waited_longer_than_its_etcd_lease_lived_gets_a_new_one(
        self, etcd, make
    ):
        """Granted, lost the race for the last subnet, waited for a day: then one is freed."""
        for third in (1, 2):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"))
        node = make()
        node.store.before_next("put", lambda: etcd.put(key(3), value("192.0.2.103")))
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(60)
        assert not acquiring.done()
        for unused in etcd.leases:
            etcd.revoke(unused)  # as its end does, for which a test need not wait
        etcd.delete(key(3))
        await etcd.clock.advance(10)
        assert acquiring.result().key == subnet_key(3)
        (status,) = etcd.leases.values()
        assert status.keys == (key(3),)

    async def test_an_etcd_lease_that_was_granted_a_while_ago_is_counted_from_now(self, etcd, make):
        """Else it could end hours before the node thinks of renewing it."""
        for third in (1, 2):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"))
        node = make()
        node.store.before_next("put", lambda: etcd.put(key(3), value("192.0.2.103")))
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(300)
        etcd.delete(key(3))
        await etcd.clock.advance(10)
        lease = acquiring.result()
        (status,) = etcd.leases.values()
        assert status.ttl == pytest.approx(DAY, abs=15)
        assert lease.expires - etcd.clock.time() == pytest.approx(status.ttl, abs=5)

    async def test_an_etcd_that_was_emptied_while_a_node_waits_gives_it_a_new_lease(
        self, etcd, make
    ):
        """The id that was granted before means nothing to the new cluster."""
        for third in (1, 2):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"))
        node = make()
        node.store.before_next("put", lambda: etcd.put(key(3), value("192.0.2.103")))
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(3)
        etcd.replace()
        etcd.put(codec.config_key(PREFIX), CONFIG)
        await etcd.clock.advance(10)
        assert acquiring.result().store_lease in etcd.leases

    @pytest.mark.parametrize("operation", ["put", "keepalive"])
    async def test_an_etcd_lease_that_ends_under_a_write_is_replaced(self, etcd, make, operation):
        """Whichever request finds out: a former run's lease, or the one granted just now."""
        if operation == "keepalive":
            await make().acquire()
        node = make()
        node.store.before_next(operation, lambda: [etcd.revoke(i) for i in etcd.leases])
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(2)
        assert acquiring.result().store_lease in etcd.leases

    async def test_an_incompatible_lease_of_ours_is_deleted(self, etcd, make):
        """Outside SubnetMin..SubnetMax: the key goes, its etcd lease as well."""
        stale = etcd.grant(DAY)
        etcd.put(key(9), value("192.0.2.1"), lease=stale)
        acquiring = asyncio.create_task(make().acquire())
        await etcd.clock.advance(2)
        assert acquiring.result().key != subnet_key(9)
        assert etcd.get(key(9)) is None
        assert stale not in etcd.leases

    async def test_a_reservation_stays_one(self, etcd, make):
        """A key without a time limit is used as it is: no lease is put on it, ever."""
        etcd.put(key(2), value("192.0.2.1"))
        node = make()
        starting = asyncio.create_task(node.start())
        await etcd.clock.advance(2)
        lease = await starting
        assert lease.is_reservation
        assert lease.expires is None
        await etcd.clock.advance(DAY + 60)
        assert etcd.get(key(2)).lease == 0
        assert etcd.leases == {}

    async def test_a_subnet_whose_value_cannot_be_read_is_not_free(self, etcd, make):
        """Its key is there, so every write on it would lose a race that nobody runs."""
        for third in (1, 2):
            etcd.put(key(third), b"garbage")
        node = make(previous=subnet_key(2))
        acquiring = asyncio.create_task(node.acquire())
        await etcd.clock.advance(0.5)
        assert acquiring.result().key == subnet_key(3)
        assert etcd.get(key(2)).value == b"garbage"

    async def test_an_outage_in_the_middle_is_waited_out(self, etcd, make):
        """The answer to the write is lost: what was written is found, not written twice."""
        node = make()
        await node.manager.network_config()
        node.store.fail_next("put", StoreUnavailable("timed out"), carried_out=True)
        acquiring = asyncio.create_task(node.manager.acquire(ATTRS))
        await etcd.clock.advance(20)
        assert acquiring.done()
        assert len(etcd.below(codec.subnets_prefix(PREFIX))) == 1


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


class TestRestart:
    async def test_the_etcd_lease_of_the_former_run_is_used_again(self, etcd, make):
        """Same subnet, same etcd lease with a full day again, no write that peers would see."""
        first = await make().acquire()
        await etcd.clock.advance(3600)
        before = etcd.revision
        second = await make().acquire()
        assert second.key == first.key
        assert second.store_lease == first.store_lease
        assert etcd.revision == before
        (status,) = etcd.leases.values()
        assert status.ttl >= DAY - 1

    async def test_ten_restarts_leave_one_etcd_lease(self, etcd, make):
        for _ in range(10):
            await make().acquire()
        assert len(etcd.leases) == 1

    async def test_changed_attributes_are_published_under_the_same_subnet(self, etcd, make):
        first = await make().acquire()
        attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        second = await make().acquire(attrs)
        assert second.key == first.key
        assert etcd.get(codec.lease_key(PREFIX, first.key)).value == codec.encode_attrs(attrs)
        assert len(etcd.leases) == 1

    async def test_a_lease_that_shares_its_etcd_lease_gets_one_of_its_own(self, etcd, make):
        """Revoking the shared one would delete the others' keys."""
        shared = etcd.grant(DAY)
        etcd.put_all({key(1): value("192.0.2.1"), key(2): value("192.0.2.2")}, lease=shared)
        lease = await make(previous=subnet_key(1)).acquire()
        assert lease.store_lease != shared
        assert etcd.get(key(2)).lease == shared


class TestTwoNodesWithOneAddress:
    async def test_the_second_is_told_and_the_first_keeps_its_lease(self, etcd, make):
        first, second = make("a"), make("b")
        lease = await first.start()
        acquiring = asyncio.create_task(second.acquire())
        await etcd.clock.advance(30)
        assert not acquiring.done()
        assert "public IP 192.0.2.1 is in use by another live node" in second.reports[-1]
        assert first.lease.key == lease.key
        assert first.moves == []
        acquiring.cancel()
        await asyncio.gather(acquiring, return_exceptions=True)

    async def test_the_second_takes_over_when_the_first_is_gone(self, etcd, make):
        """A node that was set up anew, with its old address, gets its old subnet."""
        first, second = make("a"), make("b")
        lease = await first.start()
        acquiring = asyncio.create_task(second.acquire())
        await etcd.clock.advance(10)
        await first.stop()
        await etcd.clock.advance(10)
        assert acquiring.result().key == lease.key

    async def test_of_several_challengers_in_a_row_none_takes_over(self, etcd, make):
        """They come within one interval between two answers of the first."""
        first = make("a")
        lease = await first.start()
        others = []
        for n in range(4):
            others.append(asyncio.create_task(make(f"other{n}").acquire()))
            await etcd.clock.advance(0.15)
        await etcd.clock.advance(60)
        assert not any(task.done() for task in others)
        assert first.lease.key == lease.key
        assert first.moves == []
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def test_two_owners_do_not_echo_for_ever(self, etcd, make):
        """Should two daemons hold one lease all the same, they do not answer each other's answers
        without end."""
        nodes = [make("a"), make("a")]
        for node in nodes:
            await node.start()
        kv = etcd.get(codec.lease_key(PREFIX, nodes[0].lease.key))
        before = etcd.revision
        etcd.put(kv.key, kv.value, lease=kv.lease)
        await etcd.clock.advance(60)
        assert etcd.revision - before < 10


class TestAnotherAddress:
    """The node was down while its address changed."""

    NEW = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))

    async def test_the_subnet_stays_and_is_published_with_the_new_one(self, etcd, make):
        first = make("a")
        lease = await first.start()
        await first.stop()
        acquiring = asyncio.create_task(make("a").acquire(self.NEW))
        await etcd.clock.advance(2)
        again = await acquiring
        assert again.key == lease.key
        assert again.store_lease == lease.store_lease
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert (kv.value, kv.lease) == (value("192.0.2.77"), lease.store_lease)
        assert len(etcd.leases) == 1

    async def test_another_nodes_lease_under_that_address_is_left_alone(self, etcd, make):
        """A virtual address failed over; its former holder's daemon is down."""
        first = make("a")
        lease = await first.start()
        await first.stop()
        theirs = key(2) if lease.key == subnet_key(1) else key(1)
        etcd.put(theirs, value("192.0.2.77"), lease=etcd.grant(DAY))
        before = etcd.get(theirs).mod_revision
        acquiring = asyncio.create_task(make("a").acquire(self.NEW))
        await etcd.clock.advance(2)
        assert (await acquiring).key == lease.key
        assert etcd.get(theirs).mod_revision == before

    async def test_a_copied_disk_does_not_take_the_subnet_of_a_live_node(
        self, etcd, make, tmp_path
    ):
        original = make("a")
        lease = await original.start()
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        copy = make("copy", previous=lease.key)
        acquiring = asyncio.create_task(copy.acquire(self.NEW))
        await etcd.clock.advance(5)
        assert (await acquiring).key != lease.key
        assert original.lease.key == lease.key
        assert original.moves == []
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.1")

    async def test_the_vtep_mac_of_a_copied_disks_original_is_not_looked_up(
        self, etcd, make, tmp_path
    ):
        original = make("a")
        await original.start()
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        copy = make("copy")
        await copy.manager.network_config()
        assert await copy.manager.previous(self.NEW) is None
        assert await copy.manager.previous(ATTRS) == ATTRS

    async def test_a_second_lease_with_our_vtep_mac_is_deleted(self, etcd, make):
        mac = {
            "backend_type": "vxlan",
            "backend_data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}',
        }
        old = LeaseAttrs(public_ip=IPv4Address("192.0.2.5"), **mac)
        etcd.put(key(1), codec.encode_attrs(old), lease=etcd.grant(DAY))
        mine = LeaseAttrs(public_ip=OUR_ADDRESS, **mac)
        etcd.put(key(2), codec.encode_attrs(mine), lease=etcd.grant(DAY))
        acquiring = asyncio.create_task(make("a").acquire(mine))
        await etcd.clock.advance(5)
        assert (await acquiring).key == subnet_key(2)
        assert etcd.get(key(1)) is None
        assert len(etcd.leases) == 1


class TestKeeping:
    async def test_it_is_renewed_an_hour_before_the_end(self, etcd, make):
        """In place: no new etcd lease, no write that peers would see."""
        node = make()
        await node.start()
        before = etcd.revision
        await etcd.clock.advance(23 * 3600 - 5)
        assert next(iter(etcd.leases.values())).ttl == pytest.approx(3605, abs=2)
        await etcd.clock.advance(10)
        assert next(iter(etcd.leases.values())).ttl == pytest.approx(DAY, abs=10)
        await etcd.clock.advance(DAY)
        assert etcd.revision == before
        assert len(etcd.leases) == 1

    async def test_a_renewal_that_fails_is_tried_until_it_goes_well(self, etcd, make):
        node = make()
        lease = await node.start()
        await etcd.clock.advance(23 * 3600 - 5)
        node.store.down()
        await etcd.clock.advance(1800)
        node.store.up()
        await etcd.clock.advance(120)
        assert next(iter(etcd.leases.values())).ttl > DAY - 130
        assert node.lease.key == lease.key

    async def test_a_deleted_lease_is_taken_back_with_the_same_subnet(self, etcd, make):
        node = make()
        lease = await node.start()
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(1)
        assert node.lease.key == lease.key
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.moves == []
        assert len(etcd.leases) == 1

    async def test_a_subnet_that_another_node_took_is_never_written(self, etcd, make):
        """We move to another one, and say so."""
        node = make()
        lease = await node.start()
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"))
        await etcd.clock.advance(5)
        taken = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert taken.value == value("192.0.2.99")
        assert [moved.key for moved in node.moves] == [node.lease.key]
        assert node.lease.key != lease.key
        assert len(etcd.leases) == 1

    async def test_a_key_that_becomes_ours_again_after_a_moment_leaves_all_as_it_was(
        self, etcd, make
    ):
        """A mistake, mended: the containers of this node live in the subnet."""
        node = make()
        lease = await node.start()
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        etcd.put(kv.key, value("192.0.2.99"))
        await etcd.clock.advance(1)
        etcd.put(kv.key, value("192.0.2.98"))
        await etcd.clock.advance(1)
        etcd.put(kv.key, kv.value, lease=kv.lease)
        await etcd.clock.advance(60)
        assert node.moves == []
        assert node.lease.key == lease.key
        assert etcd.get(kv.key).value == kv.value
        await etcd.clock.advance(10 * DAY)
        assert etcd.get(kv.key) is not None

    async def test_on_an_etcd_lease_of_several_nodes_we_do_not_stay(self, etcd, make):
        """It would end for all of them at once, and tells none of them from the others."""
        node = make()
        lease = await node.start()
        mine, other = codec.lease_key(PREFIX, lease.key), key(7)
        shared = etcd.grant(600)
        etcd.put_all({mine: value("192.0.2.1"), other: value("192.0.2.7")}, lease=shared)
        await etcd.clock.advance(5)
        assert node.moves == []
        assert etcd.get(mine).lease == node.lease.store_lease != shared
        assert etcd.get(other).lease == shared
        assert set(etcd.leases) == {shared, node.lease.store_lease}
        await etcd.clock.advance(DAY)
        assert etcd.get(mine).lease == node.lease.store_lease

    async def test_a_node_without_a_lease_follows_another_division_of_its_network(self, etcd, make):
        """More subnets of the same network need nothing but the lease."""
        for third in (2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        await node.start()
        etcd.put(key(1), value("192.0.2.99"), lease=etcd.grant(DAY))
        await etcd.clock.advance(60)
        assert "out of subnets" in node.reports[-1]
        etcd.put(codec.config_key(PREFIX), CONFIG.replace(b"10.0.3.0", b"10.0.4.0"))
        await etcd.clock.advance(2)
        assert node.lease.key == subnet_key(4)
        assert [moved.key for moved in node.moves] == [subnet_key(4)]

    async def test_a_node_without_a_lease_cannot_follow_to_another_network(self, etcd, make):
        """Routes, rules and files hang on the network: the caller has to start over."""
        for third in (2, 3):
            etcd.put(key(third), value(f"192.0.2.{100 + third}"), lease=etcd.grant(DAY))
        node = make()
        await node.start()
        etcd.put(key(1), value("192.0.2.99"), lease=etcd.grant(DAY))
        await etcd.clock.advance(60)
        etcd.put(codec.config_key(PREFIX), b'{"Network":"10.64.0.0/16"}')
        await etcd.clock.advance(2)
        with pytest.raises(NetworkConfigChanged):
            await node.tasks[1]

    async def test_a_lease_that_expired_during_an_outage_comes_back(self, etcd, make):
        node = make()
        lease = await node.start()
        node.store.down()
        await etcd.clock.advance(60)
        etcd.revoke(lease.store_lease)
        await etcd.clock.advance(60)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is None
        node.store.up()
        await etcd.clock.advance(60)
        assert node.lease.key == lease.key
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None

    async def test_a_key_that_an_outage_took_without_an_event_comes_back_soon(self, etcd, make):
        """An etcd that was emptied and written again may be as far as our watch: that is silent."""
        node = make()
        before = etcd.backup()
        lease = await node.start()
        await etcd.clock.advance(1)
        node.store.down()
        await etcd.clock.advance(5)
        etcd.restore(before)
        for n in range(20):
            etcd.put(b"/elsewhere", b"%d" % n)
        node.store.up()
        await etcd.clock.advance(15)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key

    async def test_a_damaged_value_is_written_again(self, etcd, make):
        node = make()
        lease = await node.start()
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        etcd.put(kv.key, b"garbage", lease=kv.lease)
        await etcd.clock.advance(5)
        assert etcd.get(kv.key).value == value("192.0.2.1")

    async def test_a_lease_made_a_reservation_is_renewed_no_more(self, etcd, make):
        node = make()
        lease = await node.start()
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.1"))
        await etcd.clock.advance(DAY + 60)
        assert node.lease.is_reservation
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).lease == 0
        assert etcd.leases == {}

    async def test_upstreams_daemon_rewriting_our_lease_is_followed(self, etcd, make):
        """It grants a new etcd lease at each start; ours must not be the one we renew then."""
        node = make()
        lease = await node.start()
        theirs = etcd.grant(DAY)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.1"), lease=theirs)
        await etcd.clock.advance(23 * 3600 + 10)
        assert list(etcd.leases) == [theirs]
        assert etcd.leases[theirs].ttl > DAY - 100

    async def test_new_attributes_are_published_in_place(self, etcd, make):
        node = make()
        lease = await node.start()
        attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))
        await node.manager.publish(attrs)
        await settle()
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert kv.value == value("192.0.2.77")
        assert kv.lease == lease.store_lease
        assert node.moves == []

    async def test_a_new_address_whose_confirmation_got_lost_is_not_taken_for_another_node(
        self, etcd, make
    ):
        """The write was carried out: seen in the store it is ours, not somebody's who took over."""
        node = make()
        lease = await node.start()
        attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))
        node.store.fail_next("put", StoreUnavailable("timed out"), carried_out=True)
        writing = asyncio.create_task(node.manager.publish(attrs))
        await etcd.clock.advance(30)
        assert (await writing).attrs == attrs
        assert node.moves == []
        assert node.lease.key == lease.key
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert (kv.value, kv.lease) == (value("192.0.2.77"), lease.store_lease)
        assert node.lease.revision == kv.mod_revision

    async def test_the_record_lets_the_next_run_know_its_own_lease(self, etcd, make):
        """Without being asked for a sign of life, which would cost a second."""
        await make("a").start()
        again = make("a")
        await again.acquire()
        assert etcd.clock.monotonic() == 0

    async def test_a_record_that_a_full_disk_did_not_take_is_written_within_a_check(
        self, etcd, make, tmp_path
    ):
        """A file in the directory's place stands for the disk."""
        (tmp_path / "full").touch()

        await make("full").start()
        (tmp_path / "full").unlink()
        await etcd.clock.advance(CHECK_S)
        assert LeaseRecord(str(tmp_path / "full"), PREFIX).load() is not None


class TestRefusedWhileRunning:
    """A role that is revoked, a password that is changed: the node goes on trying."""

    DENIED = StoreDenied("permission denied")
    WRITES = ("put", "delete", "grant", "keepalive")

    async def test_a_lease_deleted_while_writing_is_refused_comes_back_when_it_is_allowed(
        self, etcd, make
    ):
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, *self.WRITES)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(600)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is None
        node.store.allow()
        await etcd.clock.advance(10)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key
        assert node.moves == []

    async def test_a_subnet_that_another_node_takes_meanwhile_is_left_to_it(self, etcd, make):
        """The node gets another subnet and tells the daemon."""
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, *self.WRITES)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(60)
        theirs = etcd.grant(DAY)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"), lease=theirs)
        await etcd.clock.advance(60)
        node.store.allow()
        await etcd.clock.advance(10)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.99")
        assert [moved.key for moved in node.moves] == [node.lease.key]
        assert etcd.get(codec.lease_key(PREFIX, node.lease.key)).value == value("192.0.2.1")

    async def test_even_reading_may_be_refused(self, etcd, make):
        """Whatever the request is that is refused, it is tried again."""
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, "get", "range_prefix", "time_to_live", *self.WRITES)
        etcd.put(codec.lease_key(PREFIX, lease.key), b"garbage")
        await etcd.clock.advance(300)
        node.store.allow()
        await etcd.clock.advance(10)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.1")

    async def test_new_attributes_are_published_when_it_is_allowed_again(self, etcd, make):
        """Also if the lease was lost meanwhile: neither ends the daemon."""
        node = make()
        lease = await node.start()
        node.store.refuse(self.DENIED, *self.WRITES)
        attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        publishing = asyncio.create_task(node.manager.publish(attrs))
        await etcd.clock.advance(30)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        etcd.revoke(lease.store_lease)
        await etcd.clock.advance(30)
        node.store.allow()
        await etcd.clock.advance(10)
        assert (await publishing).attrs == attrs
        found = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert found.value == codec.encode_attrs(attrs)
        assert all(not task.done() for task in node.tasks)

    async def test_a_conflict_whose_second_look_fails_does_not_end_the_daemon(self, etcd, make):
        node = make()
        lease = await node.start()
        attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        node.store.before_next("put", lambda: etcd.put(kv.key, kv.value, lease=kv.lease))
        node.store.refuse(StoreUnavailable("timed out"), "get")
        publishing = asyncio.create_task(node.manager.publish(attrs))
        await etcd.clock.advance(5)
        node.store.allow()
        await etcd.clock.advance(10)
        assert (await publishing).attrs == attrs


class TestLostAnswers:
    async def test_a_subnet_that_was_won_without_an_answer_is_ours(self, etcd, make):
        """The record still names the former one, so that nothing else tells whose it is."""
        node = make()
        lost = (await node.start()).key
        node.store.fail_next("put", StoreUnavailable("timed out"), carried_out=True)
        theirs = etcd.grant(2 * DAY)
        etcd.put(codec.lease_key(PREFIX, lost), value("192.0.2.99"), lease=theirs)
        await etcd.clock.advance(GIVEN_BACK_S + 5)
        (kv,) = [kv for kv in etcd.below(codec.subnets_prefix(PREFIX)) if kv.lease != theirs]
        assert kv.key == codec.lease_key(PREFIX, node.lease.key)
        assert kv.lease == node.lease.store_lease
        assert node.manager.standing().held is True
        assert set(etcd.leases) == {theirs, kv.lease}


class TestChecks:
    """What the watch did not tell, the node's own look at its key does; here nobody watches."""

    @staticmethod
    async def keeping(node):
        lease = await node.acquire()
        task = asyncio.create_task(anext(node.manager.keep()))
        node.tasks.append(task)
        await settle()
        return lease, task

    async def test_a_key_that_is_gone_is_back_within_one_check(self, etcd, make):
        node = make()
        lease, _ = await self.keeping(node)
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        await etcd.clock.advance(CHECK_S + 1)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key

    async def test_a_key_that_is_another_nodes_is_given_up_within_one_check(self, etcd, make):
        node = make()
        lease, moved = await self.keeping(node)
        theirs = etcd.grant(2 * DAY)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"), lease=theirs)
        await etcd.clock.advance(CHECK_S + GIVEN_BACK_S + 1)
        assert moved.result().key != lease.key
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).value == value("192.0.2.99")

    async def test_a_key_that_was_moved_to_a_short_etcd_lease_is_moved_back(self, etcd, make):
        """An operator's script put it on one of fifteen seconds: it would end with that."""
        node = make()
        lease = await node.start()
        short = etcd.grant(15)
        etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.1"), lease=short)
        await etcd.clock.advance(30)
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert etcd.leases[kv.lease].granted_ttl == DAY
        assert node.lease.store_lease == kv.lease
        assert node.moves == []

    async def test_what_is_claimed_follows_from_what_was_shown(self, etcd, make):
        """Held, then not confirmed while etcd is away, then held again."""
        node = make()
        await node.start()
        started = etcd.clock.time()
        assert node.manager.standing().held is True
        node.store.down()
        await etcd.clock.advance(600)
        standing = node.manager.standing()
        assert standing.held is None
        assert standing.confirmed <= started + CHECK_S
        assert "connection refused" in standing.reason
        assert standing.since <= started + CHECK_S
        await etcd.clock.advance(DAY)
        standing = node.manager.standing()
        assert standing.held is False
        assert "ended by our clock" in standing.reason
        node.store.up()
        await etcd.clock.advance(20)
        standing = node.manager.standing()
        assert (standing.held, standing.reason, standing.since) == (True, "", None)


class TestLeaseTTL:
    async def test_the_network_config_says_it_and_the_option_overrides_it(self, etcd, make):
        etcd.put(codec.config_key(PREFIX), CONFIG.replace(b"{", b'{"LeaseTTL":600,', 1))
        lease = await make("a").acquire()
        assert etcd.leases[lease.store_lease].granted_ttl == 600
        other = LeaseAttrs(public_ip=OUR_ADDRESS + 1)
        lease = await make("b", ttl=90).acquire(other)
        assert etcd.leases[lease.store_lease].granted_ttl == 90

    async def test_it_is_renewed_a_third_before_the_end_at_the_latest(self, etcd, make):
        """The margin of an hour is meant for a day."""
        node = make(ttl=600)
        await node.start()
        await etcd.clock.advance(399)
        assert next(iter(etcd.leases.values())).ttl == pytest.approx(201, abs=2)
        await etcd.clock.advance(3)
        assert next(iter(etcd.leases.values())).ttl >= 595
        await etcd.clock.advance(3600)
        assert len(etcd.below(codec.subnets_prefix(PREFIX))) == 1

    async def test_a_restart_with_another_ttl_moves_the_lease(self, etcd, make):
        """Same subnet, another etcd lease, the former one given back."""
        first = await make().acquire()
        second = await make(ttl=600).acquire()
        assert second.key == first.key
        assert [status.granted_ttl for status in etcd.leases.values()] == [600]


class TestRelease:
    async def test_the_subnet_is_free_at_once(self, etcd, make):
        node = make()
        await node.start()
        assert await node.manager.release()
        assert etcd.below(codec.subnets_prefix(PREFIX)) == ()
        assert etcd.leases == {}

    async def test_what_is_not_as_we_know_it_stays(self, etcd, make):
        """Another node's key, and a reservation."""
        node = make()
        lease = await node.acquire()
        theirs = etcd.put(codec.lease_key(PREFIX, lease.key), value("192.0.2.99"))
        assert not await node.manager.release()
        assert etcd.get(codec.lease_key(PREFIX, lease.key)).mod_revision == theirs
        etcd.delete(codec.lease_key(PREFIX, lease.key))
        etcd.put(key(2), value("192.0.2.2"))
        reserved = make("b")
        acquiring = asyncio.create_task(reserved.acquire(LeaseAttrs(public_ip=OUR_ADDRESS + 1)))
        await etcd.clock.advance(2)
        assert acquiring.result().is_reservation
        assert not await reserved.manager.release()
        assert etcd.get(key(2)) is not None


class TestReasons:
    """Each kind of failure is said when it begins, when it changes, and when it is over."""

    @pytest.fixture
    def said(self, caplog):
        caplog.set_level(logging.INFO)
        return lambda words: [r for r in caplog.records if words in r.getMessage()]

    async def test_a_second_reason_is_said_although_the_first_was(self, etcd, make, said):
        """First nobody answers; then somebody does, and does not know us."""
        node = make()
        await node.start()
        node.store.down()
        await etcd.clock.advance(300)
        assert len(said("lost the watch of the leases")) == 1
        node.store.refuse(StoreDenied("user not accepted"), "watch_prefix", "range_prefix")
        node.store.up()
        await etcd.clock.advance(300)
        assert len(said("are not watched for another reason")) == 1
        assert node.manager.report().reason == "user not accepted"
        await etcd.clock.advance(1200)
        assert len(said("still not watched")) == 2
        node.store.allow()
        await etcd.clock.advance(10)
        assert len(said("etcd answers again")) == 1
        assert node.manager.report().connected


class TestRestoredEtcd:
    async def test_an_empty_etcd_gets_our_lease_again_with_the_same_subnet(self, etcd, make):
        etcd.put(key(1), value("192.0.2.50"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(2))
        lease = await node.start()
        etcd.replace()
        await etcd.clock.advance(20)
        assert etcd.get(codec.lease_key(PREFIX, lease.key)) is not None
        assert node.lease.key == lease.key

    async def test_peers_stay_for_a_while_and_go_if_they_do_not_come_back(self, etcd, make):
        """A store's mishap is not the peers' death; a peer that stays away is gone in the end."""
        etcd.put(key(1), value("192.0.2.50"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(2))
        await node.start()
        etcd.replace()
        await etcd.clock.advance(15)
        snapshots = [u for u in node.updates if isinstance(u, Snapshot)]
        assert subnet_key(1) in {lease.key for lease in snapshots[-1].leases}
        await etcd.clock.advance(60)
        snapshots = [u for u in node.updates if isinstance(u, Snapshot)]
        assert subnet_key(1) not in {lease.key for lease in snapshots[-1].leases}

    async def test_an_own_lease_of_an_older_revision_is_ours_and_can_be_written(self, etcd, make):
        """A backup that holds our key already: the next write names the revision it has there."""
        node = make()
        lease = await node.start()
        backup = etcd.backup()
        for address in (77, 78):
            attrs = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type=f"t{address}")
            await node.manager.publish(attrs)
        await node.manager.publish(ATTRS)
        etcd.restore(backup)
        await etcd.clock.advance(20)
        wanted = LeaseAttrs(public_ip=OUR_ADDRESS, backend_type="host-gw")
        writing = asyncio.create_task(node.manager.publish(wanted))
        await etcd.clock.advance(20)
        assert writing.done()
        found = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert found.value == codec.encode_attrs(wanted)

    async def test_a_restored_etcd_in_which_the_subnet_is_another_nodes_is_believed(
        self, etcd, make
    ):
        """Its revisions are smaller than those we know; the key is read and judged all the same."""
        etcd.put(key(2), value("192.0.2.99"), lease=etcd.grant(DAY))
        backup = etcd.backup()
        etcd.delete(key(2))
        node = make(previous=subnet_key(2))
        assert (await node.start()).key == subnet_key(2)
        etcd.restore(backup)
        await etcd.clock.advance(20)
        assert etcd.get(key(2)).value == value("192.0.2.99")
        assert [moved.key for moved in node.moves] == [node.lease.key]
        assert node.lease.key != subnet_key(2)

    async def test_in_a_strangers_cluster_no_peer_is_given_up_after_half_a_minute(self, etcd, make):
        """What that one lacks has not ended; peers stay until their leases would have."""
        etcd.put(key(1), value("192.0.2.50"), lease=etcd.grant(DAY))
        node = make(previous=subnet_key(2))
        await node.start()
        node.store.is_stranger = True
        etcd.replace()
        await etcd.clock.advance(600)
        snapshots = [u for u in node.updates if isinstance(u, Snapshot)]
        assert len(snapshots) > 1
        assert subnet_key(1) in {lease.key for lease in snapshots[-1].leases}

    async def test_the_next_run_knows_the_cluster(self, etcd, make):
        await make("a").start()
        assert make("a").store.expected == etcd.cluster_id
        assert make("b").store.expected == 0


async def test_a_bad_key_is_logged_once_in_one_readable_line(etcd, make, caplog):
    """100 KB, an escape sequence, and written again and again: each was a line of 100 KB."""
    await make().start()
    stray = codec.subnets_prefix(PREFIX) + b"\x1b[2J" + b"x" * 100_000
    with caplog.at_level("WARNING"):
        for number in range(30):
            etcd.put(stray, b"%d" % number)
            await settle()
    lines = [r for r in caplog.records if r.getMessage() == "ignoring a key that is not a lease"]
    assert len(lines) == 1
    fields = lines[0].pyflannel_fields
    assert fields["key"].isprintable()
    assert len(fields["key"]) < 300


async def test_a_prefix_that_is_no_utf8_is_waited_for_in_readable_words(tmp_path) -> None:
    """etcd's keys are bytes; `--etcd-prefix=$(printf '/\\xff')` ended with a traceback."""
    etcd = FakeEtcd(FakeClock())
    said: list[str] = []
    store = EtcdLeaseStore(
        FakeStore(etcd),
        "/\udcff",
        kinds=KINDS,
        clock=etcd.clock,
        record=LeaseRecord(str(tmp_path), "/\udcff"),
        previous=None,
        tell=said.append,
    )
    waiting = asyncio.create_task(store.network_config())
    await settle()
    assert "/\\xff/config" in said[-1]
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_the_remedy_for_a_missing_config_writes_it_where_it_is_read(
    etcd, make, caplog
) -> None:
    """Pasted without the endpoints it wrote into another etcd."""
    with caplog.at_level("WARNING"):
        etcd.delete(codec.config_key(PREFIX))
        node = make()
        waiting = asyncio.create_task(node.manager.network_config())
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        endpoints = node.store.describe().replace(", ", ",")
        fields = caplog.records[-1].pyflannel_fields
        assert f"--etcd-endpoints={endpoints}" in shlex.split(fields["remedy"])
        assert f"--etcd-prefix={PREFIX}" in shlex.split(fields["remedy"])


@pytest.mark.parametrize(("held", "told"), [(None, False), (set(), False), ({"config"}, True)])
async def test_a_config_in_the_store_of_the_v2_api_is_told_with_the_way_to_copy_it(
    etcd, make, caplog, held, told
) -> None:
    with caplog.at_level("WARNING"):
        etcd.delete(codec.config_key(PREFIX))
        node = make()
        node.store.v2 = held and {codec.config_key(PREFIX)}
        waiting = asyncio.create_task(node.manager.network_config())
        await etcd.clock.advance(30)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert node.store.calls.count("holds_v2") == 1, "once for each line in the log"
        fields = caplog.records[-1].pyflannel_fields
        assert (fields["v2"] is not None) is told
        assert (f"get {PREFIX}/config | pyflannel config set -" in fields["remedy"]) is told
