"""An etcd in memory, complete as far as flannel can tell.

Keys with revisions, history and compaction, leases that expire with a `FakeClock`, watches. The
plain methods act at once and stand for other clients, operators and time; some are troubles of the
cluster (`restart`, `compact`, `replace`, `backup` and `restore`). `fakestore.py` is a client of it.

What it shares with a real etcd is proved by the contract suite, which runs over both.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Final

from pyflannel.core.errors import StoreCompacted, StoreError, StoreLeaseNotFound, StoreUnavailable
from pyflannel.records import dataclass
from pyflannel.store.etcd.base import (
    MAX_VALUE_BYTES,
    DeleteEvent,
    Header,
    KeyValue,
    LeaseStatus,
    PutEvent,
    WatchResponse,
)
from pyflannel.testing.fakeclock import FakeClock, Timer

MIN_TTL_S: Final = 2
"""Shortest lease that etcd grants with its default election timeout of one second: 1.5 of those,
rounded up."""
Event = PutEvent | DeleteEvent


@dataclass(slots=True)
class _Lease:
    granted_ttl: int
    deadline: float
    timer: Timer
    keys: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Backup:
    """The data of a cluster at one revision."""

    revision: int
    kvs: Mapping[bytes, KeyValue]
    leases: Mapping[int, int]
    """Granted TTL by lease id."""
    cluster_id: int


class Watcher:
    """One open watch: what waits for delivery, and why it ended."""

    def __init__(self, prefix: bytes, start_revision: int) -> None:
        self.prefix = prefix
        self.start_revision = start_revision
        self._queue: deque[WatchResponse] = deque()
        self._changed = asyncio.Event()
        self._error: StoreError | None = None
        self.held = False
        """Whether deliveries are held back (the server is frozen)."""

    def send(self, response: WatchResponse) -> None:
        """Delivers an answer."""
        self._queue.append(response)
        self._changed.set()

    def end(self, error: StoreError) -> None:
        """Ends it; what waits is delivered before."""
        self._error = self._error or error
        self._changed.set()

    def hold(self, *, held: bool) -> None:
        """Holds deliveries back, or goes on with them."""
        self.held = held
        self._changed.set()

    async def receive(self) -> WatchResponse:
        """The next answer; raises what ended it."""
        while True:
            if self._queue and not self.held:
                return self._queue.popleft()
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()


class FakeEtcd:
    """The cluster.

    Args:
        clock: time for the leases; one of its own if not given.
    """

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock if clock is not None else FakeClock()
        self.cluster_id = 0xC1
        self.revision = 1
        self._kvs: dict[bytes, KeyValue] = {}
        self._leases: dict[int, _Lease] = {}
        self._history: list[tuple[int, tuple[Event, ...]]] = []
        self._compacted = 0
        self._ids = itertools.count(0x1000)
        self._watchers: set[Watcher] = set()

    @property
    def header(self) -> Header:
        """What every answer starts with now."""
        return Header(revision=self.revision, cluster_id=self.cluster_id, member_id=1)

    @property
    def leases(self) -> dict[int, LeaseStatus]:
        """All leases that exist, by id."""
        return {lease: self.lease_status(lease) for lease in self._leases}

    @property
    def watches(self) -> int:
        """Open watches."""
        return len(self._watchers)

    def get(self, key: bytes) -> KeyValue | None:
        """One key."""
        return self._kvs.get(key)

    def below(self, prefix: bytes) -> tuple[KeyValue, ...]:
        """All keys that start with a prefix, sorted by key."""
        return tuple(self._kvs[key] for key in sorted(self._kvs) if key.startswith(prefix))

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> int:
        """Writes a key and returns the revision."""
        return self.put_all({key: value}, lease=lease)

    def put_all(self, pairs: Mapping[bytes, bytes], *, lease: int = 0) -> int:
        """Writes keys in one transaction: one revision, one watch response, an event for each."""
        if lease and lease not in self._leases:
            raise StoreLeaseNotFound(f"write: lease {lease:x} does not exist")
        revision = self.revision + 1
        events: list[Event] = []
        for key, value in pairs.items():
            former = self._kvs.get(key)
            if former is not None:
                self._detach(former)
            version = former.version + 1 if former is not None else 1
            kv = KeyValue(key=key, value=value, mod_revision=revision, version=version, lease=lease)
            self._kvs[key] = kv
            if lease:
                self._leases[lease].keys.add(key)
            events.append(PutEvent(kv=kv))
        self._commit(events)
        return self.revision

    def delete(self, *keys: bytes) -> bool:
        """Deletes keys in one transaction; `False` if none of them was there."""
        events: list[Event] = []
        for key in keys:
            kv = self._kvs.pop(key, None)
            if kv is not None:
                self._detach(kv)
                events.append(DeleteEvent(key=key, mod_revision=self.revision + 1))
        self._commit(events)
        return bool(events)

    def _detach(self, kv: KeyValue) -> None:
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(kv.key)

    def _commit(self, events: list[Event]) -> None:
        if not events:
            return
        self.revision += 1
        self._history.append((self.revision, tuple(events)))
        for watcher in self._watchers:
            if self.revision < watcher.start_revision:
                # etcd stays silent until the revision is reached that was asked for.
                continue
            seen = tuple(_seen(event) for event in events if _key(event).startswith(watcher.prefix))
            if seen:
                watcher.send(WatchResponse(header=self.header, events=seen))

    def grant(self, ttl: int, lease: int = 0) -> int:
        """Grants a lease and returns its id."""
        lease = lease or next(self._ids)
        self._add_lease(lease, max(ttl, MIN_TTL_S))
        return lease

    def _add_lease(self, lease: int, ttl: int) -> _Lease:
        deadline = self.clock.monotonic() + ttl
        timer = self.clock.call_at(deadline, lambda: self.revoke(lease))
        self._leases[lease] = made = _Lease(granted_ttl=ttl, deadline=deadline, timer=timer)
        return made

    def renew(self, lease: int) -> int:
        """Renews a lease to its granted TTL and returns that; 0 if it does not exist."""
        former = self._leases.get(lease)
        if former is None:
            return 0
        former.timer.cancel()
        self._add_lease(lease, former.granted_ttl).keys = former.keys
        return former.granted_ttl

    def revoke(self, lease: int) -> None:
        """Ends a lease (by request or by time) with all its keys, in one transaction."""
        ended = self._leases.pop(lease, None)
        if ended is not None:
            ended.timer.cancel()
            self.delete(*sorted(ended.keys))

    def lease_status(self, lease: int) -> LeaseStatus:
        """A lease as a time-to-live request sees it, keys included."""
        found = self._leases.get(lease)
        if found is None:
            return LeaseStatus(id=lease, ttl=-1)
        # etcd rounds down, and a little time has always passed.
        left = math.ceil(found.deadline - self.clock.monotonic()) - 1
        keys = tuple(sorted(found.keys))
        return LeaseStatus(id=lease, ttl=max(left, 0), granted_ttl=found.granted_ttl, keys=keys)

    def compact(self, revision: int | None = None) -> int:
        """Forgets history before a revision (the current one) and returns that."""
        self._compacted = self.revision if revision is None else revision
        self._history = [entry for entry in self._history if entry[0] >= self._compacted]
        return self._compacted

    def restart(self) -> None:
        """Breaks all connections, as a restart of the server does; leases start anew."""
        for lease in list(self._leases):
            self.renew(lease)
        self.break_watches("the server ended the watch")

    def break_watches(self, reason: str) -> None:
        """Ends every watch with `StoreUnavailable`."""
        for watcher in list(self._watchers):
            watcher.end(StoreUnavailable(f"watch: {reason}"))
        self._watchers.clear()

    def replace(self) -> None:
        """Another, empty cluster under the same address."""
        self.restore(Backup(1, {}, {}, self.cluster_id + 1))

    def backup(self) -> Backup:
        """The data as they are now."""
        leases = {lease: status.granted_ttl for lease, status in self._leases.items()}
        return Backup(self.revision, dict(self._kvs), leases, self.cluster_id)

    def restore(self, backup: Backup, *, cluster_id: int | None = None) -> None:
        """Goes back to a backup: smaller revision, later writes forgotten, leases with full TTL.

        Args:
            cluster_id: of the restored cluster; `etcdctl snapshot restore` makes a new one, copying
                the data files keeps the old.
        """
        for lease in self._leases.values():
            lease.timer.cancel()
        self._leases.clear()
        self.cluster_id = backup.cluster_id if cluster_id is None else cluster_id
        self.revision = backup.revision
        self._kvs = dict(backup.kvs)
        self._history.clear()
        self._compacted = backup.revision
        for lease_id, ttl in backup.leases.items():
            self._add_lease(lease_id, ttl)
        for kv in self._kvs.values():
            if kv.lease in self._leases:
                self._leases[kv.lease].keys.add(kv.key)
        self.break_watches("the server ended the watch")

    def watch(self, prefix: bytes, start_revision: int) -> Watcher:
        """Opens a watch; what happened since `start_revision` is sent in one response."""
        if 0 < start_revision < self._compacted:
            raise StoreCompacted(
                f"watch: revisions before {self._compacted} have been compacted", self._compacted
            )
        watcher = Watcher(prefix, start_revision)
        watcher.send(WatchResponse(header=self.header, events=()))
        missed = tuple(
            _seen(event)
            for revision, events in self._history
            if 0 < start_revision <= revision
            for event in events
            if _key(event).startswith(prefix)
        )
        if missed:
            watcher.send(WatchResponse(header=self.header, events=missed))
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Closes a watch."""
        self._watchers.discard(watcher)


def small(kv: KeyValue) -> KeyValue:
    """The key as it is handed on: a value that is too large is left out."""
    if len(kv.value) <= MAX_VALUE_BYTES:
        return kv
    return replace(kv, value=b"", left_out=len(kv.value))


def _seen(event: Event) -> Event:
    """As a watch hands it on."""
    return PutEvent(kv=small(event.kv)) if isinstance(event, PutEvent) else event


def _key(event: Event) -> bytes:
    return event.kv.key if isinstance(event, PutEvent) else event.key
