"""Where the reports of a node come from, as those see it who tell the world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pyflannel.report.model import NodeReport, PeerReport


class Source(Protocol):
    """A running node. Asked in its event loop."""

    def report(self) -> NodeReport:
        """Everything but the peers one by one. Quick, however many there are."""
        ...

    def peer_reports(self, *, counted: bool = True) -> Iterator[PeerReport | None]:
        """A record for each peer that there is now, by subnet; `None` is a pause.

        Each is made when it is asked for, and others may have their turn in between.

        Args:
            counted: with what the data path counted of them. That is read from every CPU.
        """
        ...

    def with_counts(self, peer: PeerReport) -> PeerReport:
        """A record that was made without them, with what the data path counted of the peer."""
        ...
