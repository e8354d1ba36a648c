"""What answers, and the want of them, say of a peer."""

from __future__ import annotations

import pytest

from pyflannel.probe.judge import FAILS_AT, Cause, Sizes, State, Track, worst

SMALL = 84


def played(track: Track, story: str, now: float = 100.0) -> State:
    """`T`, `U`: an answer through the tunnel, beside it; `t`, `u`: none."""
    for step, letter in enumerate(story):
        way = track.tunnel if letter in "Tt" else track.underlay
        if letter.isupper():
            way.answered(now + step, 0.001)
        else:
            way.missed()
        track.settle(now + step)
    return track.state


class TestTrack:
    def test_never_answered_is_unknown_however_often_it_is_asked(self):
        track = Track(has_underlay=True)
        assert played(track, "ut" * 50) is State.UNKNOWN
        assert track.since is None
        assert track.tunnel.loss is None

    def test_a_few_misses_are_nothing_and_the_fourth_in_a_row_is_a_failure(self):
        track = Track(has_underlay=True)
        assert played(track, "T" + "t" * (FAILS_AT - 1) + "T" + "t" * (FAILS_AT - 1)) is State.UP
        assert played(track, "t", 500.0) is State.DOWN
        assert track.since == 500.0

    @pytest.mark.parametrize(
        ("story", "cause"),
        [
            ("UT" + "ut" * 4, Cause.AWAY),
            ("UT" + "Ut" * 4, Cause.TUNNEL),
            ("uT" + "ut" * 4, Cause.UNCLEAR),
            # It comes back beside the tunnel first.
            ("UT" + "ut" * 4 + "Ut", Cause.TUNNEL),
        ],
    )
    def test_a_failure_is_one_of_three(self, story, cause):
        track = Track(has_underlay=True)
        assert played(track, story) is State.DOWN
        assert track.cause is cause

    def test_one_answer_ends_a_failure(self):
        track = Track(has_underlay=True)
        played(track, "T" + "t" * 6)
        assert played(track, "T", 900.0) is State.UP
        assert (track.since, track.cause) == (900.0, Cause.NONE)

    def test_without_a_tunnel_a_silent_node_is_away(self):
        track = Track(has_underlay=False)
        played(track, "Ttttt")
        assert track.cause is Cause.AWAY

    def test_loss_is_that_of_the_last_probes(self):
        track = Track(has_underlay=False)
        played(track, "TtTTt")
        assert track.tunnel.loss == pytest.approx(0.4)
        played(track, "T" * 20)
        assert track.tunnel.loss == 0

    def test_round_trips_are_smoothed_and_those_of_a_set_clock_left_out(self):
        track = Track(has_underlay=False)
        track.tunnel.answered(1.0, 0.010)
        track.tunnel.answered(2.0, 0.050)
        track.tunnel.answered(3.0, None)
        assert track.tunnel.rtt_s == pytest.approx(0.020)


class TestSizes:
    @pytest.mark.parametrize("limit", [100, 576, 1280, 1392, 1449])
    def test_the_border_is_found_from_both_sides(self, limit):
        sizes = Sizes()
        for _ in range(60):
            size = sizes.next(SMALL, 1450)
            if size <= limit:
                sizes.answered(size)
            else:
                sizes.missed(size)
            if not sizes.searching(SMALL):
                break
        assert sizes.failed is not None
        assert limit - 8 <= (sizes.passed or SMALL) <= limit < sizes.failed

    def test_two_lost_large_packets_are_nothing(self):
        sizes = Sizes()
        for _ in range(5):
            sizes.missed(1450)
            sizes.missed(1450)
            sizes.answered(1450)
        assert (sizes.passed, sizes.failed) == (1450, None)

    def test_a_path_that_grew_is_seen_at_its_whole_size(self):
        sizes = Sizes(passed=1392, failed=1400)
        assert sizes.next(SMALL, 1450) == 1450
        sizes.answered(1450)
        assert (sizes.passed, sizes.failed) == (1450, None)

    def test_a_state_of_its_own_which_ends_with_a_large_answer(self):
        track = Track(has_underlay=True)
        played(track, "T")
        for _ in range(3):
            track.sizes.missed(1450)
        assert track.settle(5.0)
        assert track.state is State.SMALL_ONLY
        track.sizes.answered(1450)
        assert track.settle(6.0)
        assert track.state is State.UP


def test_of_two_families_the_worst_counts_and_silence_does_not():
    assert worst([State.UP, State.DOWN]) is State.DOWN
    assert worst([State.UNKNOWN, State.UP]) is State.UP
    assert worst([]) is State.UNKNOWN
