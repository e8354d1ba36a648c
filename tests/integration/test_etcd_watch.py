"""The watch against real servers: big messages, bursts, slow readers, and what is left after it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import pytest

from pyflannel.core.errors import StoreCompacted, StoreConflict, StoreUnavailable
from pyflannel.core.options import EtcdOptions
from pyflannel.lab.etcdprogram import find_etcd
from pyflannel.store.etcd.base import PutEvent
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.testing.etcdserver import EtcdServer
from tests.support.coroutines import on_both_loops
from tests.support.stores import closing

pytestmark = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(find_etcd(), id="packaged"),
        pytest.param(find_etcd(packaged=False), id="debian"),
    ],
)
def server(request, tmp_path_factory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), binary=request.param) as running:
        yield running


def opened(server: EtcdServer, *, idle: float = 5.0) -> AbstractAsyncContextManager[EtcdStore]:
    return closing(EtcdStore(EtcdOptions(endpoints=(server.endpoint,)), idle=idle), within=60)


@pytest.fixture
def store(server):
    return opened(server)


async def events(stream, count: int) -> list:
    seen: list = []
    while len(seen) < count:
        seen += (await anext(stream)).events
    return seen


@on_both_loops
async def test_a_response_larger_than_any_line_buffer_arrives_whole(store, server):
    """One transaction of 2 MiB: base64 makes a line of 2.7 MiB, far above aiohttp's 512 KiB."""
    pairs = {f"/big/{n:02}".encode(): os.urandom(64 * 1024) for n in range(20)}

    start = (await store.get(b"/big")).header.revision + 1
    async with aclosing(store.watch_prefix(b"/big/", start)) as stream:
        await anext(stream)
        await asyncio.to_thread(server.put_all, pairs)
        response = await anext(stream)
    assert {e.kv.key: e.kv.value for e in response.events} == pairs


@on_both_loops
async def test_a_burst_of_a_thousand_leases_arrives_complete_and_in_order(store, server):
    start = (await store.get(b"/burst")).header.revision + 1
    value = b'{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan"}'
    async with aclosing(store.watch_prefix(b"/burst/", start)) as stream:
        await anext(stream)

        def write() -> None:
            for batch in range(10):
                keys = (f"/burst/{batch}-{n}".encode() for n in range(100))
                server.put_all(dict.fromkeys(keys, value))

        writing = asyncio.ensure_future(asyncio.to_thread(write))
        seen = await events(stream, 1000)
        await writing
    assert len(seen) == 1000
    assert len({e.kv.key for e in seen}) == 1000
    revisions = [e.mod_revision for e in seen]
    assert revisions == sorted(revisions)


async def test_a_reader_that_is_slow_loses_nothing(store, server):
    start = (await store.get(b"/slow")).header.revision + 1
    async with aclosing(store.watch_prefix(b"/slow/", start)) as stream:
        await anext(stream)
        for n in range(30):
            await asyncio.to_thread(
                server.put_all,
                {f"/slow/{n}-{m}".encode(): bytes(16 * 1024) for m in range(10)},
            )
        seen = await events(stream, 300)
    assert len({e.kv.key for e in seen}) == 300


async def test_history_is_delivered_from_the_start_revision_on(store, server):
    start = (await store.get(b"/old")).header.revision + 1
    for n in range(50):
        await store.put(b"/old/k", str(n).encode())
    async with aclosing(store.watch_prefix(b"/old/", start)) as stream:
        seen = await events(stream, 50)
    assert [e.kv.value for e in seen] == [str(n).encode() for n in range(50)]
    assert all(isinstance(e, PutEvent) for e in seen)


async def test_a_watch_resumed_after_kills_has_every_write_once(store, server):
    """Five kills under a writer; who resumes at the last event's revision + 1 misses nothing."""
    cursor = (await store.get(b"/kill")).header.revision + 1
    written: list[bytes] = []

    async def write_once(value: bytes, revision: int) -> int:
        """Writes as a careful client does: only if nothing else happened to the key."""
        while True:
            try:
                header = await store.put(b"/kill/k", value, if_mod_revision=revision)
                return header.revision
            except StoreUnavailable:
                await asyncio.sleep(0.02)
            except StoreConflict:
                # A former attempt got through after all.
                with contextlib.suppress(StoreUnavailable):
                    (kv,) = (await store.get(b"/kill/k")).kvs
                    assert kv.value == value
                    return kv.mod_revision

    async def write() -> None:
        revision = 0
        for n in range(60):
            written.append(str(n).encode())
            revision = await write_once(written[-1], revision)
            await asyncio.sleep(0.01)

    async def kill() -> None:
        for _ in range(5):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.restart)

    tasks = [asyncio.create_task(write()), asyncio.create_task(kill())]
    seen: list[bytes] = []
    while len(seen) < 60:
        try:
            async with aclosing(store.watch_prefix(b"/kill/", cursor)) as stream:
                async for response in stream:
                    for event in response.events:
                        seen.append(event.kv.value)
                        cursor = event.mod_revision + 1
                    if len(seen) >= 60:
                        break
        except StoreUnavailable:
            await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    assert seen == written


async def test_compaction_while_away_is_told_and_a_list_leads_on(store, server):
    cursor = (await store.put(b"/comp/k", b"0")).revision + 1
    for n in range(5):
        await store.put(b"/comp/k", str(n).encode())
    await asyncio.to_thread(server.compact)
    with pytest.raises(StoreCompacted) as caught:
        async with aclosing(store.watch_prefix(b"/comp/", cursor)) as stream:
            await events(stream, 1)
    listed = await store.range_prefix(b"/comp/")
    assert listed.header.revision >= caught.value.compact_revision
    async with aclosing(store.watch_prefix(b"/comp/", listed.header.revision + 1)) as stream:
        await anext(stream)
        await store.put(b"/comp/k", b"after")
        (event,) = await events(stream, 1)
    assert event.kv.value == b"after"


def sockets() -> set[str]:
    """This process's sockets, by inode."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return {target for target in found if target.startswith("socket")}


@on_both_loops
async def test_nothing_is_left_after_close(server):
    """No thread, no socket, no task; warnings about unclosed ones are errors here."""
    before = sockets()
    threads = set(threading.enumerate())

    async with opened(server) as store:
        for _ in range(3):
            stream = store.watch_prefix(b"/leak/", 0)
            await anext(stream)
            await asyncio.gather(*(store.get(b"/leak/k") for _ in range(8)))
        kept = store.watch_prefix(b"/leak/", 0)
        waiting = asyncio.ensure_future(anext(kept))
        await asyncio.sleep(0)
        del stream
        await store.close()
        with pytest.raises(StoreUnavailable):
            await waiting
    gc.collect()
    assert set(threading.enumerate()) <= threads
    assert sockets() <= before


async def test_closing_does_not_wait_for_a_frozen_server(store, server):
    await store.get(b"/k")
    server.freeze()
    try:
        pending = [asyncio.ensure_future(store.get(b"/k")) for _ in range(3)]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await store.close()
        assert time.monotonic() - began < 0.3
        results = await asyncio.gather(*pending, return_exceptions=True)
        assert all(isinstance(result, StoreUnavailable) for result in results)
    finally:
        server.thaw()


def test_a_program_that_is_stuck_with_a_frozen_server_can_end(server, tmp_path):
    """The threads are daemons: not even a connection that cannot be made holds up the exit."""
    script = tmp_path / "stuck.py"
    script.write_text(
        "import asyncio, sys, time\n"
        "from pyflannel.core.options import EtcdOptions\n"
        "from pyflannel.store.etcd.store import EtcdStore\n"
        "async def main():\n"
        "    store = EtcdStore(EtcdOptions(endpoints=(sys.argv[1],)))\n"
        "    task = asyncio.ensure_future(store.get(b'k'))\n"
        "    await asyncio.sleep(0.3)\n"
        "    task.cancel()\n"
        "    print(time.monotonic(), flush=True)\n"
        "asyncio.run(main())\n"
    )
    server.freeze()
    try:
        done = subprocess.run(
            [sys.executable, str(script), server.endpoint],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert time.monotonic() - float(done.stdout) < 1.0
        assert done.stderr == ""
    finally:
        server.thaw()


async def test_after_reconnect_requests_work_and_open_watches_end_at_once(store, server):
    """What an address change of ours breaks without a word is given up instead of waited for."""
    start = (await store.put(b"/moved/k", b"1")).revision + 1
    async with aclosing(store.watch_prefix(b"/moved/", start)) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        store.reconnect("another address")
        with pytest.raises(StoreUnavailable, match="another address"):
            async with asyncio.timeout(1.0):
                await waiting
    assert (await store.get(b"/moved/k")).kvs[0].value == b"1"
    async with aclosing(store.watch_prefix(b"/moved/", start)) as stream:
        await anext(stream)
        await store.put(b"/moved/k", b"2")
        assert [event.kv.value for event in await events(stream, 1)] == [b"2"]


async def test_two_silent_watches_ask_their_member_together(server):
    """A node has two; they were most of what a cluster at rest cost etcd."""

    def asked() -> float:
        name = 'grpc_server_started_total{grpc_method="Status"'
        return sum(n for key, n in server.metrics().items() if key.startswith(name))

    async with opened(server, idle=0.5) as store:
        start_at = (await store.get(b"one")).header.revision + 1
        async with (
            aclosing(store.watch_prefix(b"one", start_at)) as one,
            aclosing(store.watch_prefix(b"other", start_at)) as other,
        ):
            await anext(one)
            await asyncio.sleep(0.25)
            await anext(other)
            waiting = [asyncio.ensure_future(anext(stream)) for stream in (one, other)]
            before, start = await asyncio.to_thread(asked), time.monotonic()
            await asyncio.sleep(5)
            passed = time.monotonic() - start
            made = await asyncio.to_thread(asked) - before
            assert not any(task.done() for task in waiting)
            assert 0 < made <= passed / 0.5 + 1
            await store.put(b"one", b"v")
            await store.put(b"other", b"v")
            await asyncio.gather(*waiting)
