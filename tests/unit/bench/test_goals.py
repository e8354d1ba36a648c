"""Goals of the throughput suite: which ratio is held to them, and what a table says of it."""

from __future__ import annotations

import pytest

from bench import goals, report
from bench.throughput import Samples

EBPF = goals.GOALS[0]
ROUND_TRIP = next(goal for goal in goals.GOALS if goal.column == "rr_p50_us")


def rows(ours: list[float], theirs: list[float]) -> dict[str, Samples]:
    return {"vxlan": Samples(tcp1_gbit=theirs), "udp ebpf": Samples(tcp1_gbit=ours)}


def test_a_ratio_is_of_neighbours_in_time() -> None:
    # The machine is twice as fast in the second round; the median of each column would say 1.0.
    assert goals.ratios(EBPF, rows([6.0, 12.0, 6.0], [5.0, 10.0, 10.0])) == [1.2, 1.2, 0.6]


@pytest.mark.parametrize("missing", ["vxlan", "udp ebpf"])
def test_without_both_there_is_no_ratio(missing: str) -> None:
    measured = rows([1.0], [1.0])
    del measured[missing]
    assert goals.ratios(EBPF, measured) == []


@pytest.mark.parametrize(
    ("ours", "shown"), [([1.1], "1.10 (1.10–1.10), ≥ 1.1"), ([1.0], "**1.00** (1.00–1.00), ≥ 1.1")]
)
def test_what_is_missed_is_bold(ours: list[float], shown: str) -> None:
    table = list(goals.table({"as-it-comes": rows(ours, [1.0])}))
    assert table[2] == f"| {EBPF.what} | {shown} | – | – |"


def test_a_round_trip_is_to_be_short() -> None:
    assert ROUND_TRIP.met(0.8, 0.8)
    assert not ROUND_TRIP.met(0.81, 0.8)


def test_every_goal_is_of_what_is_measured() -> None:
    for goal in goals.GOALS:
        assert {goal.column, goal.base_column or goal.column} <= set(Samples.__annotations__)


def test_the_report_says_what_so_few_cores_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert "flatters us" in report.table({"plain": rows([1.0], [1.0])})
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert "flatters us" not in report.table({"plain": rows([1.0], [1.0])})
