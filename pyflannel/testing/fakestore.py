"""A client of an etcd in memory (`fakeetcd.py`), and troubles on demand between the two.

Several can share a cluster, one for each node of a test. The troubles of a client are `down`,
`freeze`, `fail_next` and `refuse`. What it shares with a real store is proved by the contract
suite, which runs over both.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Final

from pyflannel.core.errors import StoreConflict, StoreError, StoreLeaseNotFound, StoreUnavailable
from pyflannel.core.ip import IPAddress
from pyflannel.records import dataclass
from pyflannel.store.etcd.base import Header, LeaseStatus, RangeResult, Server, WatchResponse
from pyflannel.testing.fakeclock import FakeClock, Timer
from pyflannel.testing.fakeetcd import FakeEtcd, Watcher, small

ANSWER_S: Final = 1.5
"""How long a request to a frozen etcd takes to fail, as in the real store."""
NOTICE_S: Final = 6.5
"""How long a watch on a frozen etcd takes to fail: silence, then a probe that fails."""


@dataclass(slots=True)
class _Trouble:
    error: StoreError
    carried_out: bool


class FakeStore:
    """One client of a `FakeEtcd`; a `Store`.

    Args:
        etcd: the cluster; one of its own if not given.
    """

    def __init__(self, etcd: FakeEtcd | None = None, *, clock: FakeClock | None = None) -> None:
        self.etcd = etcd if etcd is not None else FakeEtcd(clock)
        self.calls: list[str] = []
        """Names of the methods called, in order."""
        self.reconnected: list[str] = []
        """Why connections were to be made anew."""
        self.told = Server()
        """What it says of itself."""
        self.v2: set[bytes] | None = None
        """Keys in the store of the v2 API; `None` if etcd does not serve it."""
        self._troubles: defaultdict[str, deque[_Trouble]] = defaultdict(deque)
        self._before: defaultdict[str, deque[Callable[[], None]]] = defaultdict(deque)
        self._refused: dict[str, StoreError] = {}
        self._watchers: dict[Watcher, Timer | None] = {}
        self.expected = 0
        """What `expect_cluster` was told."""
        self.is_stranger = False
        """As in `Store`; a test sets it."""
        self._down = False
        self._frozen = False
        self._closed = False

    def down(self) -> None:
        """Etcd cannot be reached: requests fail at once, watches break."""
        self._down = True
        for watcher in list(self._watchers):
            watcher.end(StoreUnavailable("watch: connection refused", kind="refused"))

    def freeze(self) -> None:
        """Etcd accepts connections and never answers: everything fails, after a while."""
        self._frozen = True
        error = StoreUnavailable("watch: silent, and a probe failed", kind="silent")
        for watcher in self._watchers:
            watcher.hold(held=True)
            self._watchers[watcher] = self.etcd.clock.call_at(
                self.etcd.clock.monotonic() + NOTICE_S, partial(watcher.end, error)
            )

    def up(self) -> None:
        """Ends `down` and `freeze`; a frozen watch that was not given up yet goes on."""
        self._down = self._frozen = False
        for watcher, timer in self._watchers.items():
            if timer is not None:
                timer.cancel()
            watcher.hold(held=False)
            self._watchers[watcher] = None

    def fail_next(self, operation: str, error: StoreError, *, carried_out: bool = False) -> None:
        """Has the next call of a method (`"put"`, …) raise; several calls queue up.

        Args:
            carried_out: the request takes effect all the same, as when only its answer was lost.
        """
        self._troubles[operation].append(_Trouble(error, carried_out))

    def refuse(self, error: StoreError, *operations: str) -> None:
        """Has every call of these methods raise until `allow`, as a revoked role does.

        Open watches go on: etcd checks the permission when a watch is opened.
        """
        self._refused |= dict.fromkeys(operations, error)

    def allow(self) -> None:
        """Ends `refuse`."""
        self._refused.clear()

    def before_next(self, operation: str, call: Callable[[], None]) -> None:
        """Has `call` run just before the next call of a method takes effect, to lose a race."""
        self._before[operation].append(call)

    async def _enter(self, operation: str) -> Callable[[], None]:
        """Lets trouble happen; the returned function raises what must come after the effect."""
        self.calls.append(operation)
        # Every request is a switch point, as one to a server is.
        await asyncio.sleep(0)
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._down:
            raise StoreUnavailable(f"{operation}: connection refused", kind="refused")
        if self._frozen:
            await self.etcd.clock.sleep(ANSWER_S)
            if self._frozen:
                raise StoreUnavailable(f"{operation}: no answer in time", kind="silent")
        if operation in self._refused:
            raise self._refused[operation]
        if self._before[operation]:
            self._before[operation].popleft()()
        trouble = self._troubles[operation].popleft() if self._troubles[operation] else None
        if trouble is not None and not trouble.carried_out:
            raise trouble.error

        def leave() -> None:
            if trouble is not None:
                raise trouble.error

        return leave

    async def get(self, key: bytes) -> RangeResult:
        """As in `Store`."""
        leave = await self._enter("get")
        kv = self.etcd.get(key)
        leave()
        return RangeResult(header=self.etcd.header, kvs=(kv,) if kv is not None else ())

    async def holds_v2(self, key: bytes) -> bool | None:
        """As in `Store`."""
        self.calls.append("holds_v2")
        await asyncio.sleep(0)
        return None if self.v2 is None or self._down or self._frozen else key in self.v2

    async def range_prefix(self, prefix: bytes) -> RangeResult:
        """As in `Store`."""
        leave = await self._enter("range_prefix")
        leave()
        kvs = tuple(small(kv) for kv in self.etcd.below(prefix))
        return RangeResult(header=self.etcd.header, kvs=kvs)

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, if_mod_revision: int | None = None
    ) -> Header:
        """As in `Store`."""
        leave = await self._enter("put")
        self._check(key, if_mod_revision)
        self.etcd.put(key, value, lease=lease)
        leave()
        return self.etcd.header

    def _check(self, key: bytes, if_mod_revision: int | None) -> None:
        found = self.etcd.get(key)
        revision = found.mod_revision if found is not None else 0
        if if_mod_revision is not None and revision != if_mod_revision:
            raise StoreConflict(
                f"write {key!r}: the key should be at revision {if_mod_revision}, is at {revision}"
            )

    async def delete(self, key: bytes, *, if_mod_revision: int | None = None) -> bool:
        """As in `Store`."""
        leave = await self._enter("delete")
        try:
            self._check(key, if_mod_revision)
        except StoreConflict:
            deleted = False
        else:
            deleted = self.etcd.delete(key)
        leave()
        return deleted

    async def grant(self, ttl: int) -> LeaseStatus:
        """As in `Store`."""
        leave = await self._enter("grant")
        status = self.etcd.lease_status(self.etcd.grant(ttl))
        leave()
        return replace(status, ttl=status.granted_ttl)

    async def keepalive(self, lease: int) -> int:
        """As in `Store`."""
        leave = await self._enter("keepalive")
        ttl = self.etcd.renew(lease)
        leave()
        if not ttl:
            raise StoreLeaseNotFound(f"renew lease {lease:x}: it does not exist any more")
        return ttl

    async def time_to_live(self, lease: int, *, keys: bool = False) -> LeaseStatus:
        """As in `Store`."""
        leave = await self._enter("time_to_live")
        leave()
        status = self.etcd.lease_status(lease)
        return status if keys else replace(status, keys=())

    async def revoke(self, lease: int) -> None:
        """As in `Store`."""
        leave = await self._enter("revoke")
        self.etcd.revoke(lease)
        leave()

    async def watch_prefix(
        self, prefix: bytes, start_revision: int
    ) -> AsyncGenerator[WatchResponse, None]:
        """As in `Store`."""
        leave = await self._enter("watch_prefix")
        leave()
        watcher = self.etcd.watch(prefix, start_revision)
        self._watchers[watcher] = None
        try:
            while True:
                yield await watcher.receive()
        finally:
            timer = self._watchers.pop(watcher, None)
            if timer is not None:
                timer.cancel()
            self.etcd.unwatch(watcher)

    def reconnect(self, reason: str) -> None:
        """As in `Store`: there is no connection, so it is only remembered."""
        self.reconnected.append(reason)

    def addresses(self) -> Collection[IPAddress]:
        """As in `Store`: none."""
        return ()

    @property
    def cluster(self) -> int:
        """As in `Store`."""
        return self.etcd.cluster_id

    def expect_cluster(self, cluster: int) -> None:
        """As in `Store`."""
        self.expected = cluster

    def server(self) -> Server:
        """As in `Store`."""
        return self.told

    def describe(self) -> str:
        """As in `Store`."""
        return "fake://etcd"

    async def close(self) -> None:
        """As in `Store`."""
        self._closed = True
        for watcher in list(self._watchers):
            watcher.end(StoreUnavailable("the store is closed"))
