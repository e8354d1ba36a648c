"""What is worth a log line."""

from __future__ import annotations

import tracemalloc

from pyflannel.core.announce import LINES, MOST_KNOWN, PERIOD_S, Announcer


def test_each_thing_is_said_once_and_again_when_it_changes_or_comes_back() -> None:
    said: Announcer[str] = Announcer()
    assert said.worth("key", "no JSON", 0)
    assert not said.worth("key", "no JSON", 1)
    assert said.worth("key", "no IP", 2)
    said.forget("key")
    assert said.worth("key", "no IP", 3)
    said.forget("never seen")


def test_a_flood_is_counted_and_the_next_line_tells_how_many() -> None:
    said: Announcer[int] = Announcer()
    assert sum(said.worth(number, "bad", 5.0) for number in range(1000)) == LINES
    assert said.worth(5000, "bad", 5.0 + PERIOD_S)
    assert said.take_withheld() == 1000 - LINES
    assert said.take_withheld() is None


def test_what_was_withheld_is_said_later() -> None:
    said: Announcer[int] = Announcer()
    for number in range(LINES + 1):
        said.worth(number, "bad", 0)
    assert said.worth(LINES, "bad", PERIOD_S)


def test_memory_is_bounded_with_any_input() -> None:
    said: Announcer[bytes] = Announcer()
    tracemalloc.start()
    try:
        for number in range(20 * MOST_KNOWN):
            said.worth(b"%0100d" % number, "x" * 200, number * PERIOD_S)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 2_000_000
    assert not said.worth(b"%0100d" % (20 * MOST_KNOWN - 1), "x" * 200, 1e9)


def test_what_is_gone_at_a_listing_is_said_when_it_comes_back() -> None:
    said: Announcer[bytes] = Announcer()
    for key in (b"a", b"b"):
        said.worth(key, "bad", 0)
    said.forget_all_but({b"b"})
    assert said.worth(b"a", "bad", 1)
    assert not said.worth(b"b", "bad", 1)
