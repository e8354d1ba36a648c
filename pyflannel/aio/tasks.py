"""Tasks with a name and a guard.

An `asyncio.TaskGroup` already sees to it that no task outlives its owner and that one failure stops
the others. What it does not see is a loop that was meant to run without end and returned: the
group just goes on with one duty less. `forever` makes that a defect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pyflannel.core.errors import FlannelError

T = TypeVar("T")


class TaskEnded(FlannelError):
    """A task that should run without end returned: a defect of ours, never the operator's fault."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"task {name!r} returned, but it should run without end")


def forever(group: asyncio.TaskGroup, name: str, work: Awaitable[object]) -> asyncio.Task[None]:
    """Starts a task that must not end but by cancellation; if it returns, the group fails.

    Raises (inside the group):
        TaskEnded: it returned.
    """
    return group.create_task(_forever(name, work), name=name)


async def _named(name: str, work: Awaitable[T]) -> T:
    try:
        return await work
    except Exception as error:
        error.add_note(f"in task {name!r}")
        raise


async def _forever(name: str, work: Awaitable[object]) -> None:
    await _named(name, work)
    raise TaskEnded(name)


@asynccontextmanager
async def beside(name: str, work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Runs `work` while the body runs, and waits for both.

    If the body raises, the work is cancelled and what it raises is dropped. What the work raises is
    raised when the body is done.
    """
    task = asyncio.create_task(_named(name, work), name=name)
    try:
        yield
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    await task


async def finish(task: asyncio.Task[Any], *, within: float) -> bool:
    """Cancels a task and waits for its end; `False` if it is still running after `within` seconds.

    Its result or exception is taken, so nothing is reported later about an exception not read.
    """
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=within)
    if not done:
        return False
    if not task.cancelled():
        task.exception()
    return True


def first_cause(error: BaseException) -> BaseException:
    """What a group of exceptions says in the end: its first one, however deep that is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
