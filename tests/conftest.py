"""What holds for each test: nothing is left behind, and it ends."""

from __future__ import annotations

import pytest

from tests.support import coroutines
from tests.support.durations import Durations
from tests.support.leaks import Leaks


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(coroutines, "coroutines")
    config.pluginmanager.register(Leaks(), "leaks")
    config.pluginmanager.register(Durations(), "durations-by-file")
