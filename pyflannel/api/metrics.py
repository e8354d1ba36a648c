"""`/metrics`: a report in Prometheus' text format, and the process beside it.

prometheus_client is imported with the first scrape and in a thread: the daemon's start and its
event loop do not pay for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pyflannel.aio.pace import let_go, paced
from pyflannel.report.metrics import MOST_PEERS, Family, families
from pyflannel.report.model import NodeReport
from pyflannel.report.peers import by_trouble
from pyflannel.report.source import Source

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The format that every Prometheus reads (its documentation, "Exposition formats")."""
FRESH_S: Final = 1.0
"""How long an answer is given again: strangers who ask all the time cost one a second."""


class Scrapes:
    """Answers scrapes, one at a time, each with a report of its second.

    Args:
        source: makes the node's reports.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, source: Source, now: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._now = now
        self._lock = asyncio.Lock()
        self._made: float | None = None
        self._answer = b""

    async def answer(self) -> bytes:
        """The body."""
        async with self._lock:
            if self._made is None or self._now() - self._made >= FRESH_S:
                every = self._source.peer_reports(counted=False)
                peers = [peer async for peer in paced(every) if peer is not None]
                peers = await asyncio.to_thread(by_trouble, peers)
                # The others have no series in which it could be told.
                shown = map(self._source.with_counts, peers[:MOST_PEERS])
                peers[:MOST_PEERS] = [peer async for peer in paced(shown)]
                report = replace(self._source.report(), peers=peers)
                self._answer = await asyncio.to_thread(render, report)
                await let_go(peers)
                self._made = self._now()
            return self._answer


def render(report: NodeReport) -> bytes:
    """A report in the text format. Safe in a thread: a report is a value."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Collected(families(report)))
    return generate_latest(registry)


class _Collected:
    """Families as prometheus_client collects them (its `registry.Collector`)."""

    def __init__(self, found: Iterable[Family]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for family in self._found:
            names = family.labels
            kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=names)
            for labels, value in family.samples:
                metric.add_metric([labels[name] for name in names], value)
            yield metric
