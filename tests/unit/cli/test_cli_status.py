"""`pyflannel status`, as text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pyflannel.cli import status
from pyflannel.core.errors import DeviceUnavailable, UsageError
from pyflannel.report.codec import encode
from pyflannel.report.model import (
    DeviceReport,
    Failure,
    NetworkReport,
    NodeReport,
    PeerReport,
    ProbeReport,
    StoreReport,
)
from pyflannel.report.text import headline, page
from tests.support.hostile import HOSTILE, is_fit


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_daemon_repeats_reaches_the_terminal_raw(text: str) -> None:
    report = NodeReport(
        version="1",
        phase=f"waiting: {text}",
        waiting_for=text,
        store=StoreReport(kind="etcd", where=text, connected=False, rejected={text: text}),
        network=NetworkReport(
            backend=text, devices={text: DeviceReport(up=False)}, failing={text: text}
        ),
        failing={text: Failure(text=text)},
    )
    assert is_fit(page(report))
    assert is_fit(headline(report))


def test_an_answer_of_another_release_reaches_the_terminal_escaped(monkeypatch, capsys) -> None:
    answer = {"version": "\x1b]0;owned\x07", "ready": True}
    monkeypatch.setattr(status, "ask", lambda *_: answer)
    assert status.main([]) == 0
    out, err = capsys.readouterr()
    assert is_fit(out + err)
    assert "another release (\\x1b" in err


ANSWER = encode(NodeReport(version="1", now=1.0, ready_since=1.0, phase="running"))


class TestWatch:
    """Again and again until the user stops it, here at the third sleep."""

    @pytest.fixture
    def shown(self, monkeypatch, capsys):
        def run(*args: str, answers: list[object]) -> str:
            asked = iter(answers)

            def ask(*_: object) -> dict[str, object]:
                answer = next(asked)
                if isinstance(answer, Exception):
                    raise answer
                return dict(ANSWER)

            def sleep(seconds: float) -> None:
                slept.append(seconds)
                if len(slept) == len(answers):
                    raise KeyboardInterrupt

            slept: list[float] = []
            monkeypatch.setattr(status, "ask", ask)
            monkeypatch.setattr(status.time, "sleep", sleep)
            with pytest.raises(KeyboardInterrupt):
                status.main(args)
            assert set(slept) == {float(args[-1]) if args[-1][0] != "-" else status.WATCH_S}
            return capsys.readouterr().out

        return run

    def test_pages_follow_each_other(self, shown):
        text = shown("--watch", answers=[None, None, None])
        assert text.count("pyflanneld 1: fine") == 3
        assert "\x1b" not in text  # not a terminal

    def test_a_daemon_that_goes_away_is_said_and_asked_again(self, shown):
        gone = DeviceUnavailable("connect to", "/run/x", 2)
        assert shown("--watch", "0.5", answers=[None, gone, None]).count(": fine") == 2

    def test_json_is_an_object_a_line(self, shown):
        lines = shown("--json", "--watch", answers=[None, None]).splitlines()
        assert [json.loads(line)["ready"] for line in lines] == [True, True]


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf"])
def test_seconds_that_make_no_sense_are_refused(value):
    with pytest.raises(UsageError):
        status.main([f"--watch={value}"])


def test_the_page_says_what_is_asked_of_the_peers():
    peers = [PeerReport(subnet="10.5.7.0/24", state="up"), PeerReport(state="down")]
    probes = ProbeReport(probed="tunnel", interval_s=26.1, answered=7, lost=2)
    text = page(NodeReport(peers=peers, probes=probes))
    assert "peers: 1 up, 1 down" in text
    assert "through the tunnel, and now and then beside it, every 26 s" in text
    assert "7, 2 lost" in text
    for other, words in (
        (ProbeReport(probed="tunnel"), "--probe-interval is 0"),
        (ProbeReport(probed="nothing"), "something else carries"),
        (replace(probes, refused="EPERM"), "EPERM"),
    ):
        assert words in page(NodeReport(peers=peers, probes=other))
