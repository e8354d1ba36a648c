"""When a failure that lasts is worth a line."""

from __future__ import annotations

from pyflannel.core.trouble import KINDS, REPEAT_S, Occasion, TroubleLog


def test_a_kind_is_said_when_it_begins_and_again_after_ten_minutes():
    log = TroubleLog()
    said = [log.failed(now, "refused", "refused") for now in range(0, 1300, 5)]
    assert [(5 * n, why) for n, why in enumerate(said) if why] == [
        (0, Occasion.BEGINS),
        (REPEAT_S, Occasion.LASTS),
        (2 * REPEAT_S, Occasion.LASTS),
    ]


def test_another_kind_is_said_at_once_and_becomes_the_present_one():
    log = TroubleLog()
    log.failed(0.0, "refused", "connection refused")
    assert log.failed(5.0, "denied", "wrong password") is Occasion.CHANGED
    assert log.present.reason == "wrong password"
    assert (log.present.since, log.present.kind_since) == (0.0, 5.0)


def test_two_that_alternate_are_two_lines():
    """As two endpoints do that fail in different ways."""
    log = TroubleLog()
    said = [log.failed(now, kind, kind) for now in range(0, 500, 10) for kind in ("a", "b")]
    assert [why for why in said if why] == [Occasion.BEGINS, Occasion.CHANGED]


def test_the_end_is_told_once_with_its_duration():
    log = TroubleLog()
    log.failed(10.0, "a", "a")
    assert log.over(75.0) == 65.0
    assert log.over(80.0) is None
    assert log.present is None
    assert log.failed(90.0, "a", "a") is Occasion.BEGINS


def test_a_server_with_ever_new_texts_fills_no_memory():
    log = TroubleLog()
    for n in range(10 * KINDS):
        log.failed(float(n), f"kind {n}", "x")
    assert len(log._said) == KINDS
