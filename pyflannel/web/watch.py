"""The state of one daemon, updated by each answer. Pure: it is given the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.report.codec import decode
from pyflannel.report.model import SCHEMA
from pyflannel.web.history import History, Sample
from pyflannel.web.view import View, view


class Silence(TypedDict):
    """A daemon that does not answer."""

    since: float
    text: str


class NodeBrief(TypedDict):
    """One of several nodes, for the choice among them."""

    name: str
    state: str
    """As `View`'s, or `no answer`, or empty before the first answer."""


class PageState(TypedDict):
    """All that the page shows about one node."""

    node: str
    silence: Silence | None
    view: View | None
    """The last view."""


class Watched:
    """One daemon.

    Args:
        name: of its node, for people.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = 0
        """Grows with every change."""
        self._silence: Silence | None = None
        self._view: View | None = None
        self._history = History()

    def take(self, answer: Mapping[str, Any], now: float) -> None:
        """An answer of the asker: `{"status": …}`, or `{"error": text}`."""
        self.version += 1
        status = answer.get("status")
        if not isinstance(status, Mapping):
            self._silent(str(answer.get("error", "no answer")), now)
            return
        if status.get("schema") != SCHEMA:
            release = shown(status.get("version", "unknown"), 40)
            self._silent(f"the daemon is of another release ({release}); restart pyflanneld", now)
            return
        try:
            report = decode(status)
            self._history.add(report.peers, report.now)
            self._view = view(report, self._history.rates)
        except (ValueError, TypeError, AttributeError, KeyError):
            self._silent("what answers is not pyflanneld", now)
            return
        self._silence = None

    def page(self) -> PageState:
        """What is shown."""
        return {"node": self.name, "silence": self._silence, "view": self._view}

    def brief(self) -> NodeBrief:
        """In a word."""
        if self._silence is not None:
            return {"name": self.name, "state": "no answer"}
        return {"name": self.name, "state": self._view["state"] if self._view is not None else ""}

    def samples(self, peer: str) -> list[Sample]:
        """The history of a peer, the oldest first."""
        return self._history.samples(peer)

    def _silent(self, text: str, now: float) -> None:
        since = self._silence["since"] if self._silence is not None else now
        self._silence = {"since": since, "text": shown(text, MOST_IN_LOG)}
