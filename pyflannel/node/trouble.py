"""Something that fails or does not, and since when."""

from __future__ import annotations

from pyflannel.aio.clock import Clock
from pyflannel.report.model import Failure


class Trouble:
    """The present failure of one part of the daemon.

    Args:
        clock: what tells since when.
    """

    __slots__ = ("_clock", "_since", "_text")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._text = ""
        self._since: float | None = None

    @property
    def text(self) -> str:
        """What fails; empty if nothing does."""
        return self._text

    @property
    def since(self) -> float | None:
        """When it began, in seconds since the epoch."""
        return self._since

    def __bool__(self) -> bool:
        return bool(self._text)

    def set(self, text: str) -> bool:
        """Records a failure, or with an empty text its end; returns whether that is news.

        A failure whose text changes is news and goes on since its first beginning.
        """
        if text == self._text:
            return False
        if not self._text:
            self._since = self._clock.time()
        elif not text:
            self._since = None
        self._text = text
        return True

    def report(self) -> Failure:
        """As a record."""
        return Failure(text=self._text, since=self._since)
