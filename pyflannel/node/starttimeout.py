"""While the node is starting: asks the service manager for more time, as long as it takes.

A unit of `Type=notify` has failed when it is not ready after `TimeoutStartSec`, 90 seconds as a
rule. But a node whose etcd is away, or has no network config yet, has not failed: it waits, and
comes up by itself. So while it starts it asks for another minute every ten seconds. The event
loop asks: a start that hangs stops asking, and then the limit applies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from pyflannel.aio.clock import Clock, SystemClock
from pyflannel.aio.tasks import finish
from pyflannel.systemd import Notifier

ASK_EVERY_S: Final = 10.0
EXTENSION_S: Final = 60
"""Six times the interval, so that a request may get lost. The first one comes at once, so a unit
with a short `TimeoutStartSec` does as well."""


@contextlib.asynccontextmanager
async def while_starting(notifier: Notifier, clock: Clock | None = None) -> AsyncIterator[None]:
    """Keeps the start from timing out for as long as the body runs."""
    if not notifier.is_connected:
        yield
        return
    asking = asyncio.create_task(_ask(notifier, clock or SystemClock()), name="start time-out")
    try:
        yield
    finally:
        await finish(asking, within=1.0)


async def _ask(notifier: Notifier, clock: Clock) -> None:
    while True:
        notifier.extend_timeout(EXTENSION_S * 1_000_000)
        await clock.sleep(ASK_EVERY_S)
