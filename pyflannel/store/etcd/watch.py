"""The watch, on aiohttp: one long POST whose answer never ends.

etcd3gw has a watch, but it hangs without a word when the server dies, when history was compacted
and when it is not allowed; so this one reads the gateway's stream itself. Chunks are taken raw and
cut into lines by us, for a message may be larger than any line buffer.

A connection that says nothing may be healthy, cut off, or lead to a frozen server. Three things
tell them apart, cheaply enough for a daemon at rest: TCP keepalive by the kernel for a lost path,
the caller's probe of the same endpoint after each `idle` seconds of silence for a frozen server,
and etcd's own "require leader" for a member without a quorum.

The module is imported late, in a thread: aiohttp takes 100 ms, half of it for loading the system's
CA certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Final, cast

import aiohttp

from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.base import WatchResponse
from pyflannel.store.etcd.endpoints import Endpoint
from pyflannel.store.etcd.failures import EndpointFailure, NoGateway, explain, not_etcd
from pyflannel.store.names import Names
from pyflannel.store.resolver import Resolver

LARGE_LINE_BYTES: Final = 64 * 1024
"""Of an answer that is read in a thread: some 500 events, 3 ms."""
CONNECT_S: Final = 1.0
"""As for single requests."""

_ERROR_BODY_BYTES: Final = 64 * 1024
"""What we read of an answer that is not a watch."""

_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
)
"""A path that is gone (a firewall forgot the connection, say) is noticed after 10 + 2·5 s."""


class WatchClient:
    """Opens watches; holds what they share."""

    def __init__(self, context: ssl.SSLContext | None, names: Names) -> None:
        connector = aiohttp.TCPConnector(
            ssl=context if context is not None else True,
            resolver=Resolver(names.addresses),
            # Each watch has a connection to itself, for as long as it lasts.
            force_close=True,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._api_paths: dict[Endpoint, str] = {}
        self._open_watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    async def open(
        self, endpoint: Endpoint, request: gateway.Message, token: str, within: float
    ) -> Watch:
        """A watch that the server has confirmed.

        Raises:
            StoreCompacted: the start revision is gone.
            Refused: not allowed.
            EndpointFailure: no confirmation came `within` seconds.
        """
        try:
            async with asyncio.timeout(within):
                headers = {"Authorization": token} if token else {}
                return await self._open(endpoint, request, {**headers, **gateway.REQUIRE_LEADER})
        except TimeoutError as error:
            raise EndpointFailure("no answer in time", silent=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise EndpointFailure(explain(error, tls=endpoint.scheme == "https")) from error

    async def _open(
        self, endpoint: Endpoint, request: gateway.Message, headers: Mapping[str, str]
    ) -> Watch:
        path = self._api_paths.get(endpoint, gateway.API_PATHS[0])
        try:
            return await self._open_at(path, endpoint, request, headers)
        except NoGateway:
            if path != gateway.API_PATHS[0]:
                raise
            # An older etcd has the same gateway elsewhere.
            with contextlib.suppress(EndpointFailure):
                old = {"create_request": dict(cast("gateway.Message", request["create_request"]))}
                old["create_request"].pop("fragment", None)
                watch = await self._open_at(gateway.API_PATHS[1], endpoint, old, headers)
                self._api_paths[endpoint] = gateway.API_PATHS[1]
                return watch
            raise

    async def _open_at(
        self, path: str, endpoint: Endpoint, request: gateway.Message, headers: Mapping[str, str]
    ) -> Watch:
        response = await self._session.post(
            f"{endpoint}{path}{gateway.WATCH}",
            data=json.dumps(request).encode(),
            headers={"Content-Type": "application/json", **headers},
            server_hostname=endpoint.certified or None,
        )
        try:
            if response.status != 200:
                text = (await response.content.read(_ERROR_BODY_BYTES)).decode(errors="replace")
                raise gateway.parse_error(text) or not_etcd(response.status, text)  # noqa: TRY301
            _keep_alive(response)
            watch = Watch(response)
            self._open_watches.add(watch)
            await watch.confirm()
        except BaseException:
            response.close()
            raise
        return watch

    def abort(self, reason: str) -> None:
        """Breaks all watches; waiting for one of them fails at once."""
        for watch in list(self._open_watches):
            watch.abort(reason)

    async def close(self) -> None:
        """Breaks all watches and closes their connections."""
        self.abort("the store is closed")
        await self._session.close()


class Watch:
    """One confirmed watch; belongs to one task."""

    first: WatchResponse
    """The confirmation: the server's header, and seldom events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._splitter = gateway.LineSplitter()
        self._lines: deque[bytes] = deque()

    async def confirm(self) -> None:
        """Waits for `first`; called once."""
        self.first = await self._next()

    async def receive(self, idle: float) -> WatchResponse | None:
        """The next answer, or `None` if there was none for `idle` seconds.

        Raises:
            StoreCompacted, Refused: the server ended the watch for that.
            EndpointFailure: the connection or the server is gone.
        """
        if not self._lines:
            try:
                async with asyncio.timeout(idle):
                    return await self._next()
            except TimeoutError:
                return None
        return await self._next()

    async def _next(self) -> WatchResponse:
        while not self._lines:
            try:
                chunk = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise EndpointFailure(f"the watch broke: {explain(error, tls=None)}") from error
            if not chunk:
                raise EndpointFailure("the server ended the watch")
            self._lines.extend(self._splitter.feed(chunk))
        # Taken when it has been read: who waits may be cancelled on the way.
        line = self._lines[0]
        if len(line) > LARGE_LINE_BYTES:
            response = await asyncio.to_thread(gateway.parse_watch_line, line)
        else:
            response = gateway.parse_watch_line(line)
        self._lines.popleft()
        return response

    def abort(self, reason: str) -> None:
        """Has `receive` fail at once; a mere `close` does not wake it."""
        self._response.content.set_exception(EndpointFailure(reason))
        self.close()

    def close(self) -> None:
        """Ends the watch by closing its connection. Twice is fine."""
        self._response.close()


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    transport = response.connection.transport if response.connection is not None else None
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None:
        for level, option, value in _KEEPALIVE:
            sock.setsockopt(level, option, value)
