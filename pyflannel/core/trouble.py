"""What is wrong at present, since when, and when that is worth a line in the log.

A failure that lasts is met thousands of times. Each *kind* of it is said once when it begins, again
when it changes (it began as a dead server and goes on as a wrong password), again after ten
minutes, and once when it is over, with how long it took. Two kinds that alternate, because two
endpoints fail in different ways, are two lines in ten minutes and not one for each attempt.

Times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

import enum
from typing import Final

from pyflannel.records import dataclass

REPEAT_S: Final = 600.0
"""A kind of failure that was said is not said again within this time. Six lines an hour remind a
reader of the log's end, and bury nothing."""
KINDS: Final = 32
"""Kinds remembered within one outage; a server that invents a new text for each answer must not
fill the memory. The oldest is forgotten, and would be said again."""


class Occasion(enum.Enum):
    """Why a line is worth writing."""

    BEGINS = "begins"
    CHANGED = "changed"
    LASTS = "lasts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What is wrong now."""

    reason: str
    """The present reason, in words."""
    since: float
    """When the first failure of this outage happened."""
    kind_since: float
    """When this kind of it was first met."""


class TroubleLog:
    """One thing that can fail: told of each failure and each success."""

    __slots__ = ("_said", "present")

    def __init__(self) -> None:
        self.present: Trouble | None = None
        """What is wrong, `None` if nothing is."""
        self._said: dict[str, float] = {}

    def failed(self, now: float, kind: str, reason: str) -> Occasion | None:
        """One more failure.

        Args:
            kind: what is compared: without times, attempts or whatever else differs each time.
            reason: for people.

        Returns:
            Why to write a line, or `None` if there is nothing new in it.
        """
        former = self.present
        if former is None:
            self.present = Trouble(reason=reason, since=now, kind_since=now)
            self._said = {kind: now}
            return Occasion.BEGINS
        said = self._said.get(kind)
        changed = reason != former.reason
        self.present = Trouble(
            reason=reason, since=former.since, kind_since=now if changed else former.kind_since
        )
        if said is not None and now - said < REPEAT_S:
            return None
        while len(self._said) >= KINDS:
            del self._said[next(iter(self._said))]
        self._said.pop(kind, None)
        self._said[kind] = now
        return Occasion.CHANGED if said is None else Occasion.LASTS

    def over(self, now: float) -> float | None:
        """It went well; gives how long the trouble lasted, `None` if there was none."""
        former, self.present = self.present, None
        self._said = {}
        return None if former is None else now - former.since
