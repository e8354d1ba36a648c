"""Times and durations in words."""

from __future__ import annotations

import pytest

from pyflannel.report.words import clock_time, duration, left, since


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (0.9, "0 s"),
        (42, "42 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d"),
        (180_000, "2 d 2 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, words):
    assert duration(seconds) == words


def test_today_needs_no_date():
    noon = 1_700_049_600.0
    assert len(clock_time(noon, noon + 1)) == len("12:00:00")
    assert clock_time(noon, noon + 200_000).startswith("2023-11-1")


def test_before_and_after():
    assert left(160.0, 100.0) == "in 1 min"
    assert left(100.0, 160.0) == "1 min ago"


def test_an_unknown_since_says_nothing():
    assert since(None, 100.0) == ""
    assert since(100.0, 142.0).endswith("(42 s)")
