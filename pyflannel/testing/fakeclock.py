"""A clock that stands still until it is told to move.

`advance` wakes sleepers one by one, in the order of their deadlines (and of their calls, where
deadlines are equal), and lets the loop settle after each, so that a task which sleeps again within
the same stretch of time is woken again within the same `advance`. Nothing depends on real time.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Final

SETTLE_TURNS: Final = 50
"""Turns of the loop between two wake-ups. A chain of callbacks and awaits needs one turn for each
link; the longest in our tests has about ten. Turns without work cost two microseconds each."""


async def settle() -> None:
    """Lets every task run that can run without time passing."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)


class Timer:
    """A call in the future that can still be taken back."""

    __slots__ = ("_call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Takes the call back; harmless afterwards."""
        self._call = None

    @property
    def cancelled(self) -> bool:
        """Whether there is nothing left to call."""
        return self._call is None

    def fire(self) -> None:
        """Calls, at most once."""
        call, self._call = self._call, None
        if call is not None:
            call()


class FakeClock:
    """A `Clock` for tests.

    Args:
        now: seconds since the epoch at the start; `monotonic` starts at 0 to show that the two
            differ.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._epoch = now
        self._elapsed = 0.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        """As in `Clock`."""
        return self._epoch + self._elapsed

    def monotonic(self) -> float:
        """As in `Clock`."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """As in `Clock`; returns only when `advance` gets there."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_at(
            self._elapsed + seconds, lambda: None if woken.done() else woken.set_result(None)
        )
        try:
            await woken
        finally:
            timer.cancel()

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Has `call` called when `monotonic` reaches `when`; for fakes that have timers."""
        timer = Timer(when, call)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward or back, as an operator or NTP does; `monotonic` stays."""
        self._epoch += seconds

    @property
    def sleepers(self) -> int:
        """Timers that are waiting, for tests that want to see a task asleep."""
        return sum(1 for _, _, timer in self._timers if not timer.cancelled)

    async def advance(self, seconds: float) -> None:
        """Lets that much time pass and everything happen that is due in it."""
        end = self._elapsed + seconds
        await settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            if timer.cancelled:
                continue
            self._elapsed = max(self._elapsed, when)
            timer.fire()
            await settle()
        self._elapsed = end
        await settle()
