"""The real etcd behind the `Store` protocol: what is asked, and what is tried again.

**Endpoints.** `turns.py` decides which one is asked, `connections.py` speaks to it.
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
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from pyflannel.core.errors import StoreCompacted, StoreConflict, StoreError, StoreLeaseNotFound
from pyflannel.core.ip import IPAddress, parse_ip
from pyflannel.core.options import EtcdOptions
from pyflannel.logs import get_logger
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.alive import Alive
from pyflannel.store.etcd.auth import Tokens
from pyflannel.store.etcd.base import (
    Header,
    KeyValue,
    LeaseStatus,
    RangeResult,
    Server,
    WatchResponse,
)
from pyflannel.store.etcd.connections import Connections
from pyflannel.store.etcd.endpoints import Endpoint, configured_endpoints
from pyflannel.store.etcd.failures import Code, EndpointFailure, Refused, unavailable
from pyflannel.store.etcd.listing import list_prefix
from pyflannel.store.etcd.password import Password
from pyflannel.store.etcd.turns import Answer, Turns, Unsure

if TYPE_CHECKING:
    from pyflannel.store.etcd.watch import Watch

log = get_logger(__name__)

T = TypeVar("T")

Connect = Callable[[EtcdOptions, Sequence[Endpoint]], Connections]

OPEN_WATCH_S: Final = 2.0
"""To connect and to be told that a watch exists."""
IDLE_S: Final = 5.0
"""Silence of an endpoint after which its watches have it probed. A frozen server is so noticed
within 6.5 s; a probe costs 2 ms of CPU, 0.04 % of the time, and 720 an hour are half of what a node
at rest costs etcd."""


class EtcdStore:
    """A `Store` on a real etcd; belongs to one event loop.

    Args:
        idle: seconds of silence after which a watch's endpoint is probed.
        connect: makes what speaks to the endpoints.

    Raises:
        StoreConfigError: an endpoint, a certificate or the password's file is wrong. Nothing is
            connected yet.
    """

    def __init__(
        self, options: EtcdOptions, *, idle: float = IDLE_S, connect: Connect = Connections
    ) -> None:
        endpoints = configured_endpoints(options)
        self._idle = idle
        self._alive = Alive(idle, self._probe, time.monotonic)
        self._connections = connect(options, endpoints)
        self._tokens = Tokens(options.username, Password(options), self._connections.post)
        self._turns = Turns(options, endpoints, self._connections, self._tokens)

    @property
    def cluster(self) -> int:
        """As in `Store`."""
        return self._turns.cluster

    def expect_cluster(self, cluster: int) -> None:
        """As in `Store`."""
        self._turns.expect_cluster(cluster)

    @property
    def is_stranger(self) -> bool:
        """As in `Store`."""
        return self._turns.is_stranger

    def describe(self) -> str:
        """As in `Store`."""
        return self._turns.describe()

    def addresses(self) -> frozenset[IPAddress]:
        """Where etcd is: endpoints given as addresses, and what names led to when connecting."""
        self._turns.hosts |= self._connections.reached()
        found = set()
        for text in self._turns.hosts:
            with suppress(ValueError):
                found.add(parse_ip(text))
        return frozenset(found)

    def server(self) -> Server:
        """As in `Store`."""
        return self._turns.server

    async def get(self, key: bytes) -> RangeResult:
        """As in `Store`."""
        body = gateway.range_request(key)
        return await self._read(f"read {_text(key)}", gateway.RANGE, body, gateway.parse_range)

    async def range_prefix(self, prefix: bytes) -> RangeResult:
        """As in `Store`."""
        what = f"list {_text(prefix)}"

        async def ask(request: gateway.Message) -> tuple[RangeResult, bool]:
            return await self._read(what, gateway.RANGE, request, gateway.parse_page)

        for last in (False, False, True):
            try:
                return await list_prefix(what, prefix, ask)
            except StoreCompacted:
                # Compacted between two pages: what was read so far is of no use.
                if last:
                    raise
        raise AssertionError("unreachable")

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
            except Unsure:
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
            except Unsure:
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
        with suppress(StoreError, EndpointFailure, TimeoutError):
            return await self._connections.holds_v2(self._turns.preferred, key)
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
                response = await watch.receive(self._alive.timeout_s(endpoint))
                if response is not None:
                    self._alive.heard(endpoint)
                    yield response
                else:
                    await self._alive.check(endpoint)
                self._turns.heard()
        except EndpointFailure as failure:
            self._turns.failed(endpoint)
            raise unavailable(what, {str(endpoint): failure}) from failure
        except Refused as refused:
            raise refused.as_store_error(what, str(endpoint)) from refused
        finally:
            watch.close()

    async def _open_watch(
        self, what: str, prefix: bytes, start_revision: int
    ) -> tuple[Endpoint, Watch]:
        request = gateway.watch_request(prefix, start_revision)
        client = await self._connections.watches()

        async def attempt(endpoint: Endpoint) -> tuple[Endpoint, Watch]:
            async def send(token: str) -> Watch:
                return await client.open(endpoint, request, token, OPEN_WATCH_S)

            watch = await self._tokens.authorized(endpoint, send, denial_is_doubtful=True)
            try:
                self._turns.recognise(endpoint, watch.first.header.cluster_id)
            except EndpointFailure:
                watch.close()
                raise
            return endpoint, watch

        return (await self._turns.in_turn(what, attempt, repeat=True)).value

    async def _probe(self, endpoint: Endpoint) -> None:
        """Returns if the endpoint is alive and has a leader.

        Raises:
            EndpointFailure: it has not.
        """
        try:
            status = await self._turns.status(endpoint)
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
    ) -> Answer[T]:
        async def attempt(endpoint: Endpoint) -> T:
            async def send(token: str) -> gateway.Message:
                return await self._connections.post(endpoint, path, body, token)

            answer = await self._tokens.authorized(endpoint, send)
            if "header" in answer:  # a renewal's stands deeper, and nothing is decided by it alone
                self._turns.recognise(endpoint, gateway.parse_header(answer).cluster_id)
            return parse(answer)

        return await self._turns.in_turn(what, attempt, repeat=repeat)

    def reconnect(self, reason: str) -> None:
        """Breaks every connection; requests under way and watches go on over new ones.

        For when our own address has changed: what was connected from the old one gets no answer any
        more, and no word either. Single requests would notice after their deadline, a watch only by
        TCP keepalive.
        """
        self._connections.reconnect(reason)

    async def close(self) -> None:
        """As in `Store`."""
        await self._connections.close()


_random: Final = random.SystemRandom()


def _is(kv: KeyValue, value: bytes, lease: int) -> bool:
    """Whether a key is as we meant to write it."""
    return kv.value == value and kv.lease == lease


def _text(key: bytes) -> str:
    """A key for a message."""
    return key.decode(errors="backslashreplace")
