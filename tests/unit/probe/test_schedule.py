"""When which peer is probed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection

import pytest

from pyflannel.probe.schedule import BURST, MOST_PER_S, Schedule, interval


def turns(schedule: Schedule[int], start: float, seconds: float, packets: int = 1):
    """Every turn with its time, looking ten times a second."""
    found = []
    for tick in range(int(seconds * 10)):
        now = start + tick / 10
        while (key := schedule.due(now)) is not None:
            schedule.sent(packets)
            found.append((now, key))
    return found


def test_ten_seconds_for_few_peers_and_longer_for_many():
    assert interval(10, 1) == interval(10, 20) == 10
    assert interval(10, 100) == pytest.approx(26.1, abs=0.1)
    assert interval(10, 1_000) == pytest.approx(49.1, abs=0.1)
    assert interval(10, 5_000) == pytest.approx(130)
    assert interval(1, 1_000) == pytest.approx(26)


def add(schedule: Schedule[int], keys: Collection[int], now: float) -> None:
    spread = schedule.spread(len(keys))
    for key in keys:
        schedule.add(key, now, spread)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_each_peer_has_its_turn_once_an_interval_within_a_tenth(count):
    schedule: Schedule[int] = Schedule(10, random.Random(1).random, 0.0)
    add(schedule, range(count), 0.0)
    times: dict[int, list[float]] = {}
    for now, key in turns(schedule, 0.0, 400):
        times.setdefault(key, []).append(now)
    wanted = schedule.interval_s
    assert len(times) == count
    for each in times.values():
        gaps = [later - earlier for earlier, later in itertools.pairwise(each)]
        # The looks are a tenth of a second apart.
        assert all(wanted * 0.9 - 0.2 <= gap <= wanted * 1.1 + 0.2 for gap in gaps)


def test_nodes_that_start_together_do_not_probe_together():
    seconds = []
    for seed in range(40):
        schedule: Schedule[int] = Schedule(10, random.Random(seed).random, 0.0)
        add(schedule, [1], 0.0)
        seconds.append(turns(schedule, 0.0, 60)[-1][0])
    assert max(seconds) - min(seconds) > 5


@pytest.mark.parametrize("packets", [1, 3])
def test_no_more_packets_leave_than_are_allowed_in_any_case(packets):
    schedule: Schedule[int] = Schedule(1, random.Random(1).random, 0.0)
    add(schedule, range(5_000), 0.0)
    for key in range(5_000):
        schedule.soon(key, 0.0)
    found = turns(schedule, 0.0, 60, packets)
    assert len(found) * packets <= 60 * MOST_PER_S + BURST + packets
    assert len(found) * packets >= 59 * MOST_PER_S


def test_a_peer_that_is_gone_has_no_turn_and_a_new_one_soon():
    schedule: Schedule[int] = Schedule(10, random.Random(1).random, 0.0)
    add(schedule, [1, 2], 0.0)
    schedule.remove(1)
    add(schedule, [3], 1.0)
    found = turns(schedule, 1.0, 3)
    assert {key for _, key in found} <= {2, 3}
    assert 3 in {key for _, key in found}


def test_a_turn_that_is_wanted_soon_takes_the_place_of_the_next():
    schedule: Schedule[int] = Schedule(10, lambda: 0.5, 0.0)
    add(schedule, [1], 0.0)
    assert [key for _, key in turns(schedule, 0.0, 2)] == [1]
    schedule.soon(1, 3.0)
    assert schedule.due(3.0) == 1
    assert [now for now, _ in turns(schedule, 3.1, 15)] == [pytest.approx(13.1, abs=0.1)]
    schedule.soon(9, 3.0)  # of no peer
    assert schedule.due(3.0) is None


def test_it_says_when_there_is_something_to_do_again():
    schedule: Schedule[int] = Schedule(10, lambda: 0.5, 0.0)
    assert schedule.next() is None
    add(schedule, [1], 0.0)
    assert schedule.next() == pytest.approx(0.52)
    schedule.due(1.0)
    assert schedule.next() == pytest.approx(11.0)
