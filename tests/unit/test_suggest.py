"""Guessing what was meant."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.suggest import did_you_mean, slips

KEYS = ("Network", "SubnetLen", "SubnetMin", "SubnetMax", "IPv6Network", "Backend")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("SudbnetMax", "SubnetMax"),
        ("Netwrok", "Network"),
        ("subnet_len", "SubnetLen"),
        ("Subnet-Min", "SubnetMin"),
        ("Backends", "Backend"),
        ("Ipv6Netwrk", "IPv6Network"),
        ("Comment", None),
        ("X", None),
        ("", None),
    ],
)
def test_a_slip_is_recognised_and_another_word_is_not(word: str, meant: str | None) -> None:
    assert did_you_mean(word, KEYS) == meant


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "acb", 1),
        ("abc", "ab", 1),
        ("abc", "abcd", 1),
        ("abc", "axc", 1),
        ("kitten", "sitting", 3),
        ("", "abc", 3),
    ],
)
def test_slips_are_counted(a: str, b: str, count: int) -> None:
    assert slips(a, b) == count


@settings(deadline=None)
@given(st.text(max_size=12), st.text(max_size=12))
def test_slips_are_symmetric_and_bounded_by_the_lengths(a: str, b: str) -> None:
    count = slips(a, b)
    assert count == slips(b, a)
    assert abs(len(a) - len(b)) <= count <= max(len(a), len(b))
    assert (count == 0) == (a == b)
