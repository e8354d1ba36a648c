"""One question serves all watches of an endpoint."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.store.etcd.alive import Alive


class Endpoints:
    """Answers when it is told to; the time stands still otherwise."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[str] = []
        self.answer: asyncio.Future[None] | None = None
        self.alive: Alive[str] = Alive(5.0, self._ask, lambda: self.now)

    async def _ask(self, endpoint: str) -> None:
        self.asked.append(endpoint)
        if self.answer is not None:
            await asyncio.shield(self.answer)


async def test_what_one_watch_has_heard_counts_for_the_other():
    them = Endpoints()
    them.alive.heard("a")
    them.now += 3
    assert them.alive.timeout_s("a") == 2.0
    await them.alive.check("a")
    assert them.asked == []
    them.now += 2
    assert them.alive.timeout_s("a") == 0.0
    await them.alive.check("a")
    assert them.asked == ["a"]
    assert them.alive.timeout_s("a") == 5.0


async def test_an_endpoint_that_was_never_heard_is_asked():
    them = Endpoints()
    assert them.alive.timeout_s("a") == 5.0
    await them.alive.check("a")
    assert them.asked == ["a"]


async def test_watches_that_ask_at_the_same_time_share_answer_and_failure():
    them = Endpoints()
    for failure in (None, OSError("gone")):
        them.asked.clear()
        them.now += 10
        them.answer = asyncio.get_running_loop().create_future()
        checks = [asyncio.create_task(them.alive.check(name)) for name in ("a", "a", "b")]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if failure is None:
            them.answer.set_result(None)
        else:
            them.answer.set_exception(failure)
        answers = await asyncio.gather(*checks, return_exceptions=True)
        assert answers == [failure] * 3
        assert them.asked == ["a", "b"]
    # And the next look asks anew.
    with pytest.raises(OSError, match="gone"):
        await them.alive.check("a")
    assert them.asked == ["a", "b", "a"]


async def test_a_watch_that_is_closed_leaves_the_question_to_the_other_and_the_last_ends_it():
    them = Endpoints()
    them.answer = asyncio.get_running_loop().create_future()
    first, second = (asyncio.create_task(them.alive.check("a")) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    assert not second.done()
    them.answer.set_result(None)
    await second
    them.now += 10
    them.answer = asyncio.get_running_loop().create_future()
    last = asyncio.create_task(them.alive.check("a"))
    await asyncio.sleep(0)
    last.cancel()
    await asyncio.wait({last})
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
    assert them.asked == ["a", "a"]
