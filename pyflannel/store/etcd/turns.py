"""Whose turn it is: which endpoint of etcd is asked, which next, and whether it is of our cluster.

Requests go to the endpoint that answered last. If it gives no answer within its deadline (dead,
frozen, without a quorum), the next one is asked, and remembered if it does better. While none is in
use (at a start, after a failure), those of our cluster are asked who they are at nearly the same
time, and the first to answer is used: silent ones would cost a second each.

`identity.py` judges whose cluster an answer is from; `discovery.py` finds endpoints by SRV records.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Generic, TypeVar

from pyflannel.aio.race import first_to_answer
from pyflannel.core.errors import StoreUnavailable
from pyflannel.core.options import EtcdOptions
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.auth import Tokens
from pyflannel.store.etcd.base import Server
from pyflannel.store.etcd.connections import Connections
from pyflannel.store.etcd.discovery import Discovery, DiscoveryError
from pyflannel.store.etcd.endpoints import Endpoint
from pyflannel.store.etcd.failures import AnswerTooLong, EndpointFailure, Refused, unavailable
from pyflannel.store.etcd.identity import ADOPT_AFTER_S, Cluster, Identity

log = get_logger(__name__)

T = TypeVar("T")

HEAD_START_S: Final = 0.15
"""How long the endpoint that is first in line is asked alone. It answers within milliseconds, but
the first request of all imports its library."""
LOOK_AROUND_S: Final = 0.5
"""For all of them to answer who they are, before they are asked in turn all the same."""
HOME_EVERY_S: Final = 30.0
"""Between two looks for our own cluster while a stranger is used."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What one of the endpoints answered."""

    value: T
    unsure: bool
    """An earlier attempt may have been carried out as well."""


class Unsure(StoreUnavailable):
    """A write got no answer, and it is not known whether it was carried out."""


class Turns:
    """The endpoints, in the order in which they are asked; belongs to one event loop.

    Args:
        endpoints: those that are configured; none if they come from SRV records.
    """

    def __init__(
        self,
        options: EtcdOptions,
        endpoints: tuple[Endpoint, ...],
        connections: Connections,
        tokens: Tokens,
    ) -> None:
        self._endpoints = endpoints
        self._connections = connections
        self._tokens = tokens
        self._discovery = (
            Discovery(options, connections.threads, random.SystemRandom())
            if options.discovery_srv
            else None
        )
        self._discovering = asyncio.Lock()
        self._all_failed = False
        self._preferred = 0
        self._identity = self._memory_of(0)
        self._verified: set[Endpoint] = set()
        self._introduced = asyncio.Lock()
        self._home_tried = float("-inf")
        self.hosts = {endpoint.host for endpoint in endpoints}
        """Those of all endpoints that there were."""
        self.server = Server()
        """What an endpoint said of itself last."""

    def _memory_of(self, cluster: int) -> Identity:
        names = [str(endpoint) for endpoint in self._endpoints]
        return Identity(names, cluster, time.monotonic())

    @property
    def cluster(self) -> int:
        """As in `Store`."""
        return self._identity.home

    def expect_cluster(self, cluster: int) -> None:
        """As in `Store`."""
        self._identity = self._memory_of(cluster)
        self._verified.clear()

    @property
    def is_stranger(self) -> bool:
        """As in `Store`."""
        return self._identity.is_stranger

    @property
    def preferred(self) -> Endpoint:
        """The one that answered last, or will be asked first."""
        return self._endpoints[self._preferred]

    def describe(self) -> str:
        """As in `Store`."""
        if self._discovery is not None and not self._endpoints:
            return self._discovery.describe()
        return ", ".join(str(endpoint) for endpoint in self._endpoints)

    async def in_turn(
        self, what: str, attempt: Callable[[Endpoint], Awaitable[T]], *, repeat: bool
    ) -> Answer[T]:
        """The first answer of an endpoint, starting with the one that answered last.

        Args:
            repeat: go on after an attempt that may have been carried out.
        """
        self._connections.follow_files()
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
                        raise Unsure(
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
                    return Answer(value, unsure)
        self._all_failed = True
        error = unavailable(what, failures)
        if isinstance(error, StoreUnavailable):
            error.silent = any(failure.silent for failure in failures.values())
        raise error

    def heard(self) -> None:
        """The endpoint in use has said something."""
        self._identity.heard(time.monotonic())

    def failed(self, endpoint: Endpoint) -> None:
        """One is to be asked last, and to name its cluster before it is used again."""
        if self._endpoints[self._preferred] == endpoint:
            self._preferred = (self._preferred + 1) % len(self._endpoints)
        self._verified.discard(endpoint)

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
                if found[0].scheme == "https":
                    await self._connections.need_tls()
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
        self.hosts |= {endpoint.host for endpoint in endpoints}

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
        return gateway.parse_header(await self.status(endpoint)).cluster_id

    async def status(self, endpoint: Endpoint) -> gateway.Message:
        """What an endpoint says of itself, which needs no token.

        Raises:
            EndpointFailure, Refused: it does not say.
        """
        began = time.monotonic()
        status = await self._connections.post(endpoint, gateway.STATUS, {}, "")
        self._tokens.answered_without(time.monotonic() - began)
        self.server = gateway.parse_server(status)
        return status

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

    def recognise(self, endpoint: Endpoint, cluster: int) -> None:
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
                self._connections.abort_watches("our own cluster answers again")
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
