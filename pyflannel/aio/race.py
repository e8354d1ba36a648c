"""Asks several, and takes the first answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence


async def first_to_answer(
    questions: Sequence[Callable[[], Awaitable[bool]]], *, head_start_s: float, within_s: float
) -> int | None:
    """Which of several says yes first; the others are not waited for.

    The first one is asked alone for a moment: if it answers, the others are not asked.

    Args:
        questions: each is a coroutine function that must not raise.
        head_start_s: how long the first one is asked alone; less if it says no.
        within_s: for all of them.

    Returns:
        Its index, or `None` if none said yes in time.
    """
    asked: dict[asyncio.Future[bool], int] = {}
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    try:
        for index, question in enumerate(questions):
            asked[asyncio.ensure_future(question())] = index
            if index == 0:
                await asyncio.wait(asked, timeout=head_start_s)
            if (found := _first(asked)) is not None:
                return found
        waiting = {task for task in asked if not task.done()}
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            if (found := _first(asked)) is not None or not done:
                return found
        return None
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def _first(asked: dict[asyncio.Future[bool], int]) -> int | None:
    return next((index for task, index in asked.items() if task.done() and task.result()), None)
