"""Tasks with a name, a guard and a deadline."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.aio import tasks
from pyflannel.core.errors import EXIT_DEFECT

pytestmark = pytest.mark.timeout(60)
"""A test must not hang even if the code under test does."""


async def nothing() -> None:
    await asyncio.sleep(0)


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("broken")


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_task_that_should_run_without_end_and_returns_is_a_defect():
    others: list[asyncio.Task[None]] = []

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            others.append(tasks.forever(group, "other", for_ever()))
            tasks.forever(group, "renew lease", nothing())

    with pytest.raises(ExceptionGroup) as caught:
        await work()
    assert others[0].cancelled()
    (error,) = caught.value.exceptions
    assert isinstance(error, tasks.TaskEnded)
    assert error.exit_code == EXIT_DEFECT
    assert "renew lease" in str(error)


async def test_an_exception_carries_the_name_of_its_task():
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            assert tasks.forever(group, "watch leases", fail()).get_name() == "watch leases"
    (error,) = caught.value.exceptions
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["in task 'watch leases'"]


async def test_cancelling_a_task_without_end_is_no_defect():
    async with asyncio.TaskGroup() as group:
        task = tasks.forever(group, "loop", for_ever())
        await asyncio.sleep(0)
        task.cancel()


async def test_finishing_a_task_waits_for_its_cleanup_and_takes_its_exception():
    done: list[str] = []

    async def work() -> None:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)
            done.append("cleaned")
            raise ValueError("late")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    assert await tasks.finish(task, within=5)
    assert done == ["cleaned"]


async def test_a_task_that_does_not_heed_cancellation_is_reported():
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    assert not await tasks.finish(task, within=0)
    release.set()
    await task


async def test_work_beside_the_body_is_waited_for():
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("work")

    async with tasks.beside("work", work()):
        done.append("body")
    assert done == ["body", "work"]


async def test_work_beside_a_body_that_fails_is_cancelled():
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await for_ever()
        finally:
            ended.set()

    async def body() -> None:
        async with tasks.beside("work", work()):
            await asyncio.sleep(0)
            raise LookupError

    with pytest.raises(LookupError):
        await body()
    assert ended.is_set()


async def test_what_fails_beside_the_body_is_raised_after_it():
    done: list[str] = []

    async def body() -> None:
        async with tasks.beside("work", fail()):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            done.append("body")

    with pytest.raises(ValueError, match="broken"):
        await body()
    assert done == ["body"]
