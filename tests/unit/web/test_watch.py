"""What is known of a daemon, answer by answer."""

from __future__ import annotations

import pytest

from pyflannel.report.codec import encode
from pyflannel.web.watch import Watched
from tests.support.clusters import NOW, report


def answer(at=NOW, **more):
    return {"status": encode(report(at=at, **more))}


def test_before_the_first_answer_nothing_is_known():
    node = Watched("a")
    assert node.page() == {"node": "a", "silence": None, "view": None}
    assert node.brief() == {"name": "a", "state": ""}


def test_an_answer_is_shown_and_counted_as_a_change():
    node = Watched("a")
    node.take(answer(), NOW)
    assert node.page()["view"]["state"] == "fine"
    assert node.brief()["state"] == "fine"
    assert node.version == 1


def test_a_daemon_that_is_silent_is_so_since_its_first_failure_and_keeps_its_last_view():
    node = Watched("a")
    node.take(answer(), NOW)
    node.take({"error": "connect to x: ENOENT"}, NOW + 2)
    node.take({"error": "connect to x: ECONNREFUSED"}, NOW + 4)
    page = node.page()
    assert page["silence"] == {"since": NOW + 2, "text": "connect to x: ECONNREFUSED"}
    assert page["view"]["now"] == NOW
    assert node.brief()["state"] == "no answer"


def test_it_comes_back_by_itself():
    node = Watched("a")
    node.take({"error": "x"}, NOW)
    node.take(answer(NOW + 2), NOW + 2)
    assert node.page()["silence"] is None
    node.take({"error": "x"}, NOW + 4)
    assert node.page()["silence"]["since"] == NOW + 4


@pytest.mark.parametrize(
    "status",
    [
        *({"schema": 1, "peers": 3}, {"schema": 1, "peers": [3]}, {"schema": 1, "lease": "x"}),
        *({"schema": 1, "peers": [{"subnet": 5}]}, {"schema": 0, "version": "9"}, {}, [], None),
    ],
    ids=repr,
)
def test_what_is_no_status_of_ours_is_silence(status):
    node = Watched("a")
    node.take({"status": status}, NOW)
    assert node.page()["silence"]["text"]
    assert node.page()["view"] is None


def test_the_past_is_kept_over_a_silence():
    node = Watched("a")
    node.take(answer(NOW), NOW)
    node.take({"error": "x"}, NOW + 2)
    node.take(answer(NOW + 4), NOW + 4)
    samples = node.samples("10.5.2.0/24")
    assert [each[0] for each in samples] == [NOW, NOW + 4]
    assert samples[-1][4] == 100.0
    assert node.samples("nothing") == []
