"""A node that always says the same of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pyflannel.report.model import NodeReport, PeerReport

UNCOUNTED = dict.fromkeys(("packets_in", "packets_out", "bytes_in", "bytes_out", "drops"))


class Saying:
    """A `Source`; counts how often it is asked, and how many counts of peers it reads."""

    def __init__(self, report: NodeReport) -> None:
        self._report = report
        self.asked = self.counted = 0

    def report(self) -> NodeReport:
        self.asked += 1
        return replace(self._report, peers=())

    def peer_reports(self, *, counted: bool = True) -> Iterator[PeerReport | None]:
        for peer in self._report.peers:
            yield None
            yield self.with_counts(peer) if counted else replace(peer, **UNCOUNTED)

    def with_counts(self, peer: PeerReport) -> PeerReport:
        self.counted += 1
        return next(each for each in self._report.peers if each.subnet == peer.subnet)
