"""Work on very many objects, with pauses for the event loop.

How long one of them takes depends on the machine, so what is bounded is time, not a count. Freeing
is work too: to drop the last reference to a list of a hundred thousand routes takes 60 ms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, TypeVar

from pyflannel.aio.heap import pass_over

T = TypeVar("T")

HOLD_S: Final = 0.002
"""How long the event loop is held at a time; a packet waits no longer than that for us."""
EACH: Final = 16
"""Objects between two looks at the clock: some 0.1 ms of work."""
_FROZEN_EVERY: Final = 16
"""Steps of `HOLD_S` after which the collector forgets what there is: some 10,000 objects."""


class Pace:
    """Gives way to the event loop after each `HOLD_S` of work.

    Work that takes long makes many objects without cycles (`heap.py`).
    """

    __slots__ = ("_since", "_steps")

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._steps = 0

    async def breathe(self) -> None:
        """Lets others run, if it has been long enough."""
        if time.perf_counter() - self._since >= HOLD_S:
            await asyncio.sleep(0)
            self._steps += 1
            if self._steps % _FROZEN_EVERY == 0:
                pass_over()
            self._since = time.perf_counter()


async def paced(things: Iterable[T]) -> AsyncIterator[T]:
    """The same things, with pauses."""
    pace = Pace()
    for count, thing in enumerate(things):
        if count % EACH == 0:
            await pace.breathe()
        yield thing


async def drained(things: list[T]) -> AsyncIterator[T]:
    """The things of a list, in order and with pauses; each is let go of when the next is asked for.

    The list is the caller's to give away: it is empty afterwards.
    """
    things.reverse()
    pace = Pace()
    while things:
        if len(things) % EACH == 0:
            await pace.breathe()
        yield things.pop()


async def let_go(*many: list[Any] | dict[Any, Any]) -> None:
    """Empties lists and dictionaries that are not needed any more, with pauses."""
    pace = Pace()
    for things in many:
        take = things.pop if isinstance(things, list) else things.popitem
        while things:
            take()
            if len(things) % EACH == 0:
                await pace.breathe()
