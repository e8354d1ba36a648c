"""Of several who are asked, the first to say yes counts."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.aio.race import first_to_answer


class Asked:
    """Who was asked, and who was left."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.left: list[str] = []

    def who(self, name: str, *, says: bool | None):
        async def question() -> bool:
            self.asked.append(name)
            if says is None:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.append(name)
            await asyncio.sleep(0)
            return bool(says)

        return question


def race(*says: bool | None, head_start_s: float = 0.0, within_s: float = 5.0):
    asked = Asked()
    questions = [asked.who(str(n), says=one) for n, one in enumerate(says)]
    found = asyncio.run(first_to_answer(questions, head_start_s=head_start_s, within_s=within_s))
    return found, asked


def test_the_first_one_is_asked_alone_if_it_answers():
    found, asked = race(True, True, head_start_s=5)
    assert (found, asked.asked) == (0, ["0"])


def test_a_no_ends_the_head_start():
    assert race(False, True, head_start_s=60)[0] == 1


@pytest.mark.parametrize("says", [(None, None, True), (None, False, True), (None, True, None)])
def test_who_is_silent_is_left_alone(says):
    found, asked = race(*says)
    assert found == says.index(True)
    assert asked.left == [name for name in asked.asked if says[int(name)] is None]


def test_without_questions_there_is_no_answer():
    assert race(False, False)[0] is None
    assert race(None, None, within_s=0.0)[0] is None
