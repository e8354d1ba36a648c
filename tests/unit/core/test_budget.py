"""How many ICMP errors there are, and for whom."""

from __future__ import annotations

from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.budget import SOURCES, FairBudget, TokenBucket, bucket_of


def test_a_token_bucket_gives_its_burst_and_then_its_rate():
    bucket = TokenBucket(rate=1000, burst=50)
    assert sum(bucket.take(10.0) for _ in range(200)) == 50
    assert not bucket.take(10.0005)
    assert bucket.take(10.0021)
    assert sum(bucket.take(10.0121) for _ in range(200)) == 11
    assert sum(bucket.take(99.0) for _ in range(200)) == 50


@given(st.lists(st.floats(0, 0.01), min_size=1, max_size=300))
def test_a_token_bucket_never_exceeds_its_rate(pauses):
    bucket = TokenBucket(rate=1000, burst=50)
    now = taken = 0.0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
    assert taken <= 50 + now * 1000 + 1e-6


def test_one_source_does_not_take_what_others_need():
    budget = FairBudget(each=(200, 50), all_of_them=(1000, 250))
    assert sum(budget.take(1, 10.0) for _ in range(1000)) == 50
    assert sum(budget.take(2, 10.0) for _ in range(1000)) == 50
    assert budget.take(3, 10.0)


def test_all_together_have_a_limit():
    budget = FairBudget(each=(200, 50), all_of_them=(1000, 250))
    assert sum(budget.take(n, 10.0) for n in range(2000) for _ in range(50)) == 250
    assert sum(budget.take(n, 11.0) for n in range(2000) for _ in range(50)) == 250


def test_the_addresses_of_a_subnet_have_a_bucket_of_their_own_or_nearly():
    numbers = [bucket_of(int(address)) for address in IPv4Network("10.5.1.0/24").hosts()]
    assert all(0 <= number < SOURCES for number in numbers)
    assert max(map(numbers.count, numbers)) <= 2
