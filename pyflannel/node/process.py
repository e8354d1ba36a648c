"""The process around the daemon: event loop, signals, and the way out."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pyflannel.core.errors import EXIT_OK
from pyflannel.logs import get_logger
from pyflannel.systemd import Notifier

log = get_logger(__name__)

STOP_DEADLINE_S: Final = 1.5
"""For an orderly end after SIGTERM, of the two seconds that we promise."""
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop, or `None` for asyncio's own where uvloop is missing.

    Not `uvloop.install()`, which changes the policy of the whole process and breaks pyroute2
    (measured).
    """
    try:
        import uvloop
    except ImportError:
        log.info("uvloop is not installed, using asyncio's own event loop")
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run(work: Callable[[], Awaitable[None]]) -> int:
    """Runs until the work ends or a stop is asked for; returns the exit code.

    Raises:
        BaseException: what the work raised by itself.
    """
    # What the work has made is let go of when the loop has ended. To free the records of a hundred
    # thousand leases takes 60 ms, and until its last turn the loop serves others. A task that was
    # cancelled has the exception, and with it the frames and what is in them.
    kept: list[asyncio.Future[Any]] = []
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_until_stopped(work, kept))


async def _until_stopped(
    work: Callable[[], Awaitable[None]], kept: list[asyncio.Future[Any]]
) -> int:
    """Turns SIGTERM and SIGINT into an orderly end.

    The first signal cancels; after it the default action is back, so that a second one kills.

    Args:
        work: what is done until then.
        kept: gets the tasks that are cancelled.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        log.info("shutdownHandler sent cancel signal...", signal=number.name)
        asked.set()
        for each in STOP_SIGNALS:
            loop.remove_signal_handler(each)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    task = asyncio.ensure_future(work())
    waiter = asyncio.create_task(asked.wait(), name="stop signal")
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if not asked.is_set():
        task.result()
        return EXIT_OK
    Notifier.from_environment().stopping()
    log.info("Waiting for all goroutines to exit")
    kept.extend(asyncio.all_tasks())
    task.cancel()
    _, late = await asyncio.wait({task}, timeout=STOP_DEADLINE_S)
    if late:
        log.warning("orderly end took too long, ending anyway", deadline_s=STOP_DEADLINE_S)
    elif not task.cancelled() and (error := task.exception()) is not None:
        log.warning("error while stopping", error=error)
    log.info("Exiting cleanly...")
    return EXIT_OK
