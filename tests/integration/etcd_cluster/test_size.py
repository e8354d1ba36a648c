"""Many keys and large values below `subnets/`: ready, followed, and nothing else stands still."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator

import pytest

from pyflannel.core.ip import parse_subnet_key
from pyflannel.store.etcd import codec
from pyflannel.testing.etcdserver import EtcdServer
from tests.integration.etcd_cluster.conftest import CONFIG, PREFIX, Node, play, running, until

pytestmark = pytest.mark.slow

PEER = b'{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"host-gw"}'
BELOW = codec.subnets_prefix(PREFIX)
LONGEST_TURN_S = 0.05
"""Of CPU time, which does not depend on who else uses the machine."""


@pytest.fixture
def server(binary, tmp_path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "etcd", binary=binary) as running_server:
        running_server.put(codec.config_key(PREFIX), CONFIG)
        yield running_server


@pytest.fixture
def turns(monkeypatch) -> list[float]:
    """CPU seconds of the longest turn of the event loop so far."""
    longest = [0.0]
    run = asyncio.events.Handle._run

    def timed(handle):
        before = time.thread_time()
        try:
            return run(handle)
        finally:
            longest[0] = max(longest[0], time.thread_time() - before)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    return longest


def fill(server: EtcdServer, count: int) -> None:
    """Leases, and as many keys that are none."""
    for start in range(0, count, 60):
        numbers = range(start, min(start + 60, count))
        names = [f"10.{64 + n // 256}.{n % 256}.0-24" for n in numbers]
        server.put_all(
            {BELOW + name.encode(): PEER for name in names}
            | {BELOW + f"no lease {name}".encode(): PEER for name in names}
        )


def test_many_leases(server, tmp_path, turns):
    async def scenario():
        await asyncio.to_thread(fill, server, 16_000)
        turns[0] = 0.0
        start = time.monotonic()
        node = Node(tmp_path / "state", (server.endpoint,), 1)
        async with running(node):
            await until("the snapshot", lambda: len(node.seen) >= 16_000, 45)
            print("ready after", time.monotonic() - start, "longest turn", turns[0])
            assert turns[0] < LONGEST_TURN_S
            await asyncio.to_thread(server.put, BELOW + b"10.0.250.0-24", PEER)
            key = parse_subnet_key("10.0.250.0-24")
            await until("a new peer", lambda: key in node.seen, 5)

    play(scenario(), within=150)


def test_many_large_values(server, tmp_path, turns):
    """A hundred of a megabyte are passed over; the good lease among them is there."""

    async def scenario():
        large = b'{"PublicIP":"192.0.2.9","BackendData":"' + b"x" * 1_000_000 + b'"}'
        for n in range(100):
            await asyncio.to_thread(server.put, BELOW + b"10.0.%d.0-24" % n, large)
        await asyncio.to_thread(server.put, BELOW + b"10.0.250.0-24", PEER)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        turns[0] = 0.0
        node = Node(tmp_path / "state", (server.endpoint,), 1)
        async with running(node):
            key = parse_subnet_key("10.0.250.0-24")
            await until("the good one", lambda: key in node.seen, 30)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print("longest turn", turns[0], "grown KiB", grown)
            assert turns[0] < LONGEST_TURN_S
            assert grown < 128 * 1024

    play(scenario(), within=150)


def test_a_large_value_that_is_written_again_and_again_holds_nobody_up(server, tmp_path, turns):
    async def scenario():
        large = b'{"PublicIP":"192.0.2.9","BackendData":"' + b"x" * 1_400_000 + b'"}'
        node = Node(tmp_path / "state", (server.endpoint,), 1)
        async with running(node):
            await until("the snapshot", lambda: node.seen, 5)
            turns[0] = 0.0
            for n in range(20):
                await asyncio.to_thread(server.put, BELOW + b"10.0.9.0-24", large)
                name = b"10.0.%d.0-24" % (100 + n)
                await asyncio.to_thread(server.put, BELOW + name, PEER)
                key = parse_subnet_key(name.decode())
                await until("the peer beside it", lambda key=key: key in node.seen, 3)
            print("longest turn", turns[0])
            assert turns[0] < LONGEST_TURN_S
            assert node.manager.report().reconnects == 0

    play(scenario())
