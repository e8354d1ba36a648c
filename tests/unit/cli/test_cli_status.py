"""`pyflannel status`, as text."""

from __future__ import annotations

import pytest

from pyflannel.cli import status
from tests.support.hostile import HOSTILE, is_fit


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_daemon_repeats_reaches_the_terminal_raw(text: str) -> None:
    report = {
        "version": "1",
        "phase": f"waiting: {text}",
        "problems": {text: text},
        "etcd": {"rejected": {text: text}, "list": [text]},
        "network": {"failing": {text: {text: text}}},
    }
    lines = status.render(report).split("\n")
    assert len(lines) == 10
    assert is_fit("\n".join(lines))
