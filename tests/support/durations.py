"""A pytest plugin: at the end, where the time went."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest

FILES: Final = 12
"""So many of the slowest are listed."""
LONG_RUN_S: Final = 60.0
"""Of a shorter run it is not asked where the time went."""


class Durations:
    """The plugin."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._files[report.location[0]] += report.duration  # type: ignore[assignment]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if sum(self._files.values()) < LONG_RUN_S:
            return
        directories: Counter[str] = Counter()
        for file, seconds in self._files.items():
            directories["/".join(file.split("/")[:2])] += seconds
        terminalreporter.section("seconds")
        for name, seconds in directories.most_common() + self._files.most_common(FILES):
            terminalreporter.write_line(f"{seconds:7.1f}  {name}")
