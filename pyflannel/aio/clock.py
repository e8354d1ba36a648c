"""Time as something that is handed in, so that a test can hold a day in a millisecond."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol


class Clock(Protocol):
    """Tells the time and lets it pass."""

    def time(self) -> float:
        """Seconds since the epoch. Jumps when someone sets the machine's clock."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never jumps. For every deadline and interval."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after that many monotonic seconds, or at the next turn of the loop if ≤ 0."""
        ...


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    def time(self) -> float:
        """As in `Clock`."""
        return time.time()

    def monotonic(self) -> float:
        """As in `Clock`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """As in `Clock`."""
        await asyncio.sleep(seconds)


async def within(clock: Clock, seconds: float, work: Awaitable[object]) -> None:
    """Waits for something, but no longer."""
    waited = asyncio.ensure_future(work)
    limit = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({waited, limit}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waited.cancel()
        limit.cancel()
