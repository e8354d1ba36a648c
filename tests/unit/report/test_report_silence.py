"""Which peers were seen to be silent, and when a node cannot tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyflannel.report.model import NodeReport, PeerReport, ProbeReport
from pyflannel.report.silence import silence

NOW = 1_700_000_000.0
HOUR = 3600.0
GONE = PeerReport(
    subnet="10.5.7.0/24",
    state="down",
    cause="away",
    last_heard=NOW - 3 * HOUR,
    underlay_heard=NOW - 3 * HOUR,
)
FINE = PeerReport(subnet="10.5.8.0/24", state="up", last_heard=NOW - 4, underlay_heard=NOW - 30)
REPORT = NodeReport(
    now=NOW,
    started=NOW - 10 * HOUR,
    probes=ProbeReport(probed="tunnel", interval_s=10, states={"up": 9, "down": 1}),
    peers=[FINE, GONE],
)


def test_who_answered_and_was_silent_on_both_ways_for_so_long():
    (found,) = silence(REPORT, 2 * HOUR).silent
    assert found == (GONE, 3 * HOUR)
    assert silence(REPORT, 4 * HOUR).silent == []


@pytest.mark.parametrize(
    "peer",
    [
        replace(GONE, cause="tunnel", underlay_heard=NOW - 5),
        replace(GONE, underlay_heard=NOW - HOUR),
        replace(GONE, state="up"),
    ],
)
def test_who_was_heard_in_any_way_is_not_silent(peer):
    assert silence(replace(REPORT, peers=[peer]), 2 * HOUR).silent == []


@pytest.mark.parametrize(
    "peer",
    [
        replace(GONE, cause="unclear", underlay_heard=None),
        PeerReport(subnet="10.5.9.0/24"),
    ],
)
def test_who_never_answered_is_unknown_and_left_alone(peer):
    found = silence(replace(REPORT, peers=[peer]), 2 * HOUR)
    assert found.silent == []
    assert found.unclear[0][0] == peer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"started": NOW - HOUR}, "watching for 1 h"),
        ({"probes": None}, "does not probe"),
        ({"probes": ProbeReport(probed="tunnel")}, "does not probe"),
        ({"probes": ProbeReport(probed="node", interval_s=10)}, "does not probe"),
        ({"probes": replace(REPORT.probes, refused="EPERM")}, "EPERM"),
        ({"probes": replace(REPORT.probes, states={"down": 3, "up": 2})}, "cut off"),
    ],
)
def test_without_a_history_that_vouches_for_it_it_is_refused(changes, words):
    found = silence(replace(REPORT, **changes), 2 * HOUR)
    assert words in found.refused
    assert not found.silent
