"""How many ICMP errors a node sends, and how they are shared among those who cause them.

Nothing here looks at a clock; it is told the time.
"""

from __future__ import annotations

from typing import Final

SOURCES: Final = 256
"""Buckets for sources. Two that fall into one share it; a node has about 110 pods."""
_GOLDEN: Final = 2654435769
"""2³² / φ (Knuth, TAOCP 6.4): spreads neighbouring addresses over the upper bits."""


class TokenBucket:
    """How often something may happen: `rate` a second on average, `burst` at once.

    Args:
        rate: tokens that come back in a second.
        burst: tokens there are at most, and at the start.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._updated: float | None = None

    def take(self, now: float) -> bool:
        """Takes a token if there is one.

        Args:
            now: seconds on a clock that never goes back.
        """
        if self._updated is not None:
            returned = (now - self._updated) * self._rate
            self._tokens = min(self._burst, self._tokens + returned)
        self._updated = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class FairBudget:
    """A budget for all, of which no source takes more than its own.

    Without the second a single pod that sends to nowhere has all others' errors suppressed.

    Args:
        each: rate and burst of a source, as in `TokenBucket`.
        all_of_them: of all sources together.
    """

    __slots__ = ("_all", "_each", "_sources")

    def __init__(self, *, each: tuple[float, int], all_of_them: tuple[float, int]) -> None:
        self._each = each
        self._all = TokenBucket(*all_of_them)
        self._sources: dict[int, TokenBucket] = {}

    def take(self, source: int, now: float) -> bool:
        """Takes a token of a source's and one of all, if there are both.

        Args:
            source: an IPv4 address as a number.
            now: seconds on a clock that never goes back.
        """
        number = bucket_of(source)
        bucket = self._sources.get(number)
        if bucket is None:
            bucket = self._sources[number] = TokenBucket(*self._each)
        return bucket.take(now) and self._all.take(now)


def bucket_of(source: int) -> int:
    """Which bucket a source has; the same in every data path (`native/engine.c`)."""
    return (source * _GOLDEN & 0xFFFFFFFF) * SOURCES >> 32
