"""`pyflannel status`, as text."""

from __future__ import annotations

import pytest

from pyflannel.cli import status
from pyflannel.report.model import (
    DeviceReport,
    Failure,
    NetworkReport,
    NodeReport,
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
