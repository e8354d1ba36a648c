"""Tells the service manager that the event loop turns."""

from __future__ import annotations

from typing import NoReturn

from pyflannel.aio.clock import Clock
from pyflannel.systemd import Notifier


async def feed_watchdog(notifier: Notifier, interval_s: float, clock: Clock) -> NoReturn:
    """Gives a sign of life every `interval_s`, until cancelled."""
    while True:
        notifier.watchdog()
        await clock.sleep(interval_s)
