"""Delays between attempts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.aio.backoff import Backoff


def test_without_jitter_delays_double_from_a_tenth_to_five_seconds():
    backoff = Backoff(jitter=0)
    assert [backoff.next() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_reset_starts_over():
    backoff = Backoff(jitter=0)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == 0.1


@given(seed=st.integers(), count=st.integers(1, 40))
def test_jitter_only_shortens_and_at_most_by_half(seed, count):
    jittered, exact = Backoff(rng=random.Random(seed)), Backoff(jitter=0)
    for _ in range(count):
        full = exact.next()
        assert full / 2 <= jittered.next() <= full


def test_equal_seeds_give_equal_delays_and_others_differ():
    def delays(seed: int) -> list[float]:
        backoff = Backoff(rng=random.Random(seed))
        return [backoff.next() for _ in range(5)]

    assert delays(1) == delays(1)
    assert delays(1) != delays(2)


def test_it_goes_on_without_end():
    backoff = Backoff(jitter=0)
    for _ in range(5000):
        backoff.next()
    assert backoff.next() == 5.0


@pytest.mark.parametrize("wrong", [{"first": 0}, {"first": 9}, {"jitter": 2}, {"jitter": -1}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="backoff"):
        Backoff(**wrong)
