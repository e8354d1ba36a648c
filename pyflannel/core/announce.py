"""Which of many like things are worth a log line: each once, and not too many in a minute.

Keys in etcd that are no leases, leases that are not followed: one of them is worth a line, the same
one at each rewrite is not, and a hundred thousand of them must fill neither the journal nor our
memory. What is not logged is counted; `status` shows all that are there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Generic, TypeVar

S = TypeVar("S")

MOST_KNOWN: Final = 1024
"""Subjects remembered. With a key of 100 bytes and a reason of 200 that is 0.5 MB; etcd with more
bad keys than that has a problem of its own."""
LINES: Final = 20
"""Log lines in `PERIOD_S`: an operator reads that many."""
PERIOD_S: Final = 60.0


class Announcer(Generic[S]):
    """Remembers what was said last about each subject, the latest `MOST_KNOWN` of them."""

    def __init__(self) -> None:
        self._said: dict[S, str] = {}
        self._since = float("-inf")
        self._lines = 0
        self._withheld = 0

    def worth(self, subject: S, text: str, now: float) -> bool:
        """Whether this is to be said now. If so it counts as said.

        Args:
            subject: what it is about.
            text: what would be said; the same text is said once.
            now: monotonic seconds.
        """
        before = self._said.pop(subject, None)
        if before == text:
            self._said[subject] = text  # the latest again
            return False
        if now - self._since >= PERIOD_S:
            self._since, self._lines = now, 0
        if self._lines >= LINES:
            self._withheld += 1
            return False
        self._lines += 1
        self._said[subject] = text
        if len(self._said) > MOST_KNOWN:
            del self._said[next(iter(self._said))]
        return True

    def take_withheld(self) -> int | None:
        """How many were not said since the last call, for the next line; `None` for none."""
        count, self._withheld = self._withheld, 0
        return count or None

    def forget(self, subject: S) -> None:
        """The subject is gone; if it comes back that is worth a line."""
        self._said.pop(subject, None)

    def forget_all_but(self, subjects: Collection[S]) -> None:
        """All others are gone."""
        for subject in [known for known in self._said if known not in subjects]:
            del self._said[subject]
