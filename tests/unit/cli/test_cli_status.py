"""`pyflannel status`, as text."""

from __future__ import annotations

import pytest

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
