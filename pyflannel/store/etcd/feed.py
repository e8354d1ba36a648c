"""All leases, without gaps: a snapshot, then every event, then a snapshot after each gap.

The cursor is ours. It advances past the last *event* that was delivered, never past a header's
revision, because a server that is catching up sends several answers whose headers all carry its
current revision. A watch that breaks goes on at the cursor; a compacted cursor leads to a new
snapshot, which the receiver compares by value.

A restored etcd is noticed by its cluster id, or by a revision smaller than one we have seen: a
watch from a future revision would be accepted and never say anything. One that was emptied under
its old id, and written again beyond our cursor before we were back, shows neither; so after each
outage the newest key that we know is read, and if it is not as we know it, everything. Right after
a restore the store may lack leases of nodes that are alive and about to write them again; tearing
their routes down for that moment would turn a store's mishap into an outage. So leases that
vanished in a restore stay for `RESTORE_GRACE_S`, and are then judged by a snapshot of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Final

from pyflannel.aio.backoff import Backoff
from pyflannel.aio.clock import Clock
from pyflannel.aio.pace import paced
from pyflannel.core.announce import Announcer
from pyflannel.core.errors import StoreCompacted, StoreError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import (
    Changes,
    Lease,
    LeaseAttrs,
    LeaseDeleted,
    LeasePut,
    LeaseUpdate,
    Snapshot,
)
from pyflannel.core.trouble import Occasion, TroubleLog
from pyflannel.foreign import shown
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import StoreReport
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import (
    Header,
    KeyValue,
    PutEvent,
    Store,
    WatchResponse,
)
from pyflannel.store.etcd.codec import BadKey

log = get_logger(__name__)

RESTORE_GRACE_S: Final = 30.0
"""Long enough for every node to notice (idle time-out of a watch, about 10 s) and to write its
lease again, short against the day that a lease of a dead node may linger anyway."""

STRANGER_GRACE_S: Final = 86400.0
"""In a cluster that is not ours no lease has ended: what we know stays until it would have,
after a day at the latest, or until our own cluster is back."""


class LeaseFeed:
    """Reads and watches all keys below `<prefix>/subnets/`; belongs to one task.

    Args:
        own: called for each sighting of a key below the prefix that `is_own` accepts, in order;
            with `None` when it is gone. Called before the update is yielded.
        recovered: called when etcd answers again after it did not.
        is_coming: whether a lease is being written by us.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        clock: Clock,
        *,
        is_own: Callable[[bytes], bool],
        own: Callable[[KeyValue | None], None],
        recovered: Callable[[], None],
        is_coming: Callable[[Lease], bool] = lambda _: False,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._range = codec.subnets_prefix(prefix)
        self._clock = clock
        self._is_own = is_own
        self._own = own
        self._say_recovered = recovered
        self._is_coming = is_coming
        self._primed: Listing | None = None
        self._cluster_id = 0
        self._revision = 0
        self._known: dict[SubnetKey, Lease] = {}
        self._deleted = (b"", 0)
        self._was_away = False
        self._bad: Announcer[bytes] = Announcer()
        self._backoff = Backoff()
        self._trouble = TroubleLog()
        self._connected: bool | None = None
        self._since: float | None = None
        self._snapshots = 0
        self._reconnects = 0

    def report(self) -> StoreReport:
        """Whether the last request or watch went well, and how far we are."""
        trouble = self._trouble.present
        return StoreReport(
            connected=self._connected,
            since=self._since,
            reason=trouble.reason if trouble is not None else "",
            revision=self._revision,
            snapshots=self._snapshots,
            reconnects=self._reconnects,
        )

    def prime(self, listed: Listing) -> None:
        """Makes the first snapshot out of a listing that was just read for another purpose.

        It may be older than our own lease, so it is no sighting of that.
        """
        self._primed = listed

    async def updates(self) -> AsyncIterator[LeaseUpdate]:
        """Until cancelled: a `Snapshot` first, then `Changes`, and a `Snapshot` after each gap."""
        cursor: int | None = None
        grace_ends: float | None = None
        while True:
            try:
                if cursor is None:
                    snapshot, restored = await self._snapshot(keep_missing=grace_ends is not None)
                    if restored and grace_ends is None:
                        grace = STRANGER_GRACE_S if self._store.is_stranger else RESTORE_GRACE_S
                        grace_ends = self._clock.monotonic() + grace
                    cursor = snapshot.revision + 1
                    yield snapshot
                async for response in self._watch(cursor, grace_ends):
                    if response is None:
                        grace_ends = None
                        cursor = None
                        break
                    if self._is_behind(response.header, cursor):
                        cursor = None
                        await self._clock.sleep(self._backoff.next())
                        break
                    if self._was_away and not await self._has_our_history():
                        cursor = None
                        break
                    self._recovered()
                    if response.events:
                        rest = 0 if response.more else 1
                        cursor = max(cursor, response.events[-1].mod_revision + rest)
                        yield await self._changes(response)
            except StoreCompacted as error:
                log.info("watch cursor was compacted, listing again", cursor=cursor, error=error)
                cursor = None
            except StoreError as error:
                await self._failed(error)

    async def _watch(
        self, cursor: int, grace_ends: float | None
    ) -> AsyncIterator[WatchResponse | None]:
        """The watch's answers; `None` when the grace after a restore is over."""
        stream = self._store.watch_prefix(self._range, cursor)
        pending: asyncio.Task[WatchResponse] | None = None
        try:
            while True:
                pending = asyncio.ensure_future(anext(stream))
                if grace_ends is not None and not await self._in_time(pending, grace_ends):
                    yield None
                    return
                yield await pending
        finally:
            if pending is not None and not pending.done():
                pending.cancel()
                await asyncio.wait({pending})
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def _in_time(self, pending: asyncio.Future[WatchResponse], deadline: float) -> bool:
        """Whether an answer comes before the deadline."""
        left = asyncio.ensure_future(self._clock.sleep(deadline - self._clock.monotonic()))
        waits: set[asyncio.Future[WatchResponse] | asyncio.Future[None]] = {pending, left}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
        return pending.done()

    async def _snapshot(self, *, keep_missing: bool) -> tuple[Snapshot, bool]:
        listing, self._primed = self._primed, None
        primed = listing is not None
        if listing is None:
            listing = await list_leases(self._store, self._prefix)
        restored = self._is_restored(listing)
        self._cluster_id = listing.header.cluster_id
        self._revision = listing.header.revision
        self._recovered()
        self._snapshots += 1
        found = dict(listing.by_key)
        self._bad.forget_all_but({bad.key for bad in listing.bad})
        async for bad in paced(listing.bad):
            self._say_bad(bad)
        if not primed:
            own: KeyValue | None = None
            async for key, kv in paced(listing.kvs.items()):
                own = kv if own is None and self._is_own(key) else own
            self._own(own)
        if restored or keep_missing:
            missing = {
                key: lease async for key, lease in paced(self._known.items()) if key not in found
            }
            if missing:
                log.warning(
                    "etcd lacks leases after an outage or a restore; keeping them for a while",
                    missing=len(missing),
                    grace_s=RESTORE_GRACE_S,
                )
                found |= missing
        self._known = found
        return Snapshot(tuple(found.values()), listing.header.revision), restored

    async def _changes(self, response: WatchResponse) -> Changes:
        events: list[LeasePut | LeaseDeleted] = []
        async for event in paced(response.events):
            self._revision = max(self._revision, event.mod_revision)
            if isinstance(event, PutEvent):
                lease = self._decode(event.kv)
                if self._is_own(event.kv.key):
                    self._own(event.kv)
                if lease is not None:
                    self._known[lease.key] = lease
                    events.append(LeasePut(lease))
            else:
                if self._is_own(event.key):
                    self._own(None)
                self._bad.forget(event.key)
                self._deleted = (event.key, event.mod_revision)
                key = codec.parse_key(self._prefix, event.key)
                if key is not None:
                    self._known.pop(key, None)
                    events.append(LeaseDeleted(key))
        return Changes(events, self._revision)

    def _decode(self, kv: KeyValue) -> Lease | None:
        """The lease, or `None` after one log line for each key and reason."""
        lease = codec.decode_lease(self._prefix, kv)
        if isinstance(lease, Lease):
            self._bad.forget(kv.key)
            return replace(lease, ours=True) if self._is_coming(lease) else lease
        self._say_bad(lease)
        return None

    def _say_bad(self, bad: BadKey) -> None:
        if self._bad.worth(bad.key, bad.reason, self._clock.monotonic()):
            log.warning(
                "ignoring a key that is not a lease",
                key=shown(bad.key),
                reason=shown(bad.reason),
                others_not_logged=self._bad.take_withheld(),
            )

    def _is_behind(self, header: Header, cursor: int) -> bool:
        """Whether a watch speaks for another cluster or an older state than the one we know.

        A follower that lags for a moment looks the same, so this only leads to a new listing,
        which is linearizable and decides.
        """
        return header.cluster_id != self._cluster_id or header.revision < cursor - 1

    async def _has_our_history(self) -> bool:
        """Whether what a watch tells from our cursor on is what follows on what we know."""
        newest = self._newest()
        if newest is None:
            return False
        found = await self._store.get(codec.lease_key(self._prefix, newest.key))
        if not found.kvs or not _is(newest, codec.decode_lease(self._prefix, found.kvs[0])):
            return False
        key, revision = self._deleted
        if revision > newest.revision and (await self._store.get(key)).kvs:
            return False
        self._was_away = False
        return True

    def _newest(self) -> Lease | None:
        """Of the leases that we know the one that was written last."""
        return max(self._known.values(), key=lambda lease: lease.revision, default=None)

    def _is_restored(self, listing: Listing) -> bool:
        header = listing.header
        other = self._cluster_id not in (0, header.cluster_id)
        older = header.revision < self._revision
        newest = self._newest() if self._was_away else None
        present = listing.by_key.get(newest.key) if newest is not None else None
        differs = newest is not None and not _is(newest, present)
        self._was_away = False
        if differs and not (other or older):
            log.info(
                "etcd may have been restored while it was away, listing all leases again",
                subnet=newest.key.describe() if newest is not None else None,
                reason="gone" if present is None else "written again",
            )
        if other or older:
            log.warning(
                "etcd was restored or replaced, listing all leases again",
                cluster_id=f"{header.cluster_id:x}",
                former_cluster_id=f"{self._cluster_id:x}",
                revision=header.revision,
                former_revision=self._revision,
            )
        return other or older or differs

    def _recovered(self) -> None:
        self._backoff.reset()
        self._note(connected=True)
        lasted = self._trouble.over(self._clock.monotonic())
        if lasted is not None:
            log.info(
                "etcd answers again", endpoints=self._store.describe(), after_s=round(lasted, 1)
            )
            self._say_recovered()

    async def _failed(self, error: StoreError) -> None:
        self._reconnects += 1
        self._was_away = True
        occasion = self._trouble.failed(self._clock.monotonic(), error.kind, str(error))
        if occasion is not None:
            log.warning(_LOST[occasion], endpoints=self._store.describe(), error=error)
        self._note(connected=False)
        await self._clock.sleep(self._backoff.next())

    def _note(self, *, connected: bool) -> None:
        if connected is not self._connected:
            self._connected = connected
            self._since = self._clock.time()


_LOST: Final = {
    Occasion.BEGINS: "lost the watch of the leases, retrying; traffic goes on",
    Occasion.CHANGED: "the leases are not watched for another reason now; traffic goes on",
    Occasion.LASTS: "the leases are still not watched; traffic goes on",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys below `subnets/` at one revision, read and decoded once for all who need them."""

    header: Header
    by_key: Mapping[SubnetKey, Lease]
    """In the order of their keys."""
    bad: tuple[BadKey, ...]
    """What is no lease."""
    kvs: Mapping[bytes, KeyValue]
    """The keys themselves."""

    @property
    def leases(self) -> tuple[Lease, ...]:
        """In the order of their keys."""
        return tuple(self.by_key.values())

    async def taken(self, prefix: str) -> tuple[Lease, ...]:
        """The leases, and one without an owner for each subnet whose value cannot be read.

        No node can lease such a subnet: its key is there.
        """
        nobodys = [
            Lease(key=key, attrs=LeaseAttrs())
            async for bad in paced(self.bad)
            if (key := codec.parse_key(prefix, bad.key)) is not None
        ]
        return (*self.by_key.values(), *nobodys)


def _is(known: Lease, found: Lease | BadKey | None) -> bool:
    """Whether a lease is there by the very write that we know.

    The revision alone does not say so: another history has the same numbers. The etcd lease does.
    """
    return (
        isinstance(found, Lease)
        and found == known
        and found.store_lease == known.store_lease
        and found.revision == known.revision
    )


async def list_leases(store: Store, prefix: str) -> Listing:
    """Lists the leases; gives way to other tasks in between, however many there are.

    Raises:
        StoreError: etcd failed.
    """
    result = await store.range_prefix(codec.subnets_prefix(prefix))
    leases: dict[SubnetKey, Lease] = {}
    kvs: dict[bytes, KeyValue] = {}
    bad: list[BadKey] = []
    async for kv in paced(result.kvs):
        kvs[kv.key] = kv
        lease = codec.decode_lease(prefix, kv)
        if isinstance(lease, Lease):
            leases[lease.key] = lease
        else:
            bad.append(lease)
    return Listing(result.header, leases, tuple(bad), kvs)
