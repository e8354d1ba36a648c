"""The process around the daemon."""

from __future__ import annotations

import asyncio
import gc
import os
import signal

import pytest

from pyflannel.core.errors import EXIT_OK
from pyflannel.node import process


class Leases:
    """Stands for very many objects: says whether the loop still ran when they were let go of."""

    def __init__(self, freed: list[bool]) -> None:
        self._freed = freed

    def __del__(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._freed.append(False)
        else:
            self._freed.append(True)


@pytest.mark.parametrize("made_by", ["the work", "a task of it"])
def test_what_the_work_made_is_let_go_of_when_the_loop_has_ended(made_by: str) -> None:
    """To free it takes a time in which nothing else can be done."""
    freed: list[bool] = []

    async def follow() -> None:
        leases = Leases(freed)
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
        del leases

    async def work() -> None:
        if made_by == "the work":
            await follow()
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(follow())

    assert process.run(work) == EXIT_OK
    gc.collect()
    assert freed == [False]
