"""HTTP for probes and Prometheus: `/healthz`, `/readyz` and `/metrics`.

The server speaks as upstream's does: any method, exact paths, plain text to the byte and no
newline. It is only there with `--healthz-port`, and from before the network config is known. An
address of all zeros, in either family, means every address of both families, as with upstream (Go's
`net.Listen`). Strangers may reach the port, so a gate bounds what they can hold.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final

from aiohttp import web

from pyflannel.aio.threads import ThreadPool
from pyflannel.api.gate import Gate, Limits
from pyflannel.api.metrics import CONTENT_TYPE, Scrapes
from pyflannel.core.errors import DeviceUnavailable
from pyflannel.foreign import shown
from pyflannel.logs import get_logger
from pyflannel.report.source import Source

log = get_logger(__name__)

SHUTDOWN_S: Final = 0.25
"""A probe that hangs must not hold up SIGTERM; aiohttp waits up to twice this (measured)."""
BACKLOG: Final = 128
"""Connections that the kernel accepts before we do; asyncio's own default is 100."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RESOLVE_S: Final = 5.0
"""For a name in the place of the address."""


def _plain(text: str, status: int = 200) -> web.Response:
    return web.Response(
        body=text.encode(),
        status=status,
        headers={"Content-Type": "text/plain; charset=utf-8"},
    )


Trouble = Callable[[], str]
"""Why a node that was ready does not do its work now; empty if it does."""


def no_trouble() -> str:
    """For `/readyz` as upstream has it: once ready, always ready."""
    return ""


def health_app(
    ready: Callable[[], bool], scrapes: Scrapes | None = None, trouble: Trouble = no_trouble
) -> web.Application:
    """`/healthz`, `/readyz`, `/metrics`, and upstream's 404 for everything else.

    Args:
        ready: whether the node is ready.
        scrapes: answers `/metrics`; without it there is none.
        trouble: asked by `/readyz` of a node that is ready.
    """

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/healthz":
            return _plain("flanneld is running")
        if request.path == "/readyz":
            if not ready():
                return _plain("flanneld is not ready yet", 503)
            why = trouble()
            return _plain(f"not ready: {shown(why)}", 503) if why else _plain("flanneld is ready")
        if request.path == "/metrics" and scrapes is not None:
            body = await scrapes.answer()
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
        missing = _plain("404 page not found\n", 404)
        missing.headers["X-Content-Type-Options"] = "nosniff"
        return missing

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


class HealthServer:
    """The server, from `start` to `cleanup`.

    Args:
        ready: whether the node is ready.
        limits: what strangers can hold of it.
        scrapes: answers `/metrics`; without it there is none.
    """

    def __init__(
        self,
        ready: Callable[[], bool],
        limits: Limits | None = None,
        scrapes: Scrapes | None = None,
        trouble: Trouble = no_trouble,
    ) -> None:
        app = health_app(ready, scrapes, trouble)

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._gate.served(request.transport)
            return await handler(request)

        app.middlewares.append(note)
        # A body is not read here; one that is announced and does not come is not waited for.
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=SHUTDOWN_S, lingering_time=0.0
        )
        self._limits = limits if limits is not None else Limits()
        self._gate: Gate
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._gate)

    async def start(self, host: str, port: int) -> None:
        """Listens.

        Raises:
            DeviceUnavailable: the address or the port is not available.
        """
        listening = await _listen(host, port)
        await self._runner.setup()
        make = self._runner.server
        assert make is not None  # noqa: S101 - set by setup()
        self._gate = Gate(make, self._limits)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._gate, sock=listening, backlog=BACKLOG)
        log.info(f"Start healthz server on {host}:{port}", host=host, port=port)

    async def cleanup(self) -> None:
        """Stops listening and ends all connections."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


async def serve_health(
    ready: Callable[[], bool],
    source: Source | None,
    host: str,
    port: int,
    trouble: Trouble = no_trouble,
) -> HealthServer:
    """Starts the health server.

    Args:
        ready: whether the node is ready.
        source: what `/metrics` is made of; `None` for no metrics.
        host: the address to listen on.
        port: the port.
        trouble: why `/readyz` says that the node does not do its work; empty if it does.

    Raises:
        DeviceUnavailable: the address or the port is not available.
    """
    scrapes = Scrapes(source) if source is not None else None
    server = HealthServer(ready, scrapes=scrapes, trouble=trouble)
    await server.start(host, port)
    return server


async def _listen(host: str, port: int) -> socket.socket:
    family, address = await _resolve(host, port)
    try:
        return _bound(family, address)
    except OSError as error:
        code = error.errno or 0
        if code in _NO_IPV6 and host == UNSPECIFIED_V4:
            try:
                return _bound(socket.AF_INET, (host, port))
            except OSError as again:
                code = again.errno or 0
        raise _refused(host, port, code) from error


UNSPECIFIED_V4: Final = "0.0.0.0"  # noqa: S104 - upstream's default
_NO_IPV6: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
"""How a kernel without IPv6 refuses the socket, or its address."""


async def _resolve(host: str, port: int) -> tuple[int, tuple[str | int, ...]]:
    """Family and address to bind to.

    Raises:
        DeviceUnavailable: it is no address, and no name that can be resolved.
    """
    try:
        if ip_address(host).is_unspecified:
            return socket.AF_INET6, ("::", port)
    except ValueError:
        pass  # a name, or an address with a zone
    # Not a thread of the loop: those are waited for at its end.
    threads = ThreadPool("healthz-name", 1)
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await threads.run(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
    except (OSError, UnicodeError, TimeoutError) as error:
        hint = "--healthz-ip is neither an address nor a name that resolves"
        raise DeviceUnavailable("listen for health probes on", _at(host, port), 0, hint) from error
    finally:
        await threads.close(0.0)
    family, _, _, _, address = found[0]
    return family, tuple(part if isinstance(part, int) else str(part) for part in address)


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(address)
        made.settimeout(0)
    except BaseException:
        made.close()
        raise
    return made


def _at(host: str, port: int) -> str:
    return f"[{shown(host)}]:{port}" if ":" in host else f"{shown(host)}:{port}"


def _refused(host: str, port: int, code: int) -> DeviceUnavailable:
    hint = {
        errno.EADDRINUSE: "choose another --healthz-port, or end what listens there",
        errno.EADDRNOTAVAIL: "--healthz-ip is not an address of this machine",
        errno.EACCES: "a --healthz-port below 1024 needs CAP_NET_BIND_SERVICE; choose another",
    }.get(code, "choose another --healthz-ip")
    return DeviceUnavailable("listen for health probes on", _at(host, port), code, hint)
