"""The real etcd behind the `Store` protocol: which endpoint is asked, what is tried again.

**Endpoints.** Requests go to the endpoint that answered last. If it gives no answer within its
deadline (dead, frozen, without a quorum), the next one is asked, and remembered if it does better.
While none is in use (at a start, after a failure), those of our cluster are asked who they are at
nearly the same time, and the first to answer is used: silent ones would cost a second each.
`StoreUnavailable` is raised only when none answered, and then names each with its reason.

**Writes.** One that got no answer may have been carried out, now or later. What can be repeated
without harm is repeated at the next endpoint: a grant, because we choose the id of the etcd lease
ourselves; a renewal; a revocation; and a write under a condition on the key's revision, which
cannot succeed twice. If the condition then fails on a key that has the very value and lease we
meant to write, it was our first attempt that wrote them. An unconditional write is never sent
again: the key is read, and if it does not show our write yet, the caller is told that the outcome
is not known.

**Watches.** Opened at the same endpoints in the same order; a silent one is kept only as long as
its endpoint answers a cheap question.

**Cost.** Nothing is imported, resolved or connected before the first request, and aiohttp not
before the first watch; both imports run in the store's own threads.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from pyflannel.aio.heap import pass_over
from pyflannel.aio.race import first_to_answer
from pyflannel.aio.threads import ThreadPool
from pyflannel.core.errors import (
    StoreCompacted,
    StoreConfigError,
    StoreConflict,
    StoreError,
    StoreLeaseNotFound,
    StoreUnavailable,
)
from pyflannel.core.ip import IPAddress, parse_ip
from pyflannel.core.options import EtcdOptions
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.alive import Alive
from pyflannel.store.etcd.auth import Tokens
from pyflannel.store.etcd.base import (
    MAX_VALUE_BYTES,
    Header,
    KeyValue,
    LeaseStatus,
    RangeResult,
    Server,
    WatchResponse,
)
from pyflannel.store.etcd.discovery import Discovery, DiscoveryError
from pyflannel.store.etcd.endpoints import (
    Endpoint,
    configured_endpoints,
    files_stamp,
    first_context,
    tls_context,
)
from pyflannel.store.etcd.failures import (
    AnswerTooLong,
    Code,
    EndpointFailure,
    Refused,
    explain,
    unavailable,
)
from pyflannel.store.etcd.identity import ADOPT_AFTER_S, Cluster, Identity
from pyflannel.store.etcd.password import Password
from pyflannel.store.names import Names

if TYPE_CHECKING:
    from pyflannel.store.etcd.transport import EndpointClient
    from pyflannel.store.etcd.watch import Watch, WatchClient

log = get_logger(__name__)

T = TypeVar("T")

FIRST_PAGE: Final = 32
"""Keys asked for at first in a listing, when it is not known yet how large the values are: of 1.5
MiB each, which is the most by default, they are 48 MiB, which a gateway is silent for half a second
to write."""
MOST_KEYS: Final = 1024
"""Keys asked for at once: some 400 KB, 8 ms to decode."""
PAGE_BYTES: Final = 2 * 1024 * 1024
"""What a page is meant to have at most; a quarter of what is read of an answer."""
KEY_BYTES: Final = 200
"""Of a key besides its value, roughly."""
PAGE_SHRINKS: Final = 8
"""By how much a page whose answer is too long is made smaller: 32 keys, four, one."""
THREADS: Final = 4
"""Requests at a time. The daemon has two or three duties with etcd (lease, peers, probes); one more
lets a duty go on while the others wait for a frozen endpoint."""
ENDPOINT_S: Final = 3.0
"""Longest silence of one endpoint. The sockets have sharper deadlines: 1.0 s to connect, 1.5 s
between two parts of an answer."""
NAME_S: Final = 1.5
"""How long an unknown name is looked up before the next endpoint is asked. The look-up goes on, and
what it finds is there for the next request."""
TRICKLE_S: Final = 30.0
"""Deadline for an answer as a whole, however steadily it comes: 8 MiB at 2 Mbit/s."""
OPEN_WATCH_S: Final = 2.0
"""To connect and to be told that a watch exists."""
FILES_EVERY_S: Final = 1.0
"""Between two looks at the certificates' files, made with requests only: three stats."""
HEAD_START_S: Final = 0.15
"""How long the endpoint that is first in line is asked alone. It answers within milliseconds, but
the first request of all imports its library."""
LOOK_AROUND_S: Final = 0.5
"""For all of them to answer who they are, before they are asked in turn all the same."""
HOME_EVERY_S: Final = 30.0
"""Between two looks for our own cluster while a stranger is used."""
IDLE_S: Final = 5.0
"""Silence of an endpoint after which its watches have it probed. A frozen server is so noticed
within 6.5 s; a probe costs 2 ms of CPU, 0.04 % of the time, and 720 an hour are half of what a node
at rest costs etcd."""
CLOSE_S: Final = 0.5
"""How long `close` waits for threads whose requests it has just broken off."""


@dataclass(frozen=True, slots=True)
class _Answer(Generic[T]):
    """What one of the endpoints answered."""

    value: T
    unsure: bool
    """An earlier attempt may have been carried out as well."""


class _Unsure(StoreUnavailable):
    """A write got no answer, and it is not known whether it was carried out."""


class EtcdStore:
    """A `Store` on a real etcd; belongs to one event loop.

    Args:
        idle: seconds of silence after which a watch's endpoint is probed.

    Raises:
        StoreConfigError: an endpoint, a certificate or the password's file is wrong. Nothing is
            connected yet.
    """

    def __init__(self, options: EtcdOptions, *, idle: float = IDLE_S) -> None:
        self._endpoints = configured_endpoints(options)
        self._options = options
        self._stamp = files_stamp(options)
        self._tls = first_context(options, self._endpoints)
        self._files_looked_at = time.monotonic()
        self._files_wrong = ""
        self._former_watches: list[WatchClient] = []
        self._idle = idle
        self._alive = Alive(idle, self._probe, time.monotonic)
        self._threads = ThreadPool("etcd", THREADS)
        self._names = Names()
        self._discovery = (
            Discovery(options, self._threads, _random) if options.discovery_srv else None
        )
        self._discovering = asyncio.Lock()
        self._all_failed = False
        self._server = Server()
        self._tokens = Tokens(options.username, Password(options), self._post)
        self._hosts = {endpoint.host for endpoint in self._endpoints}
        self._preferred = 0
        self._identity = Identity(
            [str(endpoint) for endpoint in self._endpoints], 0, time.monotonic()
        )
        self._verified: set[Endpoint] = set()
        self._introduced = asyncio.Lock()
        self._home_tried = float("-inf")
        self._clients: dict[Endpoint, EndpointClient] = {}
        self._clients_lock = threading.Lock()
        self._watch_client: WatchClient | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @property
    def cluster(self) -> int:
        """As in `Store`."""
        return self._identity.home

    def expect_cluster(self, cluster: int) -> None:
        """As in `Store`."""
        self._identity = Identity(
            [str(endpoint) for endpoint in self._endpoints], cluster, time.monotonic()
        )
        self._verified.clear()

    @property
    def is_stranger(self) -> bool:
        """As in `Store`."""
        return self._identity.is_stranger

    def describe(self) -> str:
        """As in `Store`."""
        if self._discovery is not None and not self._endpoints:
            return self._discovery.describe()
        return ", ".join(str(endpoint) for endpoint in self._endpoints)

    def addresses(self) -> frozenset[IPAddress]:
        """Where etcd is: endpoints given as addresses, and what names led to when connecting."""
        with self._clients_lock:
            for client in self._clients.values():
                self._hosts |= client.reached()
            hosts = frozenset(self._hosts)
        found = set()
        for text in hosts:
            with suppress(ValueError):
                found.add(parse_ip(text))
        return frozenset(found)

    async def get(self, key: bytes) -> RangeResult:
        """As in `Store`."""
        body = gateway.range_request(key)
        return await self._read(f"read {_text(key)}", gateway.RANGE, body, gateway.parse_range)

    async def range_prefix(self, prefix: bytes) -> RangeResult:
        """As in `Store`."""
        what = f"list {_text(prefix)}"
        for last in (False, False, True):
            try:
                return await self._list(what, prefix)
            except StoreCompacted:
                # Compacted between two pages: what was read so far is of no use.
                if last:
                    raise
        raise AssertionError("unreachable")

    async def _list(self, what: str, prefix: bytes) -> RangeResult:
        first, end = prefix, gateway.prefix_end(prefix)
        header: Header | None = None
        kvs: list[KeyValue] = []
        limit, keys_only = FIRST_PAGE, False
        while True:
            request = gateway.page_request(
                first,
                end,
                limit=limit,
                revision=header.revision if header is not None else 0,
                keys_only=keys_only,
            )
            try:
                page, more = await self._read(what, gateway.RANGE, request, gateway.parse_page)
            except StoreUnavailable as error:
                too_long = isinstance(error.__cause__, AnswerTooLong)
                # The gateway says nothing until it has put the whole answer into JSON.
                if not too_long and (not error.silent or limit == 1):
                    raise
                # A value that is too long on its own is passed over with its key alone.
                keys_only = too_long and limit == 1
                limit = max(1, limit // PAGE_SHRINKS)
                continue
            except StoreError as error:
                if isinstance(error.__cause__, Refused) and error.__cause__.is_compacted:
                    raise StoreCompacted(str(error), 0) from error
                raise
            header = header or page.header
            if page.header.cluster_id != header.cluster_id:
                raise StoreCompacted(f"{what}: another cluster answers the second page", 0)
            if keys_only:
                page = replace(
                    page, kvs=tuple(replace(kv, left_out=MAX_VALUE_BYTES + 1) for kv in page.kvs)
                )
            kvs += page.kvs
            if not more or not page.kvs:
                return RangeResult(header=header, kvs=tuple(kvs))
            # What was read stays for as long as the listing is used, and looking through it in
            # search of garbage takes longer with each page: 50 ms at 100,000 keys.
            pass_over()
            first, keys_only = page.kvs[-1].key + b"\0", False
            limit = next_page(limit, page.kvs)

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, if_mod_revision: int | None = None
    ) -> Header:
        """As in `Store`."""
        what = f"write {_text(key)}"
        put = gateway.put_request(key, value, lease)
        if if_mod_revision is None:
            try:
                parse = gateway.parse_header
                return (await self._request(what, gateway.PUT, put, parse, repeat=False)).value
            except _Unsure:
                result = await self.get(key)
                if result.kvs and _is(result.kvs[0], value, lease):
                    return replace(result.header, revision=result.kvs[0].mod_revision)
                raise
        body = gateway.if_unchanged(key, if_mod_revision, "request_put", put)
        answer = await self._request(what, gateway.TXN, body, gateway.parse_txn)
        if answer.value.succeeded:
            return answer.value.header
        found = answer.value.found
        if answer.unsure and found is not None and _is(found, value, lease):
            return replace(answer.value.header, revision=found.mod_revision)
        raise StoreConflict(
            f"{what}: the key should be at revision {if_mod_revision}, "
            f"but is at {found.mod_revision if found is not None else 0} (0: does not exist)"
        )

    async def delete(self, key: bytes, *, if_mod_revision: int | None = None) -> bool:
        """As in `Store`."""
        what = f"delete {_text(key)}"
        delete = gateway.delete_request(key)
        if if_mod_revision is None:
            try:
                parse = gateway.parse_deleted
                answer = await self._request(what, gateway.DELETE, delete, parse, repeat=False)
            except _Unsure:
                if not (await self.get(key)).kvs:
                    return True
                raise
            return answer.value > 0
        if if_mod_revision == 0:
            # "Delete it if it does not exist."
            return False
        body = gateway.if_unchanged(key, if_mod_revision, "request_delete_range", delete)
        txn = await self._request(what, gateway.TXN, body, gateway.parse_txn)
        return txn.value.succeeded or (txn.unsure and txn.value.found is None)

    async def grant(self, ttl: int) -> LeaseStatus:
        """As in `Store`."""
        # Our own choice of id makes the request one that can be repeated: a second one is told that
        # the lease already exists. 62 random bits do not meet another's by chance.
        lease = _random.getrandbits(62) + 1
        body = {"TTL": str(ttl), "ID": str(lease)}
        parse = gateway.parse_grant
        try:
            answer = await self._request(f"grant a lease of {ttl} s", gateway.GRANT, body, parse)
        except StoreError as error:
            refused = error.__cause__
            if (
                isinstance(refused, Refused)
                and refused.code == Code.FAILED_PRECONDITION
                and refused.unsure
            ):
                return await self.time_to_live(lease)
            raise
        return LeaseStatus(id=lease, ttl=answer.value, granted_ttl=answer.value)

    async def keepalive(self, lease: int) -> int:
        """As in `Store`."""
        what = f"renew lease {lease:x}"
        body = {"ID": str(lease)}
        ttl = await self._read(what, gateway.KEEPALIVE, body, gateway.parse_keepalive)
        if ttl <= 0:
            raise StoreLeaseNotFound(f"{what}: it does not exist any more")
        return ttl

    async def time_to_live(self, lease: int, *, keys: bool = False) -> LeaseStatus:
        """As in `Store`."""
        what = f"look at lease {lease:x}"
        body = {"ID": str(lease), "keys": keys}
        return await self._read(what, gateway.TIME_TO_LIVE, body, gateway.parse_lease)

    async def revoke(self, lease: int) -> None:
        """As in `Store`."""
        body = {"ID": str(lease)}
        with suppress(StoreLeaseNotFound):
            await self._read(f"revoke lease {lease:x}", gateway.REVOKE, body, gateway.parse_header)

    async def holds_v2(self, key: bytes) -> bool | None:
        """As in `Store`: asks the endpoint that answered last."""
        endpoint = self._endpoints[self._preferred]
        with suppress(StoreError, EndpointFailure, TimeoutError):
            async with asyncio.timeout(ENDPOINT_S):
                addresses = await self._find(endpoint)
                return await self._threads.run(
                    lambda: self._client(endpoint, addresses).holds_v2(key)
                )
        return None

    async def watch_prefix(
        self, prefix: bytes, start_revision: int
    ) -> AsyncGenerator[WatchResponse, None]:
        """As in `Store`."""
        what = f"watch {_text(prefix)}"
        endpoint, watch = await self._open_watch(what, prefix, start_revision)
        self._alive.heard(endpoint)
        try:
            yield watch.first
            while True:
                response = await watch.receive(self._alive.patience_s(endpoint))
                if response is not None:
                    self._alive.heard(endpoint)
                    yield response
                else:
                    await self._alive.check(endpoint)
                self._identity.heard(time.monotonic())
        except EndpointFailure as failure:
            self._avoid(endpoint)
            self._verified.discard(endpoint)
            raise unavailable(what, {str(endpoint): failure}) from failure
        except Refused as refused:
            raise refused.as_store_error(what, str(endpoint)) from refused
        finally:
            watch.close()

    async def _open_watch(
        self, what: str, prefix: bytes, start_revision: int
    ) -> tuple[Endpoint, Watch]:
        request = gateway.watch_request(prefix, start_revision)
        client = await self._watches()

        async def attempt(endpoint: Endpoint) -> tuple[Endpoint, Watch]:
            async def send(token: str) -> Watch:
                return await client.open(endpoint, request, token, OPEN_WATCH_S)

            watch = await self._authorized(endpoint, send, denial_is_doubtful=True)
            try:
                self._recognise(endpoint, watch.first.header.cluster_id)
            except EndpointFailure:
                watch.close()
                raise
            return endpoint, watch

        return (await self._in_turn(what, attempt, repeat=True)).value

    async def _watches(self) -> WatchClient:
        async with self._opening:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._watch_client is None:
                module = await self._threads.run(
                    lambda: importlib.import_module("pyflannel.store.etcd.watch")
                )
                self._watch_client = module.WatchClient(self._tls, self._names)
            return self._watch_client

    async def _probe(self, endpoint: Endpoint) -> None:
        """Returns if the endpoint is alive and has a leader.

        Raises:
            EndpointFailure: it has not.
        """
        try:
            status = await self._status(endpoint)
            if not gateway.integer(status, "leader"):
                raise EndpointFailure("it has no leader")  # noqa: TRY301 - the same treatment
        except EndpointFailure as failure:
            text = f"silent for {self._idle:g} s, and a probe failed: {failure}"
            raise EndpointFailure(text) from failure
        except Refused:
            # It answers, and that was the question.
            log.debug("etcd refuses its status", endpoint=str(endpoint))

    async def _read(
        self,
        what: str,
        path: str,
        body: gateway.Message,
        parse: Callable[[gateway.Message], T],
    ) -> T:
        """The answer to a request that may be carried out twice without harm."""
        return (await self._request(what, path, body, parse)).value

    async def _request(
        self,
        what: str,
        path: str,
        body: gateway.Message,
        parse: Callable[[gateway.Message], T],
        *,
        repeat: bool = True,
    ) -> _Answer[T]:
        async def attempt(endpoint: Endpoint) -> T:
            async def send(token: str) -> gateway.Message:
                return await self._post(endpoint, path, body, token)

            answer = await self._authorized(endpoint, send)
            if "header" in answer:  # a renewal's stands deeper, and nothing is decided by it alone
                self._recognise(endpoint, gateway.parse_header(answer).cluster_id)
            return parse(answer)

        return await self._in_turn(what, attempt, repeat=repeat)

    async def _in_turn(
        self, what: str, attempt: Callable[[Endpoint], Awaitable[T]], *, repeat: bool
    ) -> _Answer[T]:
        """The first answer of an endpoint, starting with the one that answered last.

        Args:
            repeat: go on after an attempt that may have been carried out.
        """
        self._follow_files()
        await self._discover(what)
        await self._introduce(what)
        await self._look_around()
        failures: dict[str, EndpointFailure] = {}
        unsure = False
        for endpoint in self._order():
            # A connection from before a restart of the server breaks at its first use; the second
            # attempt makes a new one.
            for last in (False, True):
                try:
                    if endpoint not in self._verified:
                        await self._verify(endpoint)
                    value = await attempt(endpoint)
                except AnswerTooLong as failure:
                    # Any other endpoint would give the same.
                    raise unavailable(what, {str(endpoint): failure}) from failure
                except EndpointFailure as failure:
                    failures[str(endpoint)] = failure
                    self._verified.discard(endpoint)
                    unsure = unsure or failure.unsure
                    if unsure and not repeat:
                        raise _Unsure(
                            f"{what}: {endpoint} gave no answer ({failure}); "
                            "whether it was carried out is not known"
                        ) from failure
                    if last or not failure.dropped:
                        break
                except Refused as refused:
                    self._prefer(endpoint, failures)
                    refused.unsure = unsure
                    raise refused.as_store_error(what, str(endpoint)) from refused
                else:
                    self._prefer(endpoint, failures)
                    self._identity.heard(time.monotonic())
                    return _Answer(value, unsure)
        self._all_failed = True
        error = unavailable(what, failures)
        if isinstance(error, StoreUnavailable):
            error.silent = any(failure.silent for failure in failures.values())
        raise error

    def _follow_files(self) -> None:
        """Takes new certificates from the disk; what is connected goes on as it is.

        A pair that is half written, or wrong, is told once; the former one stays until it is right.
        """
        now = time.monotonic()
        if self._tls is None or now - self._files_looked_at < FILES_EVERY_S:
            return
        self._files_looked_at = now
        stamp = files_stamp(self._options)
        if stamp == self._stamp:
            return
        try:
            context = tls_context(self._options, used=True)
        except StoreConfigError as error:
            if str(error) != self._files_wrong:
                log.warning("new certificates are not used yet, going on with the old", error=error)
            self._files_wrong = str(error)
            return
        log.info("certificates for etcd have changed on disk, using them from now on")
        self._stamp, self._tls, self._files_wrong = stamp, context, ""
        with self._clients_lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()
        if self._watch_client is not None:
            # Its open watches go on.
            self._former_watches.append(self._watch_client)
            self._watch_client = None

    async def _discover(self, what: str) -> None:
        """Asks for the SRV records, at first and again after all that they named have failed.

        Raises:
            StoreUnavailable: no endpoint is known.
        """
        if self._discovery is None:
            return
        async with self._discovering:
            if self._endpoints and not self._all_failed:
                return
            try:
                found = await self._discovery.endpoints()
            except DiscoveryError as error:
                if not self._endpoints:
                    text = f"{what}: no etcd endpoint is known: {error}"
                    raise StoreUnavailable(text, kind=str(error)) from error
                log.debug("SRV records not read, going on with the old ones", error=error)
            else:
                if found[0].scheme == "https" and self._tls is None:
                    self._tls = await self._threads.run(
                        lambda: tls_context(self._options, used=True)
                    )
                self._take(found)
            self._all_failed = False

    def _take(self, endpoints: tuple[Endpoint, ...]) -> None:
        if set(endpoints) == set(self._endpoints):
            return  # their order has chance in it
        names = [str(endpoint) for endpoint in endpoints]
        log.info("etcd's endpoints, by SRV records", endpoints=", ".join(names))
        self._endpoints, self._preferred = endpoints, 0
        self._identity.follow(names)
        self._verified &= set(endpoints)
        self._hosts |= {endpoint.host for endpoint in endpoints}

    def _order(self) -> Sequence[Endpoint]:
        """The endpoints in the order in which they are asked."""
        start = self._preferred
        order = (*self._endpoints[start:], *self._endpoints[:start])
        now = time.monotonic()
        if self._identity.is_stranger and now - self._home_tried >= HOME_EVERY_S:
            # The stranger answers well; only asking the others first finds the way back.
            self._home_tried = now
            return (*order[1:], order[0])
        return order

    async def _introduce(self, what: str) -> None:
        """Without a memory of our cluster asks all endpoints at once, so that they can disagree.

        Raises:
            StoreUnavailable: they do.
        """
        if self._identity.home or len(self._endpoints) == 1:
            return
        async with self._introduced:
            if self._identity.home:
                return
            named: dict[str, int] = {}
            asking = {
                asyncio.ensure_future(self._cluster_of(endpoint)): str(endpoint)
                for endpoint in self._endpoints
            }
            try:
                waiting = set(asking)
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        with suppress(EndpointFailure, Refused):
                            named[asking[task]] = task.result()
                    most = max((list(named.values()).count(c) for c in named.values()), default=0)
                    if 2 * most > len(self._endpoints):
                        break
            finally:
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)
            if not self._identity.agree(list(named.values())):
                reasons = "; ".join(f"{where} is cluster {c:x}" for where, c in named.items())
                raise StoreUnavailable(
                    f"{what}: the endpoints are of different clusters, and which one is ours is "
                    f"not known ({reasons}); name only the members of one (--etcd-endpoints)",
                    kind=reasons,
                )
            now = time.monotonic()
            # The cluster that most of them name comes first, for it becomes ours.
            for where in sorted(named, key=lambda w: -list(named.values()).count(named[w])):
                self._identity.judge(where, named[where], now)
            ours = [e for e in self._endpoints if named.get(str(e)) == self._identity.home]
            if ours and self._endpoints[self._preferred] not in ours:
                # What kept silent just now is not waited for a second time.
                self._preferred = self._endpoints.index(ours[0])
            # Of the others it would not be noticed if they became a cluster of their own meanwhile.
            self._verified.update(ours and [self._endpoints[self._preferred]])

    async def _look_around(self) -> None:
        """While no endpoint is in use, prefers the one of our cluster that is the first to answer.

        Where none does, nothing is changed.
        """
        if self._verified or not self._identity.home or len(self._endpoints) == 1:
            return
        async with self._introduced:
            if self._verified:
                return
            order = self._order()
            first = await first_to_answer(
                [functools.partial(self._is_of_ours, endpoint) for endpoint in order],
                head_start_s=HEAD_START_S,
                within_s=LOOK_AROUND_S,
            )
            if first is not None:
                self._judge(order[first], self._identity.home)
                self._prefer(order[first], {})
                self._verified.add(order[first])

    async def _is_of_ours(self, endpoint: Endpoint) -> bool:
        try:
            return await self._cluster_of(endpoint) == self._identity.home
        except (EndpointFailure, Refused):
            return False

    async def _cluster_of(self, endpoint: Endpoint) -> int:
        """The id of the cluster that an endpoint belongs to."""
        return gateway.parse_header(await self._status(endpoint)).cluster_id

    async def _status(self, endpoint: Endpoint) -> gateway.Message:
        began = time.monotonic()
        status = await self._post(endpoint, gateway.STATUS, {}, "")
        self._tokens.answered_without(time.monotonic() - began)
        self._server = gateway.parse_server(status)
        return status

    def server(self) -> Server:
        """As in `Store`."""
        return self._server

    async def _verify(self, endpoint: Endpoint) -> None:
        """Returns if an endpoint that was not used yet, or failed, is to be used.

        Raises:
            EndpointFailure: it does not answer, or belongs to another cluster.
        """
        try:
            cluster = await self._cluster_of(endpoint)
        except Refused as refused:
            # It answers; who it is, it does not tell us.
            log.debug("etcd refuses its status", endpoint=str(endpoint), error=refused)
            self._verified.add(endpoint)
            return
        self._judge(endpoint, cluster)
        self._verified.add(endpoint)

    def _recognise(self, endpoint: Endpoint, cluster: int) -> None:
        """Returns if an answer comes from a cluster that is to be used; as `_verify`.

        A member may be killed, wiped and started again between two answers.
        """
        if cluster and self._identity.used not in (0, cluster):
            self._judge(endpoint, cluster)

    def _judge(self, endpoint: Endpoint, cluster: int) -> None:
        former = self._identity.used
        match self._identity.judge(str(endpoint), cluster, time.monotonic()):
            case Cluster.FOREIGN:
                raise EndpointFailure(
                    f"it belongs to another cluster, {cluster:x}; ours is {self._identity.home:x}"
                )
            case Cluster.REPLACED:
                log.warning(
                    "another etcd cluster has taken the place of ours, following it",
                    endpoint=str(endpoint),
                    cluster_id=f"{cluster:x}",
                    former_cluster_id=f"{former:x}",
                )
            case Cluster.STRANGER if former != cluster:
                log.warning(
                    "no member of our etcd cluster answers, using another cluster meanwhile",
                    endpoint=str(endpoint),
                    cluster_id=f"{cluster:x}",
                    ours=f"{self._identity.home:x}",
                    after_s=ADOPT_AFTER_S,
                )
            case Cluster.BACK:
                log.warning("our etcd cluster answers again, leaving the other one")
                self._verified.clear()
                self._abort_watches("our own cluster answers again")
            case _:
                pass

    def _prefer(self, endpoint: Endpoint, failures: dict[str, EndpointFailure]) -> None:
        if endpoint not in self._endpoints:
            return  # replaced while it was asked
        index = self._endpoints.index(endpoint)
        if index != self._preferred:
            former = str(self._endpoints[self._preferred])
            log.info(
                "using another etcd endpoint",
                endpoint=str(endpoint),
                former=former,
                reason=failures.get(former),
            )
            self._preferred = index
        # One that is not in use names its cluster again before it is: its death goes unnoticed.
        self._verified &= {endpoint}

    def _avoid(self, endpoint: Endpoint) -> None:
        if self._endpoints[self._preferred] == endpoint:
            self._preferred = (self._preferred + 1) % len(self._endpoints)

    async def _authorized(
        self,
        endpoint: Endpoint,
        send: Callable[[str], Awaitable[T]],
        *,
        denial_is_doubtful: bool = False,
    ) -> T:
        """What `send` gives with our token, or with a new one if that one is not good any more.

        Args:
            denial_is_doubtful: etcd 3.5 calls a watch with an outdated token a lack of permission;
                a request that costs nothing tells the two apart.
        """
        token = await self._tokens.get(endpoint)
        try:
            answer = await send(token)
        except EndpointFailure as failure:
            if failure.silent:
                self._tokens.met_silence(token)
            raise
        except Refused as refused:
            doubtful = denial_is_doubtful and refused.code == Code.PERMISSION_DENIED
            if not self._tokens.configured:
                raise
            if not refused.wants_token and not (
                doubtful and await self._is_outdated(endpoint, token)
            ):
                self._tokens.accepted(token)
                raise
            self._tokens.distrust(token)
        else:
            self._tokens.accepted(token)
            return answer
        token = await self._tokens.get(endpoint)
        try:
            answer = await send(token)
        except Refused as refused:
            if not refused.wants_token:
                self._tokens.accepted(token)
            raise
        self._tokens.accepted(token)
        return answer

    async def _is_outdated(self, endpoint: Endpoint, token: str) -> bool:
        try:
            await self._post(endpoint, gateway.RANGE, gateway.range_request(b"\0"), token)
        except Refused as refused:
            return refused.wants_token
        return False

    async def _post(
        self,
        endpoint: Endpoint,
        path: str,
        body: gateway.Message,
        token: str,
        more_s: float = 0.0,
    ) -> gateway.Message:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        progress: list[float] = [time.monotonic()]
        addresses = await self._find(endpoint)
        work = asyncio.ensure_future(
            self._threads.run(
                lambda: self._client(endpoint, addresses).post(path, body, token, progress, more_s)
            )
        )
        silence_s = ENDPOINT_S + more_s
        end = progress[0] + TRICKLE_S + more_s
        try:
            while True:
                until = min(end, progress[0] + silence_s)
                await asyncio.wait({work}, timeout=max(0.0, until - time.monotonic()))
                if work.done():
                    return work.result()
                if time.monotonic() >= min(end, progress[0] + silence_s):
                    raise EndpointFailure("no answer in time", unsure=True, silent=True)
        finally:
            work.cancel()

    async def _find(self, endpoint: Endpoint) -> Sequence[str]:
        """Where an endpoint's host is.

        Raises:
            EndpointFailure: its name is not known, or DNS does not answer.
        """
        try:
            async with asyncio.timeout(NAME_S):
                return await self._names.addresses(endpoint.host)
        except TimeoutError as error:
            raise EndpointFailure(
                f"its name {endpoint.host!r} cannot be looked up: DNS does not answer in time"
            ) from error
        except OSError as error:
            raise EndpointFailure(explain(error, tls=False)) from error

    def _client(self, endpoint: Endpoint, addresses: Sequence[str]) -> EndpointClient:
        """The client of an endpoint; called in a thread, for its import takes long."""
        from pyflannel.store.etcd.transport import EndpointClient

        with self._clients_lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            client = self._clients.get(endpoint)
            if client is None:
                client = EndpointClient(endpoint, self._tls, connections=THREADS)
                self._clients[endpoint] = client
            client.reach_at(addresses)
            return client

    def reconnect(self, reason: str) -> None:
        """Breaks every connection; requests under way and watches go on over new ones.

        For when our own address has changed: what was connected from the old one gets no answer any
        more, and no word either. Single requests would notice after their deadline, a watch only by
        TCP keepalive.
        """
        with self._clients_lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.abort()
            client.close()
        self._abort_watches(reason)

    def _abort_watches(self, reason: str) -> None:
        for watches in (*self._former_watches, self._watch_client):
            if watches is not None:
                watches.abort(reason)

    async def close(self) -> None:
        """As in `Store`."""
        with self._clients_lock:
            self._closed = True
            clients = list(self._clients.values())
        for watches in (*self._former_watches, self._watch_client):
            if watches is not None:
                await watches.close()
        for client in clients:
            client.abort()
        await self._names.close()
        await self._threads.close(CLOSE_S)
        for client in clients:
            client.close()


_random: Final = random.SystemRandom()


def next_page(limit: int, kvs: Sequence[KeyValue]) -> int:
    """How many keys to ask for, after a page of `limit` gave these: as many as fit `PAGE_BYTES`."""
    size = sum(KEY_BYTES + max(len(kv.value), kv.left_out) for kv in kvs)
    fit = PAGE_BYTES * len(kvs) // size
    return max(1, min(MOST_KEYS, 4 * limit, fit))


def _is(kv: KeyValue, value: bytes, lease: int) -> bool:
    """Whether a key is as we meant to write it."""
    return kv.value == value and kv.lease == lease


def _text(key: bytes) -> str:
    """A key for a message."""
    return key.decode(errors="backslashreplace")
