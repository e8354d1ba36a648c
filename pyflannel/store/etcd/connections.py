"""The connections to etcd's endpoints: names, certificates, threads, time-outs.

Nothing is imported, resolved or connected before the first request, and aiohttp not before the
first watch; both imports run in threads of this module. It does what it is told: which endpoint is
asked is decided in `turns.py`.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyflannel.aio.threads import ThreadPool
from pyflannel.core.errors import StoreConfigError, StoreUnavailable
from pyflannel.core.options import EtcdOptions
from pyflannel.logs import get_logger
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.endpoints import Endpoint, files_stamp, first_context, tls_context
from pyflannel.store.etcd.failures import EndpointFailure, explain
from pyflannel.store.names import Names

if TYPE_CHECKING:
    from pyflannel.store.etcd.transport import EndpointClient
    from pyflannel.store.etcd.watch import WatchClient

log = get_logger(__name__)

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
FILES_EVERY_S: Final = 1.0
"""Between two looks at the certificates' files, made with requests only: three stats."""
CLOSE_S: Final = 0.5
"""How long `close` waits for threads whose requests it has just broken off."""


class Connections:
    """A client of each endpoint, made when it is needed; belongs to one event loop.

    Args:
        endpoints: those that are configured, by which TLS is needed or not.

    Raises:
        StoreConfigError: a certificate is wrong. Nothing is connected yet.
    """

    def __init__(self, options: EtcdOptions, endpoints: Sequence[Endpoint]) -> None:
        self._options = options
        self._stamp = files_stamp(options)
        self._tls = first_context(options, endpoints)
        self._files_looked_at = time.monotonic()
        self._files_wrong = ""
        self._names = Names()
        self._clients: dict[Endpoint, EndpointClient] = {}
        self._clients_lock = threading.Lock()
        self._watch_client: WatchClient | None = None
        self._former_watches: list[WatchClient] = []
        self._opening = asyncio.Lock()
        self._closed = False
        self.threads = ThreadPool("etcd", THREADS)
        """Where what blocks is done."""

    def reached(self) -> frozenset[str]:
        """The addresses that have been connected to."""
        with self._clients_lock:
            found = [client.reached() for client in self._clients.values()]
        return frozenset[str]().union(*found)

    async def need_tls(self) -> None:
        """Reads the certificates, for endpoints that turned out to want TLS.

        Raises:
            StoreConfigError: they are wrong.
        """
        if self._tls is None:
            self._tls = await self.threads.run(lambda: tls_context(self._options, used=True))

    async def holds_v2(self, endpoint: Endpoint, key: bytes) -> bool | None:
        """Whether an endpoint has a key in the store of etcd's second API.

        Raises:
            StoreError, EndpointFailure, TimeoutError: it does not say.
        """
        async with asyncio.timeout(ENDPOINT_S):
            addresses = await self._find(endpoint)
            return await self.threads.run(lambda: self._client(endpoint, addresses).holds_v2(key))

    async def watches(self) -> WatchClient:
        """What opens watches, imported when it is first asked for.

        Raises:
            StoreUnavailable: the store is closed.
        """
        async with self._opening:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._watch_client is None:
                module = await self.threads.run(
                    lambda: importlib.import_module("pyflannel.store.etcd.watch")
                )
                self._watch_client = module.WatchClient(self._tls, self._names)
            return self._watch_client

    def follow_files(self) -> None:
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

    async def post(
        self,
        endpoint: Endpoint,
        path: str,
        body: gateway.Message,
        token: str,
        more_s: float = 0.0,
    ) -> gateway.Message:
        """One request to one endpoint, and its answer.

        Args:
            token: of the user, empty without one.
            more_s: to be more patient by.

        Raises:
            EndpointFailure: no answer.
            Refused: etcd answers with an error.
            StoreUnavailable: the store is closed.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        progress: list[float] = [time.monotonic()]
        addresses = await self._find(endpoint)
        work = asyncio.ensure_future(
            self.threads.run(
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
        self.abort_watches(reason)

    def abort_watches(self, reason: str) -> None:
        """Ends the open watches; they are opened again, at whatever endpoint is used then."""
        for watches in (*self._former_watches, self._watch_client):
            if watches is not None:
                watches.abort(reason)

    async def close(self) -> None:
        """Ends everything, also what is under way."""
        with self._clients_lock:
            self._closed = True
            clients = list(self._clients.values())
        for watches in (*self._former_watches, self._watch_client):
            if watches is not None:
                await watches.close()
        for client in clients:
            client.abort()
        await self._names.close()
        await self.threads.close(CLOSE_S)
        for client in clients:
            client.close()
