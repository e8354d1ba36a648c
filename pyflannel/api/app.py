"""HTTP on a unix socket: `/status`, for root and for a group that may be named."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from pyflannel.aio.pace import paced
from pyflannel.core.errors import FlannelError
from pyflannel.kernel import unixsocket
from pyflannel.logs import get_logger
from pyflannel.report.codec import encode_in_parts
from pyflannel.report.source import Source

log = get_logger(__name__)

SHUTDOWN_S = 0.25
"""A probe that hangs must not hold up SIGTERM; aiohttp waits up to twice this (measured)."""
SENT_AT_ONCE = 100
"""Records of peers in a piece of an answer: some 50 KB."""
CHECK_INTERVAL_S = 1.0
"""Between two looks whether the status socket is still there; a stat(2) costs nothing."""


def status_app(source: Source) -> web.Application:
    """`GET /status`: the node's report as JSON."""

    async def status(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
        await answer.prepare(request)
        waiting: list[str] = []
        async for part in paced(encode_in_parts(source.report(), source.peer_reports())):
            waiting.append(part)
            if len(waiting) >= SENT_AT_ONCE:
                await answer.write("".join(waiting).encode())
                waiting.clear()
        await answer.write("".join(waiting).encode())
        await answer.write_eof()
        return answer

    app = web.Application()
    app.router.add_get("/status", status)
    return app


async def serve_status(source: Source, path: str, group: str = "") -> web.AppRunner:
    """Starts the status socket. A dead daemon's socket is replaced, nothing else is.

    Args:
        source: makes the node's reports.
        path: of the socket.
        group: whose members may ask as well (mode 0660); empty for root alone (0600).

    Raises:
        DeviceUnavailable: it cannot be made, or something else stands there.
        ConfigError: there is no such group.
    """
    listening = unixsocket.listen(
        path,
        purpose="status socket",
        option="--status-socket",
        group=unixsocket.group_id(group) if group else None,
    )
    runner = web.AppRunner(status_app(source), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    # Not UnixSite: asyncio removes whatever socket stands at its path.
    await web.SockSite(runner, listening).start()
    return runner


async def keep_status(
    source: Source, path: str, failed: Callable[[str], bool], group: str = ""
) -> NoReturn:
    """Keeps the status socket there until cancelled: a deleted one is made again.

    A clean-up of `/run` must not leave a daemon that cannot be asked. A failure to make it is
    logged once, and tried again.

    Args:
        source: makes the node's reports.
        path: of the socket.
        failed: told why there is no socket, `""` when there is; returns whether that is news.
        group: as in `serve_status`. That there is none does not end a node that carries packets.
    """
    runner: web.AppRunner | None = None
    made: tuple[int, int] | None = None
    try:
        while True:
            if runner is not None and _identity(path) != made:
                log.warning("status socket was deleted, making it again", path=path)
                await runner.cleanup()
                runner = None
            if runner is None:
                try:
                    runner = await serve_status(source, path, group)
                except FlannelError as error:
                    if failed(str(error)):
                        log.warning(f"no status socket: {error}")
                else:
                    failed("")
                    made = _identity(path)
            await asyncio.sleep(CHECK_INTERVAL_S)
    finally:
        if runner is not None:
            await stop_serving(runner, path if _identity(path) == made else "")


def _identity(path: str) -> tuple[int, int] | None:
    """Which file it is, `None` if there is none."""
    try:
        found = Path(path).lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


async def stop_serving(runner: web.AppRunner, path: str = "") -> None:
    """Stops a server and removes its unix socket, if it has one."""
    await runner.cleanup()
    if path:
        with contextlib.suppress(OSError):
            Path(path).unlink()
