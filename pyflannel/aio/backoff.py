"""How long to wait before trying again: pure arithmetic, no clock and no task."""

from __future__ import annotations

import random as _random
from typing import Final

FIRST_S: Final = 0.1
"""Upstream's first delay: a server that restarts answers again about that soon."""
CEILING_S: Final = 5.0
"""Upstream's longest delay: a person who repaired something should not have to wait longer."""
JITTER: Final = 0.5
"""Share of each delay that is left to chance. A server that comes back is met by all nodes at once;
with half of it random a thousand of them spread over 2.5 s instead of arriving in one instant."""


class Backoff:
    """Delays that double from `first` to `ceiling`, each shortened by a random part.

    Args:
        first: seconds of the first delay, before jitter.
        ceiling: seconds that no delay exceeds.
        jitter: share (0 to 1) that is random; 0 makes the delays exact.
        rng: source of chance; a test gives one with a seed.
    """

    __slots__ = ("_attempts", "_ceiling", "_first", "_jitter", "_rng")

    def __init__(
        self,
        *,
        first: float = FIRST_S,
        ceiling: float = CEILING_S,
        jitter: float = JITTER,
        rng: _random.Random | None = None,
    ) -> None:
        if not 0 < first <= ceiling or not 0 <= jitter <= 1:
            raise ValueError("a backoff needs 0 < first <= ceiling and 0 <= jitter <= 1")
        self._first = first
        self._ceiling = ceiling
        self._jitter = jitter
        self._rng = rng if rng is not None else _random.Random()  # noqa: S311 - spreads load only
        self._attempts = 0

    def next(self) -> float:
        """Seconds to wait now; the following call gives about twice as many."""
        # The exponent is capped because 2.0**1024 overflows, after an hour and a half of failures.
        delay = min(self._ceiling, self._first * 2.0 ** min(self._attempts, 64))
        self._attempts += 1
        return delay * (1 - self._jitter * self._rng.random())

    def reset(self) -> None:
        """Starts over: something went well."""
        self._attempts = 0
