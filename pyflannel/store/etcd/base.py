"""The seam to etcd: the dozen requests that flannel needs, as values.

`store.py` speaks to a real etcd (etcd3gw for single requests, aiohttp for the watch, both on the v3
JSON gateway); `testing/fakestore.py` is a complete one in memory. One contract suite runs over
both. Keys and values are bytes. Every method raises `StoreError` or one of its subclasses and
nothing else but `asyncio.CancelledError`. Every single request has a deadline and tries the
endpoints in turn; a write that might have been carried out is repeated only where that does no harm
(under a condition, say). After `StoreUnavailable` a write may have happened all the same: the
caller reads before it writes again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Final, Protocol

from pyflannel.core.ip import IPAddress
from pyflannel.records import dataclass

MAX_VALUE_BYTES: Final = 64 * 1024
"""Largest value that a listing or a watch hands on. A lease has some 200 bytes, one with the output
of an extension's command a few thousand; etcd takes 1.5 MiB by default, and reading JSON of that
size would stop everything else for seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One key."""

    key: bytes
    value: bytes
    mod_revision: int
    version: int = 1
    lease: int = 0
    """Id of the etcd lease, 0 if none."""
    left_out: int = 0
    """Bytes of a value that is too large to be handed on; `value` is empty then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Who answered, and at which revision."""

    revision: int
    cluster_id: int
    member_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeResult:
    """The keys below a prefix (or a single key) at `header.revision`, sorted by key."""

    header: Header
    kvs: Sequence[KeyValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatus:
    """An etcd lease. `ttl` is -1 and `granted_ttl` 0 when it does not exist (any more)."""

    id: int
    ttl: int
    granted_ttl: int = 0
    keys: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PutEvent:
    """A key was written."""

    kv: KeyValue

    @property
    def mod_revision(self) -> int:
        """Store revision of the event."""
        return self.kv.mod_revision


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteEvent:
    """A key was deleted, or its lease expired."""

    key: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchResponse:
    """One answer of a watch: every event in it, in order; none for a mere progress notice."""

    header: Header
    events: Sequence[PutEvent | DeleteEvent]
    more: bool = False
    """The rest of the same revision follows in the next answer: a watch that is opened again goes
    on at this revision, not behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a member says of itself and of its cluster."""

    version: str = ""
    """`3.5.21`; empty before it was asked, or if it does not tell us."""
    alarms: tuple[str, ...] = ()
    """`NOSPACE`, `CORRUPT`: raised by some member, in force for all."""


class Store(Protocol):
    """One etcd cluster."""

    async def get(self, key: bytes) -> RangeResult:
        """One key; `kvs` is empty when it does not exist. Linearizable."""
        ...

    async def range_prefix(self, prefix: bytes) -> RangeResult:
        """All keys that start with a prefix, at one revision. Linearizable.

        Read in pages, so that neither their number nor their size matters to a deadline. Values
        of more than `MAX_VALUE_BYTES` are left out.

        Raises:
            StoreCompacted: the revision was compacted between two pages, several times.
        """
        ...

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, if_mod_revision: int | None = None
    ) -> Header:
        """Writes a key in one transaction.

        Args:
            lease: etcd lease to hang the key on, 0 for none.
            if_mod_revision: write only if the key's mod_revision equals this; 0 means only if the
                key does not exist. `None` writes unconditionally.

        Raises:
            StoreConflict: the condition did not hold; nothing was written.
            StoreLeaseNotFound: the etcd lease is gone.
        """
        ...

    async def delete(self, key: bytes, *, if_mod_revision: int | None = None) -> bool:
        """Deletes a key; `False` if it was not there (or, with a condition, was not the same)."""
        ...

    async def grant(self, ttl: int) -> LeaseStatus:
        """A new etcd lease of `ttl` seconds; the server may give more."""
        ...

    async def keepalive(self, lease: int) -> int:
        """Renews an etcd lease to its granted TTL and returns that.

        Raises:
            StoreLeaseNotFound: it is gone.
        """
        ...

    async def time_to_live(self, lease: int, *, keys: bool = False) -> LeaseStatus:
        """Asks for an etcd lease; with `keys` also which keys hang on it."""
        ...

    async def revoke(self, lease: int) -> None:
        """Ends an etcd lease and deletes its keys; one that is gone already counts as ended."""
        ...

    async def holds_v2(self, key: bytes) -> bool | None:
        """Whether the store of etcd's v2 API, which is another one, has a key.

        `None` if etcd does not serve that API or does not tell; no failure raises.
        """
        ...

    def watch_prefix(
        self, prefix: bytes, start_revision: int
    ) -> AsyncGenerator[WatchResponse, None]:
        """Events of all keys below a prefix from `start_revision` on, for as long as it holds.

        The first response comes when the server has confirmed the watch (it may carry no events),
        so that the caller can compare cluster and revision. Values of more than `MAX_VALUE_BYTES`
        are left out. The generator never ends by itself; it raises instead. A consumer that leaves
        it early closes it (`contextlib.aclosing`).

        Raises:
            StoreCompacted: `start_revision` is gone.
            StoreUnavailable: the connection broke or was idle for too long (a frozen server).
            StoreDenied: not allowed.
        """
        ...

    def reconnect(self, reason: str) -> None:
        """Breaks every connection: requests under way and watches go on over new ones.

        For when our own address has changed. What was connected from the old one gets no answer
        any more, and no word either.
        """
        ...

    def addresses(self) -> Collection[IPAddress]:
        """The addresses that etcd is reached at, as far as known now."""
        ...

    @property
    def cluster(self) -> int:
        """The id of our cluster, 0 while none is known."""
        ...

    def expect_cluster(self, cluster: int) -> None:
        """Tells which cluster a former run has used; before the first request. See `identity`."""
        ...

    @property
    def is_stranger(self) -> bool:
        """Whether another cluster is used while ours does not answer: what it lacks is not gone."""
        ...

    def server(self) -> Server:
        """What the member that was asked last said of itself and its cluster; cheap."""
        ...

    def describe(self) -> str:
        """Endpoints for a log line, without secrets: `http://192.0.2.1:2379, …`."""
        ...

    async def close(self) -> None:
        """Releases connections and threads. May be called twice."""
        ...
