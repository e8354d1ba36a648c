"""What is pending between desired and actual."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.delta import AT_ONCE, DeltaMap


def pending(delta: DeltaMap[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    return dict(delta.sets()), dict(delta.deletes())


def test_a_wanted_key_is_pending_until_it_is_applied():
    delta: DeltaMap[str, int] = DeltaMap()
    delta.want("a", 1)
    assert pending(delta) == ({"a": 1}, {})
    delta.applied("a")
    assert pending(delta) == ({}, {})
    assert dict(delta.actual) == {"a": 1}


def test_what_is_no_longer_wanted_is_deleted_only_if_it_is_there():
    delta: DeltaMap[str, int] = DeltaMap()
    delta.want("never applied", 1)
    delta.unwant("never applied")
    delta.want("applied", 2)
    delta.applied("applied")
    delta.unwant("applied")
    assert pending(delta) == ({}, {"applied": 2})
    delta.applied("applied")
    assert len(delta) == 0


def test_pending_comes_in_the_order_in_which_it_came_up():
    delta: DeltaMap[str, int] = DeltaMap()
    for number, key in enumerate("cab"):
        delta.want(key, number)
    assert [key for key, _ in delta.sets()] == ["c", "a", "b"]


def test_a_listing_tells_what_drifted_and_only_that():
    delta: DeltaMap[str, int] = DeltaMap()
    for key in "abc":
        delta.want(key, 1)
    for key in "ab":
        delta.applied(key)
    # a is as it was, b was changed, c was pending before, d appeared.
    assert delta.replace_actual({"a": 1, "b": 2, "d": 4}) == ["b", "d"]
    assert pending(delta) == ({"b": 1, "c": 1}, {"d": 4})
    assert delta.replace_actual({"a": 1, "b": 2, "d": 4}) == []


def test_equal_values_are_kept_once():
    delta: DeltaMap[str, tuple[int, ...]] = DeltaMap()
    mine = (1, 2)
    delta.want("a", mine)
    delta.replace_actual({"a": tuple(int(n) for n in "12")})
    assert delta.actual["a"] is mine


KEYS = st.sampled_from("abcd")
STEPS = st.one_of(
    st.tuples(st.just("want"), KEYS, st.integers(0, 2)),
    st.tuples(st.just("unwant"), KEYS),
    st.tuples(st.just("applied"), KEYS),
    st.tuples(st.just("replace"), st.dictionaries(KEYS, st.integers(0, 2))),
)


@given(st.lists(STEPS, max_size=30))
def test_pending_is_always_the_difference_of_the_two_maps(steps):
    """Against the naive model: two dictionaries, compared at each query."""
    delta: DeltaMap[str, int] = DeltaMap()
    desired: dict[str, int] = {}
    actual: dict[str, int] = {}
    for step in steps:
        match step:
            case ("want", key, value):
                delta.want(key, value)
                desired[key] = value
            case ("unwant", key):
                delta.unwant(key)
                desired.pop(key, None)
            case ("applied", key):
                delta.applied(key)
                actual.pop(key, None)
                if key in desired:
                    actual[key] = desired[key]
            case ("replace", there):
                delta.replace_actual(there)
                actual = dict(there)
        assert dict(delta.desired) == desired
        assert dict(delta.actual) == actual
        sets = {k: v for k, v in desired.items() if k not in actual or actual[k] != v}
        assert pending(delta) == (sets, {k: v for k, v in actual.items() if k not in desired})


def test_a_long_listing_is_compared_with_pauses_and_counts_at_the_end():
    delta: DeltaMap[int, int] = DeltaMap()
    for number in range(3 * AT_ONCE):
        delta.want(number, number)
    listing = {number: number for number in range(3 * AT_ONCE - 1)} | {-1: 0}
    steps = delta.replacing_actual(listing)
    assert next(steps) is None
    assert dict(delta.actual) == {}
    pauses = 1 + len(list(steps))
    assert pauses >= 3
    assert dict(delta.actual) == listing
    assert pending_numbers(delta) == ([3 * AT_ONCE - 1], [-1])


def pending_numbers(delta: DeltaMap[int, int]) -> tuple[list[int], list[int]]:
    return [key for key, _ in delta.sets()], [key for key, _ in delta.deletes()]
