"""A few threads for calls that block, and may block for longer than the caller can wait.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter ends, so one name
lookup that hangs for half a minute would delay the exit of a daemon which was told to stop. These
threads are daemon threads: a caller that cannot wait leaves them behind. Few and reused, for the
memory of each (stack, malloc arena) is real.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")

_Job: TypeAlias = "tuple[Future[Any], Callable[[], Any]]"

_STOP: Final = None
"""Tells one thread to end."""


async def in_thread(name: str, call: Callable[[], T], *, end_s: float = 1.0) -> T:
    """The result of one blocking call, made in a thread of its own while the loop goes on.

    For work on what the caller owns: when the caller is cancelled, the end of the call is waited
    for all the same, so that the caller can take it down.

    Args:
        name: of the thread.
        call: what blocks, for some time that is bounded.
        end_s: for the thread to be gone after its work.
    """
    pool = ThreadPool(name, 1)
    job = asyncio.ensure_future(pool.run(call))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait({job})
        if not job.cancelled():
            job.exception()
        raise
    finally:
        await pool.close(end_s)


class ThreadPool:
    """Runs blocking calls for one event loop.

    Args:
        name: of the threads, with a number behind.
        size: most threads at a time; they are started when there is work for them. Further calls
            wait in line.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """The result of `call`, which runs in one of the threads.

        When the caller is cancelled, a call that has not started never does; one that has goes on,
        and its result is lost.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError(f"thread pool {self._name!r} is closed")
        future: Future[T] = Future()
        self._jobs.put((future, call))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._size:
            thread = threading.Thread(
                target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is _STOP:
                return
            future, call = job
            deliver: Callable[[], None] | None = None
            if future.set_running_or_notify_cancel():
                try:
                    deliver = partial(future.set_result, call())
                except BaseException as error:  # noqa: BLE001 - it is the caller's
                    deliver = partial(future.set_exception, error)
            # First: the caller may ask again with the result, and finds this thread free.
            self._idle.release()
            if deliver is not None:
                deliver()
            # Nothing may keep the result alive while the thread waits for more work.
            del job, future, call, deliver

    async def close(self, within: float) -> bool:
        """Ends the threads; `False` if one was still busy after `within` seconds. Twice is fine.

        What waits in line is cancelled.
        """
        if not self._closed:
            self._closed = True
            with contextlib.suppress(queue.Empty):
                while job := self._jobs.get_nowait():
                    job[0].cancel()
            for _ in self._threads:
                self._jobs.put(_STOP)
        # Threads cannot be awaited. They are idle as a rule, and then gone within a millisecond.
        end = asyncio.get_running_loop().time() + within
        while any(thread.is_alive() for thread in self._threads):
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(0.001)
        return True
