"""Blocking calls in a few threads."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from pyflannel.aio.threads import ThreadPool, in_thread

pytestmark = pytest.mark.timeout(60)
"""A test must not hang even if the code under test does."""


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


async def test_results_and_exceptions_come_back():
    pool = ThreadPool("t-result", 1)
    assert await pool.run(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0)
    assert await pool.close(5)


async def test_threads_are_reused_limited_and_gone_after_close():
    pool = ThreadPool("t-limit", 2)
    for _ in range(5):
        await pool.run(lambda: None)
    assert len(threads_named("t-limit")) == 1
    gate = threading.Event()
    calls = [asyncio.ensure_future(pool.run(gate.wait)) for _ in range(5)]
    await asyncio.sleep(0)
    assert len(threads_named("t-limit")) == 2
    gate.set()
    assert await asyncio.gather(*calls) == [True] * 5
    assert await pool.close(5)
    assert await pool.close(5)
    assert threads_named("t-limit") == []
    with pytest.raises(RuntimeError, match="closed"):
        await pool.run(lambda: None)


async def test_a_cancelled_call_that_waits_in_line_never_runs():
    pool = ThreadPool("t-cancel", 1)
    gate, ran = threading.Event(), threading.Event()
    busy = asyncio.ensure_future(pool.run(gate.wait))
    waiting = asyncio.ensure_future(pool.run(ran.set))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    gate.set()
    await busy
    await pool.run(lambda: None)
    assert not ran.is_set()
    assert await pool.close(5)


async def test_close_does_not_wait_for_a_call_that_hangs_and_drops_the_rest():
    pool = ThreadPool("t-hang", 1)
    gate = threading.Event()
    hanging = asyncio.ensure_future(pool.run(gate.wait))
    behind = asyncio.ensure_future(pool.run(lambda: None))
    await asyncio.sleep(0)
    assert not await pool.close(0)
    await asyncio.wait({behind})
    assert behind.cancelled()
    gate.set()
    await hanging
    assert await pool.close(5)


async def test_an_idle_thread_keeps_no_result_alive():
    class Big:
        pass

    pool = ThreadPool("t-memory", 1)
    seen = weakref.ref(await pool.run(Big))
    await pool.run(lambda: None)
    assert seen() is None
    assert await pool.close(5)


async def test_threads_do_not_hold_up_the_end_of_the_program():
    pool = ThreadPool("t-daemon", 1)
    assert await pool.run(lambda: threading.current_thread().daemon)
    assert await pool.close(5)


async def test_one_call_in_a_thread_of_its_own():
    assert await in_thread("t-one", lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await in_thread("t-one", lambda: 1 // 0)
    assert threads_named("t-one") == []


async def test_its_end_is_waited_for_although_the_caller_is_cancelled():
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        gate.wait()
        ended.set()

    caller = asyncio.create_task(in_thread("t-own", call))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    caller.cancel()
    await asyncio.sleep(0.01)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
    assert threads_named("t-own") == []
