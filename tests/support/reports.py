"""A node that always says the same of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pyflannel.report.model import NodeReport, PeerReport


class Saying:
    """A `Source`; counts how often it is asked."""

    def __init__(self, report: NodeReport) -> None:
        self._report = report
        self.asked = 0

    def report(self) -> NodeReport:
        self.asked += 1
        return replace(self._report, peers=())

    def peer_reports(self) -> Iterator[PeerReport | None]:
        for peer in self._report.peers:
            yield None
            yield peer
