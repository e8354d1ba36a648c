"""What holds for each test: nothing is left behind, and it ends."""

from __future__ import annotations

import signal

import pytest

from tests.support import coroutines
from tests.support.durations import Durations
from tests.support.leaks import Leaks


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started by a script with `&`. What is ignored here would be so in every child, and no test
        # could interrupt one; what has a handler has the default there.
        signal.signal(signal.SIGINT, _do_nothing)
    config.pluginmanager.register(coroutines, "coroutines")
    config.pluginmanager.register(Leaks(), "leaks")
    config.pluginmanager.register(Durations(), "durations-by-file")


def _do_nothing(_number: int, _frame: object) -> None:
    """For this process the signal is ignored as before."""
