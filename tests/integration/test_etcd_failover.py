"""Endpoints that are dead, frozen or without a quorum, and leaders that die."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from ipaddress import ip_address

import pytest

from pyflannel.core.errors import StoreError, StoreUnavailable
from pyflannel.core.options import EtcdOptions
from pyflannel.lab.etcdprogram import find_etcd
from pyflannel.store.etcd.base import PutEvent
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.testing.etcdserver import EtcdCluster, EtcdServer, free_ports

pytestmark = pytest.mark.slow

BINARIES = [
    pytest.param(find_etcd(), id="packaged"),
    pytest.param(find_etcd(packaged=False), id="debian"),
]


@pytest.fixture(scope="module", params=BINARIES)
def cluster(request, tmp_path_factory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("cluster"), binary=request.param) as running:
        yield running


@pytest.fixture(params=BINARIES)
def server(request, tmp_path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "etcd", binary=request.param) as running:
        yield running


def store_for(*endpoints: str, **options: float) -> EtcdStore:
    return EtcdStore(EtcdOptions(endpoints=endpoints), **options)


@asynccontextmanager
async def within(store: EtcdStore) -> AsyncIterator[None]:
    """A minute, and the store is closed."""
    try:
        async with asyncio.timeout(60):
            yield
    finally:
        await store.close()


async def test_the_store_knows_where_it_is_also_by_name(server):
    """Endpoints that are addresses from the start, those that are names once connected."""
    port = server.endpoint.rpartition(":")[2]
    store = store_for(f"http://localhost:{port}", "http://192.0.2.7:2379")
    assert store.addresses() == {ip_address("192.0.2.7")}
    async with within(store):
        await store.get(b"warm-up")
        known = store.addresses() - {ip_address("192.0.2.7")}
        assert known
        assert all(address.is_loopback for address in known)


async def test_a_dead_first_endpoint_costs_nothing_worth_noticing(server):
    (closed,) = free_ports(1)
    store = store_for(f"http://127.0.0.1:{closed}", server.endpoint)
    async with within(store):
        await store.get(b"warm-up")
        began = time.monotonic()
        await store.put(b"k", b"v")
        async with aclosing(store.watch_prefix(b"k", 1)) as stream:
            await anext(stream)
        assert time.monotonic() - began < 1


async def test_a_host_name_that_does_not_exist_is_passed_over_and_named(server):
    store = store_for("http://no-such-host.invalid:2379", server.endpoint)
    async with within(store):
        await store.get(b"k")
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable, match=r"no-such-host.invalid:2379: .*(name|answer)"):
            await store.get(b"k")


async def test_a_listener_that_never_answers_is_passed_over_within_two_seconds(server):
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        store = store_for(f"http://127.0.0.1:{mute.getsockname()[1]}", server.endpoint)
        async with within(store):
            began = time.monotonic()
            await store.get(b"k")
            assert time.monotonic() - began < 2.3
            began = time.monotonic()
            await store.get(b"k")
            assert time.monotonic() - began < 0.5, "the good one is remembered"


async def test_a_web_server_in_the_place_of_etcd_is_said_to_be_none():
    import http.server

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"<html>not here</html>")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hello) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        store = store_for(f"http://127.0.0.1:{web.server_port}")
        try:
            async with within(store):
                with pytest.raises(StoreUnavailable, match=r"HTTP 404.*not etcd's v3 JSON gateway"):
                    await store.get(b"k")
                with pytest.raises(StoreUnavailable, match=r"HTTP 404.*not etcd's v3 JSON gateway"):
                    await anext(store.watch_prefix(b"k", 1))
        finally:
            web.shutdown()
            thread.join()


async def test_all_endpoints_down_are_all_named_and_back_again_is_back_again(server):
    (closed,) = free_ports(1)
    store = store_for(f"http://127.0.0.1:{closed}", server.endpoint)
    async with within(store):
        await store.put(b"k", b"v")
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable) as caught:
            await store.get(b"k")
        assert f"127.0.0.1:{closed}: connection refused" in str(caught.value)
        assert f"{server.endpoint}: " in str(caught.value)
        await asyncio.to_thread(server.start)
        (kv,) = (await store.get(b"k")).kvs
        assert kv.value == b"v"


async def test_the_first_request_after_a_restart_of_the_server_succeeds(server):
    """Connections from before the restart are in the pool; no request fails for them."""
    store = store_for(server.endpoint)
    async with within(store):
        await asyncio.gather(*(store.get(b"k") for _ in range(4)))
        for n in range(3):
            await asyncio.to_thread(server.restart)
            await store.put(b"k", str(n).encode())
            assert (await store.get(b"k")).kvs[0].value == str(n).encode()


def id_of(member: EtcdServer) -> int:
    return int(member.post("maintenance/status", {})["header"]["member_id"])


async def test_a_watch_on_a_frozen_server_breaks_and_resumes_elsewhere_without_a_gap(cluster):
    store = store_for(*cluster.endpoints, idle=1.0)
    async with within(store):
        start = (await store.get(b"f/")).header.revision + 1
        stream = store.watch_prefix(b"f/", start)
        # Which member a store uses first is that which answered first.
        serving = (await anext(stream)).header.member_id
        frozen = next(member for member in cluster.members if id_of(member) == serving)
        others = [member for member in cluster.members if member is not frozen]
        frozen.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"silent for 1 s, and a probe failed"):
                await anext(stream)
            assert time.monotonic() - began < 4
            writer = store_for(*(member.endpoint for member in others))
            try:
                await eventually(lambda: writer.put(b"f/k", b"v"))
            finally:
                await writer.close()
            async with aclosing(store.watch_prefix(b"f/", start)) as resumed:
                events = []
                while not events:
                    events += (await anext(resumed)).events
            assert [event.kv.value for event in events if isinstance(event, PutEvent)] == [b"v"]
        finally:
            frozen.thaw()


async def test_an_idle_watch_on_a_healthy_server_stays(server):
    store = store_for(server.endpoint, idle=0.1)
    async with within(store), aclosing(store.watch_prefix(b"k", 2)) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        done, _ = await asyncio.wait({waiting}, timeout=1.0)
        assert not done, "ten probes long it says nothing and does not break"
        await store.put(b"k", b"v")
        assert len((await waiting).events) == 1


async def eventually(attempt, within: float = 15.0):
    """The result of `attempt` as soon as it has one: other errors than "unavailable" count."""
    end = time.monotonic() + within
    while True:
        try:
            return await attempt()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)


async def test_writes_go_on_within_seconds_when_the_leader_dies(cluster):
    store = store_for(*cluster.endpoints)
    async with within(store):
        await store.put(b"l/k", b"before")
        leader = await asyncio.to_thread(cluster.leader)
        leader.kill()
        try:
            began = time.monotonic()
            worst = 0.0
            for n in range(10):
                key, now = f"l/{n}".encode(), time.monotonic()
                await eventually(lambda key=key: store.put(key, b"v"))
                worst = max(worst, time.monotonic() - now)
            assert worst < 6, f"worst write took {worst:.1f} s"
            assert time.monotonic() - began < 10
            kvs = (await store.range_prefix(b"l/")).kvs
            assert len(kvs) == 11
        finally:
            await asyncio.to_thread(leader.start)


async def test_a_creation_during_an_election_is_never_reported_lost_though_it_was_ours(cluster):
    """Frozen leader, conditional write: in every case winner and store agree."""
    store = store_for(*cluster.endpoints)
    async with within(store):
        await store.get(b"warm-up")
        leader = await asyncio.to_thread(cluster.leader)
        leader.freeze()
        try:
            lease = await eventually(lambda: store.grant(60))
            for n in range(5):
                key = f"c/{n}".encode()
                await eventually(
                    lambda key=key: store.put(key, b"v", lease=lease.id, if_mod_revision=0)
                )
                (kv,) = (await store.get(key)).kvs
                assert (kv.lease, kv.version) == (lease.id, 1), "written once, by us"
        finally:
            leader.thaw()


async def test_a_member_without_a_quorum_gives_no_watch_and_no_answer(cluster):
    alone = cluster.members[0]
    store = store_for(alone.endpoint, idle=1.0)
    async with within(store):
        start = (await store.get(b"q/")).header.revision + 1
        stream = store.watch_prefix(b"q/", start)
        await anext(stream)
        for other in cluster.members[1:]:
            other.freeze()
        try:
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(anext(stream), 30)
            with pytest.raises(StoreUnavailable):
                await store.get(b"q/")
            with pytest.raises(StoreUnavailable, match=r"leader|answer"):
                await anext(store.watch_prefix(b"q/", start))
        finally:
            for other in cluster.members[1:]:
                other.thaw()
        await eventually(lambda: store.get(b"q/"))


async def test_a_wiped_server_has_the_same_cluster_id_and_only_its_revision_tells(server):
    """etcd derives the id from the members' names and addresses, and those stayed."""
    store = store_for(server.endpoint)
    async with within(store):
        before = await store.put(b"k", b"v")
        await asyncio.to_thread(server.stop)
        server.wipe()
        await asyncio.to_thread(server.start)
        after = (await store.get(b"k")).header
        assert after.revision < before.revision
        assert after.cluster_id == before.cluster_id


async def test_a_restored_server_has_the_old_cluster_and_an_older_revision(server, tmp_path):
    store = store_for(server.endpoint)
    async with within(store):
        await store.put(b"k", b"old")
        await asyncio.to_thread(server.stop)
        server.backup(tmp_path / "backup")
        await asyncio.to_thread(server.start)
        newest = await store.put(b"k", b"new")
        await asyncio.to_thread(server.stop)
        server.restore(tmp_path / "backup")
        await asyncio.to_thread(server.start)
        result = await store.get(b"k")
        assert result.kvs[0].value == b"old"
        assert result.header.revision < newest.revision
        assert result.header.cluster_id == newest.cluster_id


async def test_errors_are_store_errors_and_nothing_else_while_a_server_comes_and_goes(server):
    """Requests of every kind against a server that is killed and restarted under them."""
    store = store_for(server.endpoint)
    async with within(store):
        stop = asyncio.Event()

        async def hammer(attempt) -> int:
            good = 0
            while not stop.is_set():
                try:
                    await attempt()
                    good += 1
                except StoreError:
                    await asyncio.sleep(0.01)
            return good

        async def watch() -> None:
            async with aclosing(store.watch_prefix(b"h/", 0)) as stream:
                async for _ in stream:
                    if stop.is_set():
                        return

        async def lease() -> None:
            await store.revoke((await store.grant(60)).id)

        hammers = [
            asyncio.create_task(hammer(attempt))
            for attempt in (
                lambda: store.get(b"h/k"),
                lambda: store.put(b"h/k", b"v"),
                lambda: store.delete(b"h/k"),
                lambda: store.range_prefix(b"h/"),
                lease,
                watch,
            )
        ]
        for _ in range(3):
            await asyncio.to_thread(server.restart)
            await asyncio.sleep(0.2)
        stop.set()
        await eventually(lambda: store.put(b"h/k", b"end"))
        counts = await asyncio.gather(*hammers)
        assert all(count > 0 for count in counts[:5]), counts
