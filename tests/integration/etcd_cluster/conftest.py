"""Real etcd of each release in use, and nodes that hold a lease in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.aio.clock import SystemClock
from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs, LeasePut, LeaseTable, Snapshot
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.etcdbuild import RELEASES, etcd
from pyflannel.testing.etcdserver import EtcdError

PREFIX = "/coreos.com/network"
NETWORK = IPv4Network("10.0.0.0/8")
CONFIG = b'{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw"}}'
WITHIN_S = 90.0
"""For what a test does once its servers run."""


TRIED = RELEASES if os.environ.get("PYFLANNEL_ALL_ETCDS") else RELEASES[-1:]
"""`make system` tries all releases, `make test` the newest."""


@pytest.fixture(params=TRIED, scope="session")
def binary(request) -> Path:
    """The etcd program of one release."""
    try:
        return etcd(request.param)
    except EtcdError as error:
        pytest.skip(str(error))


class Node:
    """The store side of one node: a lease that is kept, and what it sees of the others."""

    def __init__(self, state: Path, endpoints: tuple[str, ...], number: int, **etcd: Any) -> None:
        self.store = EtcdStore(EtcdOptions(endpoints=endpoints, prefix=PREFIX, **etcd))
        self.manager = EtcdLeaseStore(
            self.store,
            PREFIX,
            kinds=KINDS,
            clock=SystemClock(),
            record=LeaseRecord(str(state), PREFIX),
        )
        self.attrs = LeaseAttrs(public_ip=IPv4Address(f"192.0.2.{number}"), backend_type="host-gw")
        self.table = LeaseTable(network=NETWORK, network6=None)
        """The peers, as a daemon has them."""
        self.seen: dict[SubnetKey, Lease] = {}
        """What etcd has."""
        self.ended: list[BaseException | None] = []

    async def start(self) -> None:
        await self.manager.network_config()
        await self.manager.acquire(self.attrs)

    @property
    def key(self) -> bytes:
        assert self.manager.lease is not None
        return codec.lease_key(PREFIX, self.manager.lease.key)

    async def watch(self) -> None:
        async for update in self.manager.watch_leases():
            for number, part in enumerate(self.table.parts(update)):
                if number:
                    await asyncio.sleep(0)
                self.table.apply(part)
            if isinstance(update, Snapshot):
                self.seen = {}
                for n, lease in enumerate(update.leases):
                    self.seen[lease.key] = lease
                    if n % 500 == 0:
                        await asyncio.sleep(0)
                continue
            for event in update.events:
                if isinstance(event, LeasePut):
                    self.seen[event.lease.key] = event.lease
                else:
                    self.seen.pop(event.key, None)

    async def keep(self) -> None:
        async for _ in self.manager.keep():
            pass


@contextlib.asynccontextmanager
async def running(node: Node) -> AsyncIterator[Node]:
    """A node with its lease, watched and kept; neither may end by itself."""
    tasks: list[asyncio.Task[None]] = []
    try:
        await node.start()
        tasks = [asyncio.create_task(node.watch()), asyncio.create_task(node.keep())]
        yield node
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await node.store.close()


async def until(what: str, true: Callable[[], Any], within: float) -> float:
    """Waits until something is true, and gives how long that took."""
    start = time.monotonic()
    while not true():
        passed = time.monotonic() - start
        assert passed < within, f"{what}: not within {within:g} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - start
