"""The troubles that the fake etcd can make; what it shares with a real one is in the contract."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.core.errors import (
    StoreCompacted,
    StoreConflict,
    StoreDenied,
    StoreUnavailable,
)
from pyflannel.store.etcd.base import DeleteEvent, PutEvent
from pyflannel.testing.fakeclock import FakeClock, settle
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import NOTICE_S, FakeStore


async def test_a_store_that_is_down_fails_at_once_and_its_watches_break():
    store = FakeStore()
    stream = store.watch_prefix(b"/", 1)
    await anext(stream)
    store.down()
    with pytest.raises(StoreUnavailable):
        await anext(stream)
    with pytest.raises(StoreUnavailable):
        await store.get(b"/k")
    with pytest.raises(StoreUnavailable):
        await anext(store.watch_prefix(b"/", 1))
    store.up()
    assert not (await store.get(b"/k")).kvs
    assert store.etcd.watches == 0


async def test_one_client_that_is_down_leaves_the_others_alone():
    etcd = FakeEtcd()
    here, there = FakeStore(etcd), FakeStore(etcd)
    here.down()
    await there.put(b"/k", b"v")
    here.up()
    assert (await here.get(b"/k")).kvs[0].value == b"v"


async def test_a_frozen_store_answers_after_a_while_that_it_does_not():
    clock = FakeClock()
    store = FakeStore(clock=clock)
    stream = store.watch_prefix(b"/", 1)
    await anext(stream)
    store.freeze()
    request = asyncio.ensure_future(store.get(b"/k"))
    event = asyncio.ensure_future(anext(stream))
    store.etcd.put(b"/k", b"v")
    await clock.advance(1.0)
    assert not request.done()
    await clock.advance(1.0)
    with pytest.raises(StoreUnavailable):
        await request
    assert not event.done(), "no event comes through"
    await clock.advance(NOTICE_S)
    with pytest.raises(StoreUnavailable):
        await event


async def test_a_frozen_store_that_thaws_in_time_goes_on_without_a_gap():
    clock = FakeClock()
    store = FakeStore(clock=clock)
    stream = store.watch_prefix(b"/", 1)
    await anext(stream)
    store.freeze()
    store.etcd.put(b"/k", b"v")
    request = asyncio.ensure_future(store.get(b"/k"))
    await clock.advance(1.0)
    store.up()
    await clock.advance(NOTICE_S)
    assert (await request).kvs[0].value == b"v"
    assert len((await anext(stream)).events) == 1
    assert clock.sleepers == 0


async def test_the_next_calls_of_a_method_fail_as_asked_in_order():
    store = FakeStore()
    store.fail_next("put", StoreUnavailable("first"))
    store.fail_next("put", StoreDenied("second"))
    await store.get(b"/k")
    with pytest.raises(StoreUnavailable, match="first"):
        await store.put(b"/k", b"v")
    with pytest.raises(StoreDenied, match="second"):
        await store.put(b"/k", b"v")
    assert store.etcd.get(b"/k") is None
    await store.put(b"/k", b"v")
    assert store.calls == ["get", "put", "put", "put"]


async def test_a_write_may_be_carried_out_though_its_answer_is_lost():
    store = FakeStore()
    store.fail_next("put", StoreUnavailable("lost"), carried_out=True)
    with pytest.raises(StoreUnavailable):
        await store.put(b"/k", b"v")
    assert (await store.get(b"/k")).kvs[0].value == b"v"
    store.fail_next("grant", StoreUnavailable("lost"), carried_out=True)
    with pytest.raises(StoreUnavailable):
        await store.grant(60)
    assert len(store.etcd.leases) == 1


async def test_a_race_can_be_lost_on_purpose():
    store = FakeStore()
    store.before_next("put", lambda: store.etcd.put(b"/k", b"theirs"))
    with pytest.raises(StoreConflict):
        await store.put(b"/k", b"ours", if_mod_revision=0)


async def test_a_replaced_cluster_is_empty_and_another_one():
    store = FakeStore()
    lease = await store.grant(60)
    before = await store.put(b"/k", b"v", lease=lease.id)
    stream = store.watch_prefix(b"/", 1)
    await anext(stream)
    store.etcd.replace()
    assert (await anext(stream)).events, "what was on its way arrives"
    with pytest.raises(StoreUnavailable):
        await anext(stream)
    result = await store.get(b"/k")
    assert not result.kvs
    assert result.header.revision < before.revision
    assert result.header.cluster_id != before.cluster_id
    assert (await store.time_to_live(lease.id)).ttl == -1


async def test_a_restored_cluster_is_the_old_one_with_fresh_leases():
    clock = FakeClock()
    store = FakeStore(clock=clock)
    lease = await store.grant(60)
    old = await store.put(b"/k", b"old", lease=lease.id)
    backup = store.etcd.backup()
    await store.put(b"/k", b"new", lease=lease.id)
    await store.put(b"/later", b"v")
    await clock.advance(50)
    store.etcd.restore(backup)
    result = await store.range_prefix(b"/")
    assert [kv.value for kv in result.kvs] == [b"old"]
    assert result.header.revision == old.revision
    assert result.header.cluster_id == old.cluster_id
    await clock.advance(50)
    assert (await store.get(b"/k")).kvs, "the lease started anew"
    await clock.advance(11)
    assert not (await store.get(b"/k")).kvs


async def test_leases_expire_in_order_and_each_takes_its_keys_in_one_transaction():
    clock = FakeClock()
    etcd = FakeEtcd(clock)
    store = FakeStore(etcd)
    long, short = etcd.grant(20), etcd.grant(10)
    etcd.put_all({b"/s1": b"", b"/s2": b""}, lease=short)
    etcd.put(b"/l", b"", lease=long)
    stream = store.watch_prefix(b"/", etcd.revision + 1)
    await anext(stream)
    await clock.advance(30)
    first, second = await anext(stream), await anext(stream)
    assert [e.key for e in first.events if isinstance(e, DeleteEvent)] == [b"/s1", b"/s2"]
    assert len({e.mod_revision for e in first.events}) == 1
    assert [e.key for e in second.events if isinstance(e, DeleteEvent)] == [b"/l"]
    await stream.aclose()


async def test_compaction_keeps_what_a_late_watch_from_its_revision_needs():
    etcd = FakeEtcd()
    store = FakeStore(etcd)
    revisions = [etcd.put(b"/k", str(n).encode()) for n in range(5)]
    etcd.compact(revisions[2])
    with pytest.raises(StoreCompacted):
        await anext(store.watch_prefix(b"/", revisions[1]))
    stream = store.watch_prefix(b"/", revisions[2])
    await anext(stream)
    events = (await anext(stream)).events
    assert [e.kv.value for e in events if isinstance(e, PutEvent)] == [b"2", b"3", b"4"]
    await stream.aclose()
    await settle()
    assert etcd.watches == 0
