"""When our lease is due for renewal, and when to try again: a clock-less state machine.

A lease lives for a TTL that the store counts down. We renew it *margin* before the end. If that
fails we try again, at first within a second, then less and less often, but the closer the end the
more urgently: never later than a quarter of what is left.

All times are seconds on one clock that the caller reads and hands in. It should be a monotonic one:
the TTL is a duration, counted by the store, so a wall clock that is set forwards or backwards while
we wait must neither hurry a renewal nor put it off. After a suspension `now` may lie far behind the
deadline, or behind the end: then the answer is "now", and the reason says so.

A *reservation* has no TTL and is never renewed.
"""

from __future__ import annotations

from typing import Final

DEFAULT_LEASE_TTL_S: Final = 86400
"""A day, upstream's."""
MIN_LEASE_TTL_S: Final = 60
"""A node must come through a new leader (2 s), a restart of etcd and a few retries."""
MAX_LEASE_TTL_S: Final = 30 * 86400
"""A subnet of a dead node stays taken that long; who wants longer makes a reservation."""
SHORTEST_WAIT_S: Final = 60.0
"""The shortest wait that an operator can ask for: the largest margin is 1439 minutes of a TTL of
1440. If less is left before the margin begins, then not because anybody wanted it, but because the
store gave a shorter TTL than asked for."""
ROUNDING_S: Final = 5.0
"""A TTL that was read, not granted, is rounded down and a request old: a margin that fits the
granted one still fits."""
SHORT_TTL_SHARE: Final = 1 / 3
"""Part of a short TTL after which it is renewed: etcd's own clients renew at a third."""
FIRST_RETRY_S: Final = 1.0
"""Wait after the first failure. Upstream waits a minute each time; an etcd that elects a new leader
is back within two seconds."""
LONGEST_RETRY_S: Final = 60.0
"""The wait doubles up to this, upstream's constant wait."""
URGENT_SHARE: Final = 1 / 4
"""A retry comes at the latest when this part of the remaining time has passed."""


SHARE_OF_TTL: Final = 1 / 3
"""The margin is never more than this part of a TTL that an operator chose."""


def margin_for(ttl_s: float, margin_s: float, *, usual_ttl_s: float) -> float:
    """How long before its end a lease of this TTL is renewed.

    Args:
        margin_s: what was asked for; it is meant for the usual TTL, and kept to with that.
    """
    return margin_s if ttl_s == usual_ttl_s else min(margin_s, ttl_s * SHARE_OF_TTL)


class Renewal:
    """When to renew one lease. Not thread-safe; belongs to the keeper of the lease.

    Args:
        ttl_s: what is left of the lease at `now`; `None` for a reservation.
        margin_s: renew this long before the end.
        now: the caller's monotonic clock.
        granted_s: the TTL the lease was granted with, if that is more than `ttl_s`: a lease that
            was found half used up is measured by the whole.
    """

    __slots__ = ("_deadline", "_end", "_failures", "_margin_s", "_reason")

    def __init__(
        self, ttl_s: float | None, margin_s: float, now: float, *, granted_s: float | None = None
    ) -> None:
        self._margin_s = margin_s
        self._failures = 0
        self._end: float | None = None
        self._deadline: float | None = None
        self._reason = ""
        self._restart(ttl_s, now, granted_s)

    @property
    def deadline(self) -> float | None:
        """When to renew, on the caller's clock; in the past if it is overdue, `None` for never."""
        return self._deadline

    @property
    def reason(self) -> str:
        """Why then, in words for a log."""
        return self._reason

    @property
    def end(self) -> float | None:
        """When the lease runs out unless it is renewed; `None` for never."""
        return self._end

    @property
    def failures(self) -> int:
        """Failed attempts since the last success."""
        return self._failures

    def succeeded(self, now: float, ttl_s: float | None, *, granted_s: float | None = None) -> None:
        """The lease was renewed and has `ttl_s` from `now` on (`None`: it is a reservation now)."""
        self._failures = 0
        self._restart(ttl_s, now, granted_s)
        if self._deadline is not None:
            # A store that gives next to nothing must not make us ask without a pause.
            self._deadline = max(self._deadline, now + FIRST_RETRY_S)

    def failed(self, now: float) -> None:
        """An attempt failed; the next one is scheduled."""
        if self._end is None:
            return
        self._failures += 1
        # The exponent is bounded so that a week of failures does not overflow a float.
        wait = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 16))
        left = self._end - now
        times = f"{self._failures} failed attempt{'s' if self._failures > 1 else ''}"
        if left <= 0:
            self._reason = f"the lease ran out {-left:.0f} s ago, after {times}"
        elif left * URGENT_SHARE < wait:
            wait = max(FIRST_RETRY_S, left * URGENT_SHARE)
            self._reason = f"the lease runs out in {left:.0f} s, after {times}"
        else:
            self._reason = f"retry after {times}"
        self._deadline = now + wait

    def _restart(self, ttl_s: float | None, now: float, granted_s: float | None) -> None:
        if ttl_s is None:
            self._end, self._deadline = None, None
            self._reason = "a reservation has no time limit"
            return
        whole = max(ttl_s, granted_s or 0.0)
        self._end = now + ttl_s
        if whole - self._margin_s >= SHORTEST_WAIT_S - ROUNDING_S:
            self._deadline = self._end - self._margin_s
            self._reason = f"{self._margin_s / 60:g} min before the lease ends"
        else:
            self._deadline = self._end - whole * (1 - SHORT_TTL_SHARE)
            self._reason = f"a third of its short TTL of {whole:g} s"
        if self._deadline <= now:
            self._deadline = now
            self._reason = f"overdue: {max(0.0, ttl_s):.0f} s are left"
