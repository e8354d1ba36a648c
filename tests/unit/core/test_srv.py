"""SRV records: what is asked for, and in which order the answers are tried."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pyflannel.core.srv import Record, in_order, service


def record(target: str, *, priority: int = 0, weight: int = 0) -> Record:
    return Record(priority=priority, weight=weight, port=2379, target=target)


@pytest.mark.parametrize(
    ("name", "tls", "asked"),
    [
        ("", True, "_etcd-client-ssl._tcp.example.com"),
        ("", False, "_etcd-client._tcp.example.com"),
        ("blue", True, "_etcd-client-ssl-blue._tcp.example.com"),
        ("blue", False, "_etcd-client-blue._tcp.example.com"),
    ],
)
def test_the_services_are_etcds(name, tls, asked):
    assert service("example.com", name, tls=tls) == asked
    assert service("example.com.", name, tls=tls) == asked


def test_lower_priorities_come_first_with_any_weight():
    records = [
        record("c", priority=20, weight=65535),
        record("a", priority=5, weight=0),
        record("b", priority=10, weight=1),
    ]
    for seed in range(20):
        found = in_order(records, random.Random(seed))
        assert [one.target for one in found] == ["a", "b", "c"]


def test_of_one_priority_weights_are_kept_in_proportion():
    records = [record("often", weight=75), record("seldom", weight=25)]
    rng = random.Random(1)
    first = Counter(in_order(records, rng)[0].target for _ in range(4000))
    assert 0.7 < first["often"] / 4000 < 0.8


def test_weight_0_has_a_chance_and_a_small_one():
    records = [record("zero", weight=0), record("much", weight=30)]
    rng = random.Random(1)
    first = Counter(in_order(records, rng)[0].target for _ in range(4000))
    assert 0 < first["zero"] / 4000 < 0.1


def test_every_record_is_there_once():
    rng = random.Random(1)
    records = [record(f"{n}", priority=n % 3, weight=n % 5) for n in range(40)]
    assert sorted(r.target for r in in_order(records, rng)) == sorted(r.target for r in records)


def test_a_service_that_is_not_offered_is_nowhere():
    """The target "." of RFC 2782."""
    assert in_order([record("")], random.Random(1)) == []
