"""While it starts, the daemon asks the service manager for time; a hung start does not."""

from __future__ import annotations

import asyncio

from pyflannel.node.starttimeout import ASK_EVERY_S, EXTENSION_S, while_starting
from pyflannel.systemd import Notifier
from pyflannel.testing.fakeclock import FakeClock


class Recorder(Notifier):
    """Keeps what it is asked, and when."""

    def __init__(self, address: str = "/nowhere") -> None:
        super().__init__(address)
        self.clock = FakeClock()
        self.asked: list[tuple[float, int]] = []

    def extend_timeout(self, usec: int) -> OSError | None:
        self.asked.append((self.clock.monotonic(), usec))
        return None


def start(notifier: Recorder, seconds: float) -> None:
    """A start that takes so long, and a while of running."""

    async def scenario() -> None:
        async with while_starting(notifier, notifier.clock):
            await notifier.clock.advance(seconds)
        await notifier.clock.advance(100.0)

    asyncio.run(scenario())


def test_time_is_asked_for_at_once_and_again_and_again_until_ready() -> None:
    notifier = Recorder()
    start(notifier, 35.0)
    assert [at for at, _ in notifier.asked] == [0.0, 10.0, 20.0, 30.0]


def test_each_request_outlives_several_lost_ones() -> None:
    notifier = Recorder()
    start(notifier, 1.0)
    assert {usec for _, usec in notifier.asked} == {EXTENSION_S * 1_000_000}
    assert EXTENSION_S > 3 * ASK_EVERY_S


def test_without_a_service_manager_nothing_is_asked() -> None:
    notifier = Recorder("")
    start(notifier, 35.0)
    assert notifier.asked == []
