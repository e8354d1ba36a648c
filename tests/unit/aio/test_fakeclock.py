"""The clock of the tests, and that the real one has the same shape."""

from __future__ import annotations

import asyncio
import time

from pyflannel.aio.clock import Clock, SystemClock
from pyflannel.testing.fakeclock import FakeClock


async def test_time_stands_still_until_it_is_advanced():
    clock = FakeClock(now=1000.0)
    await clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (1002.5, 2.5)
    clock.jump(-100)
    assert (clock.time(), clock.monotonic()) == (902.5, 2.5)


async def test_sleepers_wake_in_the_order_of_their_deadlines_within_one_advance():
    clock = FakeClock()
    seen: list[tuple[str, float]] = []

    async def tick(name: str, every: float, times: int) -> None:
        for _ in range(times):
            await clock.sleep(every)
            seen.append((name, clock.monotonic()))

    work = [
        asyncio.create_task(tick("slow", 3, 1)),
        asyncio.create_task(tick("quick", 1, 4)),
    ]
    await clock.advance(3.5)
    assert clock.sleepers == 1
    await clock.advance(10)
    await asyncio.gather(*work)
    assert seen == [
        ("quick", 1),
        ("quick", 2),
        ("slow", 3),
        ("quick", 3),
        ("quick", 4),
    ]


async def test_a_cancelled_sleeper_leaves_nothing_behind():
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(5))
    await clock.advance(1)
    task.cancel()
    await asyncio.wait({task})
    assert clock.sleepers == 0
    await clock.advance(10)


async def test_sleeping_no_time_returns_at_the_next_turn():
    await FakeClock().sleep(0)
    await SystemClock().sleep(-1)


def test_the_system_clock_is_the_machines():
    clock: Clock = SystemClock()
    assert abs(clock.time() - time.time()) < 1
    assert abs(clock.monotonic() - time.monotonic()) < 1
