"""How busy this machine is with other things, for tests that judge by a time.

A promise in seconds is held on a machine that has a CPU to give. Where processes wait for one most
of the time, by the kernel's own account (Documentation/accounting/psi.rst), three times as long is
allowed: scheduling alone takes that.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

BUSY: Final = 0.6
"""Share of the time in which some task waits for a CPU."""
FACTOR: Final = 3.0


class Stopwatch:
    """Time that goes by, and how much of it the machine was short of CPUs."""

    def __init__(self) -> None:
        self._begin, self._stalled = time.monotonic(), _stalled_s()

    def busy(self) -> bool:
        """Whether the machine was so since the start."""
        passed = time.monotonic() - self._begin
        return passed > 0 and (_stalled_s() - self._stalled) / passed > BUSY

    def within(self, seconds: float) -> float:
        """The limit to judge by where `seconds` are promised."""
        return seconds * FACTOR if self.busy() else seconds


def _stalled_s() -> float:
    """Seconds since boot in which at least one task waited for a CPU."""
    try:
        some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6
