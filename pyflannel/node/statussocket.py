"""The status socket of a running daemon, opened when that does not slow down the start.

Its library takes longer to import than the rest of the start. So it is imported in a thread, after
the first leases are programmed. A start that takes long (it waits for etcd) must be able to tell
why: then the socket is there after half a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

from pyflannel.aio.clock import Clock, SystemClock, within
from pyflannel.node.progress import PROGRAM_FIRST_S, Progress
from pyflannel.report.source import Source

STATUS_DELAY_S: Final = 0.5
"""How long a start may take before the socket is made all the same; one with everything at hand
takes 0.3 s."""


async def keep_socket(
    source: Source,
    path: str,
    progress: Progress,
    failed: Callable[[str], bool],
    clock: Clock | None = None,
    group: str = "",
) -> NoReturn:
    """Makes the socket and keeps it until cancelled.

    Args:
        source: makes the node's reports.
        path: of the socket.
        progress: how far the start has come.
        failed: as in `api.app.keep_status`.
        clock: the time.
        group: as in `api.app.serve_status`.
    """
    clock = clock or SystemClock()
    await within(clock, STATUS_DELAY_S, progress.started.wait())
    if progress.started.is_set():
        await within(clock, PROGRAM_FIRST_S, progress.programmed.wait())
    app = await asyncio.to_thread(__import__, "pyflannel.api.app", fromlist=["app"])
    await app.keep_status(source, path, failed, group)
    raise AssertionError("an endless task ended")
