"""Tasks with a name, a guard and a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from pyflannel.aio import tasks
from pyflannel.core.errors import EXIT_DEFECT

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a test that must not hang even if the code under test does."""

    async def main() -> T:
        async with asyncio.timeout(5):
            return await work

    return asyncio.run(main())


async def nothing() -> None:
    await asyncio.sleep(0)


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("broken")


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def test_a_task_that_should_run_for_ever_and_returns_is_a_defect():
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            other = tasks.forever(group, "other", for_ever())
            tasks.forever(group, "renew lease", nothing())
        assert other.cancelled()

    with pytest.raises(ExceptionGroup) as caught:
        run(main())
    (error,) = caught.value.exceptions
    assert isinstance(error, tasks.TaskEnded)
    assert error.exit_code == EXIT_DEFECT
    assert "renew lease" in str(error)


@pytest.mark.parametrize("starter", [tasks.start, tasks.forever])
def test_an_exception_carries_the_name_of_its_task(starter):
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            assert starter(group, "watch leases", fail()).get_name() == "watch leases"

    with pytest.raises(ExceptionGroup) as caught:
        run(main())
    (error,) = caught.value.exceptions
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["in task 'watch leases'"]


def test_a_task_that_may_end_gives_its_result():
    async def answer() -> int:
        return 42

    async def main() -> int:
        async with asyncio.TaskGroup() as group:
            task = tasks.start(group, "answer", answer())
        return task.result()

    assert run(main()) == 42


def test_cancelling_a_task_for_ever_is_no_defect():
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            task = tasks.forever(group, "loop", for_ever())
            await asyncio.sleep(0)
            task.cancel()

    run(main())


def test_a_deadline_says_what_was_not_done():
    async def main() -> None:
        async with tasks.deadline(0, "reading the config"):
            await for_ever()

    with pytest.raises(tasks.DeadlineExceeded, match="reading the config did not end within 0 s"):
        run(main())


def test_a_deadline_that_is_kept_changes_nothing():
    async def main() -> None:
        async with tasks.deadline(60, "x"):
            await nothing()
        with pytest.raises(ValueError, match="broken"):
            async with tasks.deadline(60, "x"):
                await fail()

    run(main())


def test_a_timeout_of_the_body_itself_is_not_renamed():
    async def main() -> None:
        async with tasks.deadline(60, "x"):
            raise TimeoutError("inner")

    with pytest.raises(TimeoutError, match="inner"):
        run(main())


def test_finishing_a_task_waits_for_its_cleanup_and_takes_its_exception():
    async def main() -> list[str]:
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
        return done

    assert run(main()) == ["cleaned"]


def test_a_task_that_does_not_heed_cancellation_is_reported():
    async def main() -> None:
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

    run(main())
