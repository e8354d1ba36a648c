"""Which cluster is ours, by what the endpoints name."""

from __future__ import annotations

import pytest

from pyflannel.store.etcd.identity import ADOPT_AFTER_S, RECENT_S, Cluster, Identity

OURS, OTHER, THIRD = 0xA, 0xB, 0xC
THREE = ("a", "b", "c")


def known(*endpoints: str) -> Identity:
    return Identity(endpoints or THREE, OURS, 0.0)


def test_without_memory_the_first_answer_decides():
    identity = Identity(THREE, 0, 0.0)
    assert identity.judge("a", OURS, 1.0) is Cluster.OURS
    assert identity.home == identity.used == OURS


def test_one_member_of_three_that_became_a_cluster_of_its_own_is_not_used():
    identity = known()
    for now in range(0, int(ADOPT_AFTER_S), 5):
        assert identity.judge("c", OTHER, float(now)) is Cluster.FOREIGN
    assert not identity.is_stranger


def test_after_ten_minutes_without_ours_it_is_used_as_a_stranger_and_left_again():
    identity = known()
    assert identity.judge("c", OTHER, ADOPT_AFTER_S) is Cluster.STRANGER
    assert identity.is_stranger
    assert identity.home == OURS
    assert identity.judge("a", OURS, ADOPT_AFTER_S + 30) is Cluster.BACK
    assert not identity.is_stranger


def test_answers_of_ours_put_that_off():
    identity = known()
    identity.heard(500.0)
    assert identity.judge("c", OTHER, ADOPT_AFTER_S + 1) is Cluster.FOREIGN


def test_answers_of_a_stranger_do_not_count_as_ours():
    identity = known()
    identity.judge("c", OTHER, ADOPT_AFTER_S)
    identity.heard(ADOPT_AFTER_S + 60)
    assert identity.judge("b", THIRD, ADOPT_AFTER_S + 61) is Cluster.STRANGER


@pytest.mark.parametrize("endpoints", [("a",), THREE])
def test_a_restored_cluster_takes_the_place_of_ours_at_once(endpoints):
    """More than half of the endpoints name it, and none ours: what a restore looks like."""
    identity = known(*endpoints)
    verdicts = [identity.judge(endpoint, OTHER, 5.0) for endpoint in endpoints[:2]]
    assert verdicts[-1] is Cluster.REPLACED
    assert identity.home == identity.used == OTHER


def test_two_of_three_do_not_outvote_one_of_ours_that_answers():
    identity = known()
    identity.judge("a", OURS, 1.0)
    assert identity.judge("b", OTHER, 2.0) is Cluster.FOREIGN
    assert identity.judge("c", OTHER, 3.0) is Cluster.FOREIGN


def test_old_answers_say_nothing_about_now():
    identity = known()
    assert identity.judge("b", OTHER, 0.0) is Cluster.FOREIGN
    assert identity.judge("c", OTHER, RECENT_S + 1) is Cluster.FOREIGN


def test_two_that_differ_are_no_majority():
    identity = known()
    assert identity.judge("b", OTHER, 0.0) is Cluster.FOREIGN
    assert identity.judge("c", THIRD, 0.0) is Cluster.FOREIGN


@pytest.mark.parametrize(
    ("answers", "agree"),
    [([], True), ([OURS], True), ([OURS, OURS, OTHER], True), ([OURS, OTHER], False)],
)
def test_a_first_start_needs_endpoints_that_agree(answers, agree):
    assert Identity(THREE, 0, 0.0).agree(answers) is agree
