"""Everybody's leases over an outage: what etcd holds afterwards is what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import LeaseAttrs, LeaseDeleted, LeaseUpdate, Snapshot
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.feed import RESTORE_GRACE_S, LeaseFeed
from pyflannel.testing.fakeclock import FakeClock, settle
from pyflannel.testing.fakeetcd import Backup, FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PREFIX = "/coreos.com/network"


def subnet(third: int) -> SubnetKey:
    return SubnetKey(IPv4Network(f"10.0.{third}.0/24"))


def key(third: int) -> bytes:
    return codec.lease_key(PREFIX, subnet(third))


def put(etcd: FakeEtcd, *thirds: int) -> None:
    for third in thirds:
        address = IPv4Address(f"192.0.2.{third}")
        value = codec.encode_attrs(LeaseAttrs(public_ip=address))
        etcd.put(key(third), value, lease=etcd.grant(86400))


class Follower:
    """A consumer of the feed."""

    def __init__(self, etcd: FakeEtcd, **options: object) -> None:
        self.store = FakeStore(etcd)
        self.updates: list[LeaseUpdate] = []
        self.peers: set[SubnetKey] = set()
        self._feed = LeaseFeed(
            self.store,
            PREFIX,
            etcd.clock,
            is_own=lambda _: False,
            own=lambda _: None,
            recovered=lambda: None,
            **options,
        )

    async def follow(self) -> None:
        async for update in self._feed.updates():
            self.updates.append(update)
            if isinstance(update, Snapshot):
                self.peers = {lease.key for lease in update.leases}
                continue
            for event in update.events:
                if isinstance(event, LeaseDeleted):
                    self.peers.discard(event.key)
                else:
                    self.peers.add(event.lease.key)

    @property
    def snapshots(self) -> int:
        return sum(isinstance(update, Snapshot) for update in self.updates)


@pytest.fixture
def etcd() -> FakeEtcd:
    return FakeEtcd(FakeClock())


@pytest.fixture
@asynccontextmanager
async def follower(etcd) -> AsyncIterator[Follower]:
    """It knows two nodes, of which one came while it was watching."""
    put(etcd, 1)
    follower = Follower(etcd)
    task = asyncio.create_task(follower.follow())
    await settle()
    put(etcd, 2)
    await settle()
    assert follower.peers == {subnet(1), subnet(2)}
    try:
        yield follower
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def outage(etcd: FakeEtcd, follower: Follower, meanwhile) -> None:
    follower.store.down()
    await etcd.clock.advance(5)
    meanwhile()
    follower.store.up()
    await etcd.clock.advance(10)


def empty(etcd: FakeEtcd) -> None:
    etcd.restore(Backup(1, {}, {}, etcd.cluster_id))


def grow(etcd: FakeEtcd, *, beyond: int = 100) -> None:
    while etcd.revision < beyond:
        etcd.put(b"/elsewhere", b"x")


async def test_after_an_outage_without_a_restore_nothing_is_listed_again(etcd, follower):
    await outage(etcd, follower, lambda: put(etcd, 3))
    assert follower.peers == {subnet(1), subnet(2), subnet(3)}
    assert follower.snapshots == 1


async def test_leases_written_below_the_cursor_of_an_emptied_etcd_are_seen(etcd, follower):
    """It has the old cluster id, and is further than we were before we hear of it again."""

    def meanwhile() -> None:
        empty(etcd)
        put(etcd, 7, 1)
        grow(etcd)

    await outage(etcd, follower, meanwhile)
    assert follower.peers == {subnet(1), subnet(2), subnet(7)}, "the missing one stays a while"
    await etcd.clock.advance(RESTORE_GRACE_S + 10)
    assert follower.peers == {subnet(1), subnet(7)}


async def test_so_they_are_if_the_newest_lease_is_back_before_us(etcd, follower):
    def meanwhile() -> None:
        empty(etcd)
        put(etcd, 7, 2)
        grow(etcd)

    await outage(etcd, follower, meanwhile)
    assert follower.peers == {subnet(1), subnet(2), subnet(7)}


async def test_what_a_backup_brings_back_is_seen(etcd, follower):
    """A lease was deleted after the backup, and is there again below our cursor."""
    backup = etcd.backup()
    etcd.delete(key(1))
    await settle()
    assert follower.peers == {subnet(2)}

    def meanwhile() -> None:
        etcd.restore(backup)
        grow(etcd)

    await outage(etcd, follower, meanwhile)
    assert follower.peers == {subnet(1), subnet(2)}


async def test_peers_stay_a_while_although_the_cursor_was_compacted_too(etcd, follower):
    def meanwhile() -> None:
        empty(etcd)
        put(etcd, 7)
        grow(etcd)
        etcd.compact()

    await outage(etcd, follower, meanwhile)
    assert follower.peers == {subnet(1), subnet(2), subnet(7)}
    await etcd.clock.advance(RESTORE_GRACE_S + 10)
    assert follower.peers == {subnet(7)}


async def test_a_second_outage_while_it_looks_does_not_make_it_forget_to(etcd, follower):
    def meanwhile() -> None:
        empty(etcd)
        put(etcd, 7)
        grow(etcd)
        follower.store.before_next("get", follower.store.down)

    await outage(etcd, follower, meanwhile)
    follower.store.up()
    await etcd.clock.advance(10)
    assert subnet(7) in follower.peers


async def test_a_lease_that_we_are_writing_is_told_as_ours(etcd):
    """The watch may show it before the write is answered."""
    follower = Follower(etcd, is_coming=lambda lease: lease.key == subnet(2))
    task = asyncio.create_task(follower.follow())
    await settle()
    put(etcd, 2, 3)
    await settle()
    ours = {
        event.lease.key: event.lease.ours
        for update in follower.updates[1:]
        for event in update.events
    }
    assert ours == {subnet(2): True, subnet(3): False}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
