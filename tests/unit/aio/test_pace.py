"""Work in steps: what is handed on, what is let go of, and that others have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest

from pyflannel.aio import pace
from pyflannel.aio.pace import drained, let_go, paced

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(pace, "HOLD_S", 0.0)


async def counting(work: Coroutine[Any, Any, T]) -> tuple[T, int]:
    """What work gives, and how many turns others had meanwhile."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(other())
    try:
        return await work, turns
    finally:
        beside.cancel()


async def listed(numbers: AsyncIterator[int]) -> list[int]:
    return [number async for number in numbers]


async def test_things_are_handed_on_in_order_and_others_have_their_turn():
    found, turns = await counting(listed(paced(range(100))))
    assert found == list(range(100))
    assert turns >= 100 // pace.EACH - 1


async def test_a_list_is_let_go_of_while_it_is_used():
    things = list(range(100))

    async def used() -> list[tuple[int, int]]:
        return [(number, len(things)) async for number in drained(things)]

    found, turns = await counting(used())
    assert found == [(number, 99 - number) for number in range(100)]
    assert turns >= 100 // pace.EACH - 1


async def test_what_is_not_needed_is_emptied_in_steps():
    numbers, names = list(range(100)), dict.fromkeys(range(100))
    _, turns = await counting(let_go(numbers, names))
    assert (numbers, names) == ([], {})
    assert turns >= 200 // pace.EACH - 2


async def test_while_there_is_little_to_do_there_are_no_pauses(monkeypatch):
    monkeypatch.setattr(pace, "HOLD_S", 60.0)
    _, turns = await counting(listed(paced(range(100))))
    assert turns <= 1
