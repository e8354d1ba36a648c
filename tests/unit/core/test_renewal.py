"""When a lease is renewed, and when it is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.renewal import LONGEST_RETRY_S, Renewal, margin_for

DAY = 86400.0
HOUR = 3600.0


def test_a_lease_is_renewed_one_margin_before_its_end():
    renewal = Renewal(DAY, HOUR, 1000.0)
    assert renewal.deadline == 1000.0 + 23 * HOUR
    assert renewal.end == 1000.0 + DAY
    assert renewal.reason == "60 min before the lease ends"


@pytest.mark.parametrize("minutes", [1, 60, 1439])
def test_every_margin_that_can_be_given_is_kept_to(minutes):
    assert Renewal(DAY, minutes * 60, 0.0).deadline == DAY - minutes * 60


@pytest.mark.parametrize("ttl", [86399.9, 86399.0, 86397.0])
def test_the_largest_margin_is_kept_to_when_a_second_of_the_ttl_has_passed(ttl):
    """A minute after it was granted, not after a third of the day."""
    assert Renewal(ttl, 1439 * 60, 0.0).deadline == pytest.approx(ttl - 1439 * 60)


@pytest.mark.parametrize(("ttl", "due"), [(30.0, 10.0), (3600.0, 1200.0), (3654.0, 3654 / 3)])
def test_a_ttl_shorter_than_the_margin_is_renewed_after_a_third(ttl, due):
    renewal = Renewal(ttl, HOUR, 0.0)
    assert renewal.deadline == pytest.approx(due)
    assert "short TTL" in renewal.reason


def test_a_reservation_is_never_due_and_never_fails():
    renewal = Renewal(None, HOUR, 0.0)
    assert renewal.deadline is None
    assert renewal.end is None
    renewal.failed(5.0)
    assert renewal.deadline is None
    assert renewal.failures == 0


def test_a_lease_found_half_used_up_is_measured_by_the_whole():
    assert Renewal(2 * HOUR, HOUR, 0.0, granted_s=DAY).deadline == HOUR


def test_a_lease_found_within_its_margin_is_due_at_once():
    renewal = Renewal(HOUR / 2, HOUR, 50.0, granted_s=DAY)
    assert renewal.deadline == 50.0
    assert renewal.reason == "overdue: 1800 s are left"


def test_a_success_starts_anew():
    renewal = Renewal(DAY, HOUR, 0.0)
    renewal.failed(DAY - HOUR)
    renewal.succeeded(DAY - HOUR + 2, DAY)
    assert renewal.failures == 0
    assert renewal.deadline == 2 * (DAY - HOUR) + 2


def test_a_success_may_turn_it_into_a_reservation():
    renewal = Renewal(DAY, HOUR, 0.0)
    renewal.succeeded(10.0, None)
    assert renewal.deadline is None


@pytest.mark.parametrize("ttl", [0.0, -1.0, 0.5])
def test_a_store_that_gives_next_to_nothing_is_not_asked_without_a_pause(ttl):
    renewal = Renewal(DAY, HOUR, 0.0)
    renewal.succeeded(100.0, ttl)
    assert renewal.deadline is not None
    assert renewal.deadline >= 101.0


def test_failures_are_retried_in_1_2_4_seconds_and_so_on_up_to_a_minute():
    renewal = Renewal(DAY, HOUR, 0.0)
    now = DAY - HOUR
    waits = []
    for _ in range(9):
        renewal.failed(now)
        waits.append(renewal.deadline - now)
        now = renewal.deadline
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert renewal.reason == "retry after 9 failed attempts"


def test_near_the_end_retries_become_urgent():
    renewal = Renewal(DAY, HOUR, 0.0)
    for _ in range(20):
        renewal.failed(DAY - HOUR)
    renewal.failed(DAY - 40.0)
    assert renewal.deadline == DAY - 30.0
    assert renewal.reason == "the lease runs out in 40 s, after 21 failed attempts"


def test_after_the_end_it_says_so_and_goes_on():
    renewal = Renewal(DAY, HOUR, 0.0)
    renewal.failed(DAY + 5)
    assert renewal.deadline == DAY + 6
    assert renewal.reason == "the lease ran out 5 s ago, after 1 failed attempt"


def test_a_thousand_failures_do_not_overflow():
    renewal = Renewal(DAY, HOUR, 0.0)
    for _ in range(2000):
        renewal.failed(1.0)
    assert renewal.deadline == 1.0 + LONGEST_RETRY_S


def test_after_a_suspension_the_deadline_lies_in_the_past():
    """The caller's clock jumped; the answer stands, and it is "now"."""
    renewal = Renewal(DAY, HOUR, 0.0)
    assert renewal.deadline < 3 * DAY


@given(
    ttl=st.floats(1, 10 * DAY),
    margin=st.floats(60, 1439 * 60),
    now=st.floats(0, 1e9),
    failures=st.integers(0, 30),
)
def test_there_is_always_a_try_before_the_end(ttl, margin, now, failures):
    """And, as long as seconds are left, time for another one after a failure."""
    renewal = Renewal(ttl, margin, now)
    assert now <= renewal.deadline < renewal.end
    at = renewal.deadline
    for _ in range(failures):
        left = renewal.end - at
        renewal.failed(at)
        assert renewal.reason
        assert at < renewal.deadline <= at + LONGEST_RETRY_S
        if left > 4:
            assert renewal.deadline < renewal.end
        at = renewal.deadline


@pytest.mark.parametrize(
    ("ttl", "margin", "kept"),
    [(DAY, 1439 * 60, 1439 * 60), (600, HOUR, 200), (600, 60, 60), (10 * DAY, HOUR, HOUR)],
)
def test_the_margin_is_at_most_a_third_of_a_ttl_that_was_chosen(ttl, margin, kept):
    """Upstream's TTL takes every margin that upstream takes."""
    assert margin_for(ttl, margin, usual_ttl_s=DAY) == kept
