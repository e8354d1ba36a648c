"""Requests on aiohttp.

Every request has a time-out; a stream has one until it begins, and then the caller supervises it.
Keepalive and TCP_USER_TIMEOUT detect a lost path within 15 s. Names are looked up in our own
threads. Proxies are those of the environment or the kubeconfig.

The module is imported late: aiohttp takes 100 ms.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import urllib.request
import weakref
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import aiohttp

import pyflannel
from pyflannel.aio.threads import ThreadPool
from pyflannel.core.errors import StoreUnavailable
from pyflannel.core.ip import IPAddress, parse_ip
from pyflannel.foreign import shown
from pyflannel.store.kubernetes.access import Access
from pyflannel.store.kubernetes.base import Reply, Request
from pyflannel.store.kubernetes.credentials import Credentials
from pyflannel.store.resolver import Resolver, in_threads

CONNECT_S: Final = 3.0
"""Before kube-proxy has set it up, a service address drops packets; so the next attempt comes
soon."""
ANSWER_S: Final = 10.0
"""For one answer with its body. A page of nodes takes an API server 0.05 s of CPU; it waits 3 s at
most for its own cache."""
MOST_BYTES: Final = 64 << 20
"""Largest answer: a page of 500 nodes has 4 MB as kubelets make them."""
THREADS: Final = 2
CLOSE_S: Final = 0.5

_SOCKET_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    # In milliseconds; for sent data without an acknowledgement.
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000),
)


class HttpTransport:
    """A `Transport` to one API server."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._credentials = Credentials(access)
        self._threads = ThreadPool("kube-dns", THREADS)
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._streams: weakref.WeakSet[HttpStream] = weakref.WeakSet()
        self._reached: set[IPAddress] = set()
        self._connections: list[asyncio.Transport] = []
        self._closed = False

    async def ask(self, request: Request) -> Reply:
        """As in `Transport`."""
        try:
            async with asyncio.timeout(ANSWER_S):
                response = await self._send(request)
                return await self._whole(response)
        except TimeoutError:
            raise self._unavailable(request, "no answer in time", silent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(request, explain(error)) from error

    async def stream(self, request: Request) -> HttpStream | Reply:
        """As in `Transport`."""
        try:
            async with asyncio.timeout(ANSWER_S):
                response = await self._send(request)
                if response.status != HTTPStatus.OK:
                    return await self._whole(response)
        except TimeoutError:
            raise self._unavailable(request, "no answer in time", silent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(request, explain(error)) from error
        stream = HttpStream(response)
        self._streams.add(stream)
        return stream

    async def _send(self, request: Request) -> aiohttp.ClientResponse:
        session = await self._open()
        url = f"{self._access.server}{request.path}"
        headers = {
            **self._credentials.headers(),
            "Accept": "application/json",
            "User-Agent": f"pyflanneld/{pyflannel.__version__}",
        }
        if request.content_type:
            headers["Content-Type"] = request.content_type
        response = await session.request(
            request.method,
            url,
            params=dict(request.query),
            data=request.body or None,
            headers=headers,
            proxy=self._proxy() or None,
            server_hostname=self._access.server_name or None,
            allow_redirects=False,
        )
        self._look_at(response)
        return response

    async def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        context = self._credentials.context()
        if self._session is not None and context is not self._context:
            former, self._session = self._session, None
            await former.close()  # with the former certificate
        if self._session is None:
            self._context = context
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=context if context is not None else True,
                    resolver=Resolver(in_threads(self._threads)),
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _proxy(self) -> str:
        if self._access.proxy:
            return self._access.proxy
        parts = urlsplit(self._access.server)
        if urllib.request.proxy_bypass(parts.hostname or ""):
            return ""
        return urllib.request.getproxies().get(parts.scheme, "")

    def _look_at(self, response: aiohttp.ClientResponse) -> None:
        """Sets the options of the connection's socket and notes where it leads."""
        connection = response.connection
        transport = connection.transport if connection is not None else None
        sock = transport.get_extra_info("socket") if transport is not None else None
        if transport is None or sock is None:
            return
        for level, option, value in _SOCKET_OPTIONS:
            sock.setsockopt(level, option, value)
        if transport not in self._connections:
            self._connections = [t for t in self._connections if not t.is_closing()]
            self._connections.append(transport)
        try:
            self._reached.add(parse_ip(str(sock.getpeername()[0])))
        except (OSError, ValueError):
            return

    async def _whole(self, response: aiohttp.ClientResponse) -> Reply:
        parts: list[bytes] = []
        length = 0
        async for part in response.content.iter_chunked(1 << 16):
            length += len(part)
            if length > MOST_BYTES:
                response.close()
                raise StoreUnavailable(f"an answer has more than {MOST_BYTES} bytes")
            parts.append(part)
        response.release()
        return Reply(
            status=response.status,
            body=b"".join(parts),
            retry_after_s=_seconds(response.headers),
        )

    def _unavailable(
        self, request: Request, reason: str, *, silent: bool = False
    ) -> StoreUnavailable:
        error = StoreUnavailable(
            f"{request.method} {self._access.server}{request.path}: {reason}", kind=reason
        )
        error.silent = silent
        return error

    def drop(self, error: Exception) -> None:
        """As in `Transport`."""
        for stream in list(self._streams):
            stream.abort(error)
        self._context = None  # the next request makes a session of its own

    def addresses(self) -> Collection[IPAddress]:
        """As in `Transport`."""
        try:
            return (parse_ip(urlsplit(self._access.server).hostname or ""),)
        except ValueError:
            return frozenset(self._reached)

    def describe(self) -> str:
        """As in `Transport`."""
        return self._access.server

    async def close(self) -> None:
        """As in `Transport`."""
        self._closed = True
        for stream in list(self._streams):
            stream.abort(StoreUnavailable("the store is closed"))
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        # A closed TLS connection waits for the server's answer; the loop may end before that.
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.abort()
        for _ in range(2):
            await asyncio.sleep(0)
        await self._threads.close(CLOSE_S)


class HttpStream:
    """A `Stream` on a connection of its own."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def chunk(self) -> bytes:
        """As in `Stream`."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            reason = f"the watch broke: {explain(error)}"
            raise StoreUnavailable(reason, kind=reason) from error

    def abort(self, error: Exception) -> None:
        """As in `Stream`. `close` alone does not wake a reader."""
        self._response.content.set_exception(error)
        self._response.close()

    def close(self) -> None:
        """As in `Stream`."""
        self._response.close()


def _seconds(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() else 0.0


def explain(error: BaseException) -> str:
    """Why there was no answer, in a phrase."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not accepted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"its name cannot be looked up: {error.os_error.strerror or error.os_error}"
    if isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return f"TLS failed: {shown(error)}"
    if isinstance(error, aiohttp.ServerTimeoutError | TimeoutError):
        return "no connection in time"
    cause: object = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    return shown(str(error) or type(error).__name__)
