"""The page over HTTP: files, events, and the past of a peer.

`GET /` and what belongs to it; `/events?node=NAME` sends `PageState` and the nodes' briefs whenever
something changed (server-sent events); `/history?node=NAME&peer=SUBNET` has a peer's samples. There
is no other resource, and no request changes anything. Only requests whose `Host` is an address or
`localhost` are answered. Connections and streams are bounded, and a client that does not read is
dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib import resources
from typing import Any, Final

from aiohttp import web

from pyflannel.api.gate import Gate, Limits
from pyflannel.records import dataclass
from pyflannel.web import asker
from pyflannel.web.address import may_ask
from pyflannel.web.watch import Watched

FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""In every answer: the page loads nothing from elsewhere and nothing inline, and no other site may
frame or include it."""
SHUTDOWN_S: Final = 0.25
BACKLOG: Final = 128
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds on what clients can use of the server."""

    connections: Limits = Limits()
    streams: int = 16
    """Pages that are open at a time."""
    send_s: float = 10.0
    """Time for a page to read what it was sent."""
    quiet_s: float = 15.0
    """Between two keep-alive messages to a page. Proxies close a silent connection after 60 s."""


class PageServer:
    """The server, from `start` to `cleanup`.

    Args:
        nodes: the watched daemons, by name; the page shows the first unless another one is chosen.
        bounds: limits for clients.
    """

    def __init__(self, nodes: Iterable[Watched], bounds: Bounds | None = None) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._bounds = bounds if bounds is not None else Bounds()
        self._files = {
            path: (resources.files("pyflannel.web").joinpath("page", name).read_bytes(), kind)
            for path, (name, kind) in FILES.items()
        }
        self._changed = asyncio.Condition()
        self._streams = 0
        self._ending = False
        self._gate: Gate
        self._server: asyncio.Server | None = None
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/events", self._events, allow_head=False)
        app.router.add_get("/history", self._history)
        for path in self._files:
            app.router.add_get(path, self._file)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
            lingering_time=0.0,
            handler_cancellation=True,  # a page that is closed makes room at once
        )

    async def start(self, listening: socket.socket) -> None:
        """Accepts connections on a socket that listens or is bound."""
        await self._runner.setup()
        make = self._runner.server
        assert make is not None  # noqa: S101 - set by setup()
        self._gate = Gate(make, self._bounds.connections)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._gate, sock=listening, backlog=BACKLOG)

    async def take(self, name: str, answer: Mapping[str, Any]) -> None:
        """An answer of the asker about one node."""
        if name in self._nodes:
            self._nodes[name].take(answer, time.time())
            async with self._changed:
                self._changed.notify_all()

    async def cleanup(self) -> None:
        """Stops listening and ends all connections."""
        if self._server is not None:
            self._server.close()
        self._ending = True
        async with self._changed:
            self._changed.notify_all()
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._gate.served(request.transport)
        if not may_ask(request.headers.get("Host")):
            text = "This page answers to addresses and to localhost only.\n"
            return web.Response(status=421, text=text, headers=HEADERS)
        try:
            answer = await handler(request)
        except web.HTTPException as error:  # aiohttp's own: no such resource, no such method
            error.headers.update(HEADERS)
            raise
        if not answer.prepared:
            answer.headers.update(HEADERS)
        return answer

    async def _file(self, request: web.Request) -> web.Response:
        body, kind = self._files[request.path]
        return web.Response(body=body, headers={"Content-Type": kind})

    def _node(self, request: web.Request) -> Watched:
        name = request.query.get("node") or next(iter(self._nodes), "")
        if name not in self._nodes:
            raise web.HTTPNotFound(text="no such node\n")
        return self._nodes[name]

    async def _history(self, request: web.Request) -> web.Response:
        samples = self._node(request).samples(request.query.get("peer", ""))
        return web.json_response({"samples": samples})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        if self._streams >= self._bounds.streams:
            text = "too many pages are open\n"
            return web.Response(status=503, text=text, headers={"Retry-After": "10"})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", **HEADERS})
        self._streams += 1
        try:
            await answer.prepare(request)
            with contextlib.suppress(ConnectionError):  # the page was closed
                await self._stream(request, answer, node)
        finally:
            self._streams -= 1
        return answer

    async def _stream(
        self, request: web.Request, answer: web.StreamResponse, node: Watched
    ) -> None:
        text = "retry: 2000\n\n"
        seen = -1
        while not self._ending:
            if self._version() != seen:
                seen = self._version()
                text += f"data: {json.dumps(self._message(node))}\n\n"
            try:
                async with asyncio.timeout(self._bounds.send_s):
                    await answer.write(text.encode())
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()  # close waits for a client that does not read
                return
            self._gate.served(request.transport)
            text = ""
            try:
                async with asyncio.timeout(self._bounds.quiet_s), self._changed:
                    while self._version() == seen and not self._ending:
                        await self._changed.wait()
            except TimeoutError:
                text = ": still here\n\n"

    def _version(self) -> int:
        return sum(node.version for node in self._nodes.values())

    def _message(self, node: Watched) -> dict[str, object]:
        briefs = [each.brief() for each in self._nodes.values()]
        return {**node.page(), "nodes": briefs, "at": time.time()}


async def serve(
    server: PageServer, listening: socket.socket, channel: socket.socket, interval_s: float
) -> None:
    """Serves the page until the asker has ended.

    Args:
        server: not started.
        listening: bound to where the page is served.
        channel: the other end of the asker's.
        interval_s: between two questions.
    """
    reader, writer = await asyncio.open_connection(sock=channel)
    await server.start(listening)
    asking = asyncio.create_task(_ask(writer, interval_s), name="ask")
    try:
        while True:
            await server.take(*await asker.read_answer(reader))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the asker has ended, so does the page
    finally:
        asking.cancel()
        await server.cleanup()
        writer.close()


async def _ask(writer: asyncio.StreamWriter, interval_s: float) -> None:
    with contextlib.suppress(ConnectionError):  # said by the reader
        while True:
            writer.write(asker.NOW)
            await writer.drain()
            await asyncio.sleep(interval_s)
