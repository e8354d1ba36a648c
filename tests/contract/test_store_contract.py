"""One suite over every `Store`: the fake one, and the real one on each etcd that we support."""

from __future__ import annotations

import asyncio
import itertools
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Protocol

import pytest

from pyflannel.core.errors import (
    StoreCompacted,
    StoreConflict,
    StoreLeaseNotFound,
    StoreUnavailable,
)
from pyflannel.core.options import EtcdOptions
from pyflannel.lab.etcdprogram import find_etcd
from pyflannel.store.etcd.base import DeleteEvent, PutEvent, Store, WatchResponse
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.testing.etcdserver import EtcdServer
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore
from tests.support.stores import closing

DEADLINE_S = 10.0
"""For anything that a healthy store does at once."""
MIN_TTL_S = 2


class World(Protocol):
    """A cluster to make stores for, and what only other clients of it (or time) can do."""

    def store(self) -> Store: ...
    def put_all(self, pairs: Mapping[bytes, bytes]) -> int: ...
    def compact(self) -> int: ...
    async def pass_time(self, seconds: float) -> None: ...
    async def restart(self) -> None: ...


class FakeWorld:
    def __init__(self) -> None:
        self._etcd = FakeEtcd()
        self.put_all = self._etcd.put_all
        self.compact = self._etcd.compact
        self.pass_time = self._etcd.clock.advance

    def store(self) -> Store:
        return FakeStore(self._etcd)

    async def restart(self) -> None:
        self._etcd.restart()


class RealWorld:
    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self.put_all = server.put_all
        self.compact = server.compact

    def store(self) -> Store:
        return EtcdStore(EtcdOptions(endpoints=(self._server.endpoint,)))

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.restart)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], EtcdServer]]:
    """Starts each etcd at its first use."""
    running: dict[str, EtcdServer] = {}

    def server(which: str) -> EtcdServer:
        if which not in running:
            binary = find_etcd(packaged=which == "packaged")
            assert binary is not None, f"no {which} etcd on this machine"
            running[which] = EtcdServer(tmp_path_factory.mktemp("etcd") / which, binary=binary)
            running[which].start()
        return running[which]

    yield server
    for one in running.values():
        one.stop()


@pytest.fixture(
    params=[
        "fake",
        pytest.param("packaged", marks=pytest.mark.slow, id="etcd-packaged"),
        pytest.param("debian", marks=pytest.mark.slow, id="etcd-debian"),
    ]
)
def world(request: pytest.FixtureRequest, servers: Callable[[str], EtcdServer]) -> World:
    return FakeWorld() if request.param == "fake" else RealWorld(servers(request.param))


KEY = b"/coreos.com/network/config"
_counter = itertools.count()


@pytest.fixture
def prefix() -> bytes:
    """Keys of this test alone, for the real servers are shared."""
    return f"/contract-{next(_counter)}/".encode()


def opened(world: World) -> AbstractAsyncContextManager[Store]:
    """A store of the test's own."""
    return closing(world.store(), within=60)


@pytest.fixture
def store(world):
    return opened(world)


async def responses(
    stream: AsyncIterator[WatchResponse], events: int
) -> list[PutEvent | DeleteEvent]:
    """The next so many events of a watch."""
    seen: list[PutEvent | DeleteEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < events:
            seen += (await anext(stream)).events
    return seen


async def confirmed(stream: AsyncIterator[WatchResponse]) -> WatchResponse:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(stream)


async def test_a_key_that_does_not_exist_is_an_empty_result_with_a_header(store, world, prefix):
    result = await store.get(prefix + b"none")
    assert list(result.kvs) == []
    assert result.header.revision >= 1
    assert result.header.cluster_id != 0


async def test_what_was_put_is_got_with_its_revision_version_and_lease(store, world, prefix):
    lease = await store.grant(60)
    first = await store.put(prefix + b"k", b"\x00\xffone", lease=lease.id)
    second = await store.put(prefix + b"k", b"two")
    assert second.revision == first.revision + 1
    (kv,) = (await store.get(prefix + b"k")).kvs
    assert (kv.key, kv.value) == (prefix + b"k", b"two")
    assert (kv.mod_revision, kv.version, kv.lease) == (second.revision, 2, 0)
    await store.put(prefix + b"k", b"three", lease=lease.id)
    (kv,) = (await store.get(prefix + b"k")).kvs
    assert (kv.version, kv.lease) == (3, lease.id)


async def test_a_prefix_gives_its_keys_sorted_and_no_siblings(store, world, prefix):
    for name in (b"subnets/b", b"subnets/a", b"subnets/a&x", b"subnets2/c", b"subnets", b"t"):
        await store.put(prefix + name, name)
    result = await store.range_prefix(prefix + b"subnets/")
    assert [kv.value for kv in result.kvs] == [b"subnets/a", b"subnets/a&x", b"subnets/b"]
    assert result.header.revision >= max(kv.mod_revision for kv in result.kvs)


async def test_an_empty_value_is_a_value(store, world, prefix):
    await store.put(prefix + b"k", b"")
    (kv,) = (await store.get(prefix + b"k")).kvs
    assert kv.value == b""


async def test_a_key_is_created_once(store, world, prefix):
    header = await store.put(prefix + b"k", b"mine", if_mod_revision=0)
    with pytest.raises(StoreConflict):
        await store.put(prefix + b"k", b"theirs", if_mod_revision=0)
    (kv,) = (await store.get(prefix + b"k")).kvs
    assert (kv.value, kv.mod_revision) == (b"mine", header.revision)


async def test_of_many_who_create_the_same_key_one_wins(store, world, prefix):
    tries = [store.put(prefix + b"k", str(n).encode(), if_mod_revision=0) for n in range(8)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    winners = [n for n, result in enumerate(results) if not isinstance(result, StoreConflict)]
    assert len(winners) == 1
    (kv,) = (await store.get(prefix + b"k")).kvs
    assert kv.value == str(winners[0]).encode()


async def test_a_write_under_a_condition_needs_the_very_revision(store, world, prefix):
    first = await store.put(prefix + b"k", b"1")
    second = await store.put(prefix + b"k", b"2", if_mod_revision=first.revision)
    assert second.revision > first.revision
    with pytest.raises(StoreConflict):
        await store.put(prefix + b"k", b"3", if_mod_revision=first.revision)
    with pytest.raises(StoreConflict):
        await store.put(prefix + b"other", b"3", if_mod_revision=second.revision)
    assert (await store.get(prefix + b"k")).kvs[0].value == b"2"
    assert not (await store.get(prefix + b"other")).kvs


@pytest.mark.parametrize("condition", [None, 0])
async def test_a_write_on_a_lease_that_does_not_exist_writes_nothing(
    store, world, prefix, condition
):
    with pytest.raises(StoreLeaseNotFound):
        await store.put(prefix + b"k", b"v", lease=4711, if_mod_revision=condition)
    assert not (await store.get(prefix + b"k")).kvs


async def test_a_deletion_tells_whether_the_key_was_there(store, world, prefix):
    await store.put(prefix + b"k", b"v")
    assert await store.delete(prefix + b"k") is True
    assert await store.delete(prefix + b"k") is False
    assert not (await store.get(prefix + b"k")).kvs


async def test_a_deletion_under_a_condition_spares_a_key_that_changed(store, world, prefix):
    old = await store.put(prefix + b"k", b"1")
    new = await store.put(prefix + b"k", b"2")
    assert await store.delete(prefix + b"k", if_mod_revision=old.revision) is False
    assert await store.delete(prefix + b"k", if_mod_revision=0) is False
    assert (await store.get(prefix + b"k")).kvs
    assert await store.delete(prefix + b"k", if_mod_revision=new.revision) is True
    assert await store.delete(prefix + b"k", if_mod_revision=new.revision) is False


async def test_a_lease_can_be_looked_at_and_renewed(store, world, prefix):
    lease = await store.grant(86400)
    assert lease.id > 0
    assert lease.granted_ttl == lease.ttl == 86400
    await store.put(prefix + b"b", b"v", lease=lease.id)
    await store.put(prefix + b"a", b"v", lease=lease.id)
    status = await store.time_to_live(lease.id)
    assert 86390 < status.ttl <= 86400
    assert (status.id, status.granted_ttl, list(status.keys)) == (lease.id, 86400, [])
    status = await store.time_to_live(lease.id, keys=True)
    assert sorted(status.keys) == [prefix + b"a", prefix + b"b"]
    assert await store.keepalive(lease.id) == 86400


async def test_the_server_may_give_a_longer_lease_than_asked_for(store, world):
    lease = await store.grant(1)
    assert lease.granted_ttl == lease.ttl == MIN_TTL_S
    await store.revoke(lease.id)


async def test_a_lease_that_does_not_exist_has_a_ttl_of_minus_one(store, world):
    status = await store.time_to_live(4711, keys=True)
    assert (status.id, status.ttl, status.granted_ttl) == (4711, -1, 0)
    assert list(status.keys) == []
    with pytest.raises(StoreLeaseNotFound):
        await store.keepalive(4711)


async def test_a_revoked_lease_takes_its_keys_along_and_may_be_revoked_again(store, world, prefix):
    lease = await store.grant(60)
    await store.put(prefix + b"k", b"v", lease=lease.id)
    await store.put(prefix + b"moved", b"v", lease=lease.id)
    await store.put(prefix + b"moved", b"v")
    await store.revoke(lease.id)
    await store.revoke(lease.id)
    assert [kv.key for kv in (await store.range_prefix(prefix)).kvs] == [prefix + b"moved"]
    assert (await store.time_to_live(lease.id)).ttl == -1


async def test_a_lease_that_expires_deletes_its_keys_and_the_watch_says_so(store, world, prefix):
    lease = await store.grant(MIN_TTL_S)
    put = await store.put(prefix + b"k", b"v", lease=lease.id)
    async with aclosing(store.watch_prefix(prefix, put.revision + 1)) as stream:
        await confirmed(stream)
        await world.pass_time(MIN_TTL_S / 2)
        await store.keepalive(lease.id)
        await world.pass_time(MIN_TTL_S * 3 / 4)
        assert (await store.get(prefix + b"k")).kvs, "renewed, so it is still there"
        await world.pass_time(MIN_TTL_S * 3 / 4)
        (event,) = await responses(stream, 1)
    assert event == DeleteEvent(key=prefix + b"k", mod_revision=event.mod_revision)
    assert event.mod_revision > put.revision
    assert (await store.time_to_live(lease.id)).ttl == -1


async def test_a_watch_confirms_first_and_then_gives_every_event_from_its_revision_on(
    store, world, prefix
):
    await store.put(prefix + b"before", b"not seen")
    old = await store.put(prefix + b"k", b"1")
    async with aclosing(store.watch_prefix(prefix, old.revision)) as stream:
        first = await confirmed(stream)
        assert first.header.cluster_id == old.cluster_id
        assert first.header.revision >= old.revision
        seen = await responses(stream, 1) if not first.events else list(first.events)
        new = await store.put(prefix + b"k", b"2")
        await store.delete(prefix + b"k")
        seen += await responses(stream, 2)
    assert [event.mod_revision for event in seen] == [
        old.revision,
        new.revision,
        new.revision + 1,
    ]
    assert isinstance(seen[1], PutEvent)
    assert (seen[1].kv.value, seen[1].kv.version) == (b"2", 2)
    assert seen[2] == DeleteEvent(key=prefix + b"k", mod_revision=new.revision + 1)


async def test_a_watch_sees_nothing_of_siblings(store, world, prefix):
    start = (await store.get(prefix)).header.revision + 1
    async with aclosing(store.watch_prefix(prefix + b"subnets/", start)) as stream:
        await confirmed(stream)
        for name in (b"subnets2/x", b"subnets", b"config", b"subnets/real"):
            await store.put(prefix + name, b"v")
        (event,) = await responses(stream, 1)
    assert isinstance(event, PutEvent)
    assert event.kv.key == prefix + b"subnets/real"


async def test_the_events_of_one_transaction_come_in_one_response(store, world, prefix):
    """Older releases of upstream took only the first event of a response: 1 of 100 leases."""
    start = (await store.get(prefix)).header.revision + 1
    pairs = {prefix + f"k{n:03}".encode(): str(n).encode() for n in range(100)}
    async with aclosing(store.watch_prefix(prefix, start)) as stream:
        await confirmed(stream)
        revision = world.put_all(pairs)
        async with asyncio.timeout(DEADLINE_S):
            response = await anext(stream)
    assert len(response.events) == 100
    assert {event.mod_revision for event in response.events} == {revision}
    assert {
        event.kv.key: event.kv.value for event in response.events if isinstance(event, PutEvent)
    } == pairs


async def test_history_that_was_compacted_is_said_to_be_gone_and_from_where_it_exists(
    store, world, prefix
):
    old = await store.put(prefix + b"k", b"1")
    await store.put(prefix + b"k", b"2")
    compacted = world.compact()
    with pytest.raises(StoreCompacted) as caught:
        async with aclosing(store.watch_prefix(prefix, old.revision)) as stream:
            await responses(stream, 1)
    assert caught.value.compact_revision == compacted
    async with aclosing(store.watch_prefix(prefix, compacted + 1)) as stream:
        await confirmed(stream)
        await store.put(prefix + b"k", b"3")
        (event,) = await responses(stream, 1)
    assert isinstance(event, PutEvent)
    assert event.kv.value == b"3"


async def test_a_compaction_does_not_disturb_a_watch_that_is_up_to_date(store, world, prefix):
    put = await store.put(prefix + b"k", b"1")
    async with aclosing(store.watch_prefix(prefix, put.revision + 1)) as stream:
        await confirmed(stream)
        await store.put(prefix + b"k", b"2")
        await responses(stream, 1)
        world.compact()
        await store.put(prefix + b"k", b"3")
        assert len(await responses(stream, 1)) == 1


async def test_a_watch_from_the_future_is_confirmed_with_the_servers_real_revision(
    store, world, prefix
):
    """So a caller notices an etcd that was restored from a backup."""
    now = (await store.get(prefix)).header.revision
    async with aclosing(store.watch_prefix(prefix, now + 1000)) as stream:
        first = await confirmed(stream)
        assert first.header.revision < now + 1000
        assert not first.events
        await store.put(prefix + b"k", b"v")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(stream)


async def test_watches_of_one_store_do_not_disturb_each_other(store, world, prefix):
    start = (await store.get(prefix)).header.revision + 1
    async with (
        aclosing(store.watch_prefix(prefix + b"a", start)) as one,
        aclosing(store.watch_prefix(prefix + b"b", start)) as two,
    ):
        await confirmed(one)
        await confirmed(two)
        await store.put(prefix + b"b", b"v")
        await store.put(prefix + b"a", b"v")
        (event,) = await responses(one, 1)
        assert isinstance(event, PutEvent)
        assert event.kv.key == prefix + b"a"
        (event,) = await responses(two, 1)
        assert isinstance(event, PutEvent)
        assert event.kv.key == prefix + b"b"


async def test_a_watch_breaks_with_the_server_and_loses_and_doubles_nothing_when_resumed(
    store, world, prefix
):
    cursor = (await store.get(prefix)).header.revision + 1
    seen: list[bytes] = []
    written: list[bytes] = []
    for round_ in range(2):
        async with aclosing(store.watch_prefix(prefix, cursor)) as stream:
            await confirmed(stream)
            for n in range(5):
                written.append(f"{round_}-{n}".encode())
                await store.put(prefix + b"k", written[-1])
            for event in await responses(stream, 5 if round_ == 0 else 8):
                assert isinstance(event, PutEvent)
                seen.append(event.kv.value)
                cursor = event.mod_revision + 1
            if round_ == 0:
                await world.restart()
                with pytest.raises(StoreUnavailable):
                    await responses(stream, 1)
                for n in range(3):
                    written.append(f"between-{n}".encode())
                    await store.put(prefix + b"k", written[-1])
    assert seen == written


async def test_a_cancelled_watch_ends_quietly(store, world, prefix):
    ready = asyncio.Event()
    start = (await store.get(prefix)).header.revision + 1
    task = asyncio.create_task(watch_from(store, prefix, start, ready))
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def watch_from(store: Store, prefix: bytes, start: int, ready: asyncio.Event) -> None:
    async with aclosing(store.watch_prefix(prefix, start)) as stream:
        async for _ in stream:
            ready.set()


async def test_closing_breaks_watches_and_ends_requests_and_may_be_done_twice(store, world, prefix):
    start = (await store.get(prefix)).header.revision + 1
    stream = store.watch_prefix(prefix, start)
    await confirmed(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(waiting, 1)
    with pytest.raises(StoreUnavailable):
        await store.get(prefix)
    with pytest.raises(StoreUnavailable):
        await anext(store.watch_prefix(prefix, start))


async def test_a_store_says_where_it_is(store, world):
    assert "://" in store.describe()


def test_the_two_etcds_are_what_they_are_called() -> None:
    """Otherwise the suite would run twice over the same one."""
    packaged, debian = find_etcd(), find_etcd(packaged=False)
    assert packaged is not None
    assert debian == Path("/usr/bin/etcd")
    assert packaged != debian


async def test_without_the_v2_api_nothing_is_known_of_its_keys(store, world, prefix):
    assert await store.holds_v2(prefix + b"config") is None


@pytest.mark.slow
async def test_the_v2_api_is_another_store(tmp_path):
    """Debian's etcd is of 3.4, the last but one that has it."""
    binary = find_etcd(packaged=False)
    assert binary is not None
    with EtcdServer(tmp_path / "etcd", binary=binary, options=["--enable-v2"]) as server:
        store = EtcdStore(EtcdOptions(endpoints=(server.endpoint,)))
        try:
            assert await store.holds_v2(KEY) is False
            await store.put(KEY, b"{}")
            assert await store.holds_v2(KEY) is False
            request = urllib.request.Request(
                f"{server.endpoint}/v2/keys{KEY.decode()}", b"value=%7B%7D", method="PUT"
            )
            await asyncio.to_thread(lambda: urllib.request.urlopen(request).close())
            assert await store.holds_v2(KEY) is True
            await asyncio.to_thread(server.stop)
            assert await store.holds_v2(KEY) is None
        finally:
            await store.close()
