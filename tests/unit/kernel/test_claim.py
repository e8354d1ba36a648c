"""Who keeps a device: one daemon at a time, and no other user can pretend to."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

import pytest

from pyflannel.core.errors import EXIT_UNAVAILABLE, DeviceUnavailable
from pyflannel.kernel import claim
from pyflannel.kernel.claim import PREFIX, DeviceClaims, Holder, find_holder

DEVICE = f"flannel.test{os.getpid()}"
"""A name in the network namespace that other test runs do not use."""


@dataclass
class Pair:
    first: DeviceClaims
    second: DeviceClaims


@pytest.fixture
@asynccontextmanager
async def daemons() -> AsyncIterator[Pair]:
    """Two daemons' claims."""
    with closing(DeviceClaims()) as first, closing(DeviceClaims()) as second:
        yield Pair(first, second)


async def test_the_second_is_refused_with_the_first_ones_name_until_that_is_gone(daemons: Pair):
    daemons.first.take(DEVICE)
    with pytest.raises(DeviceUnavailable) as refused:
        daemons.second.take(DEVICE)
    assert refused.value.exit_code == EXIT_UNAVAILABLE
    assert f"(pid {os.getpid()}) keeps this device" in str(refused.value)
    assert "VNI" in str(refused.value)
    daemons.second.take(f"{DEVICE}2")
    daemons.first.take(DEVICE)  # held already
    daemons.first.close()
    daemons.second.take(DEVICE)
    assert find_holder(DEVICE) == Holder(os.getpid(), os.geteuid())


async def test_any_number_may_ask_and_each_is_answered(daemons: Pair):
    """More than can wait to be accepted (4096, or 128): a unit that is started again and again."""
    daemons.first.take(DEVICE)
    for _ in range(socket.SOMAXCONN + 100):
        assert find_holder(DEVICE) is not None
        await asyncio.sleep(0)


async def test_a_name_that_another_user_holds_keeps_no_daemon_from_starting(
    daemons, monkeypatch, caplog
):
    daemons.first.take(DEVICE)
    monkeypatch.setattr(claim, "find_holder", lambda _device: Holder(os.getpid(), 65534))
    daemons.second.take(DEVICE)
    daemons.second.take(DEVICE)
    (record,) = [r for r in caplog.records if "another daemon keeps" in r.getMessage()]
    assert "user 65534" in str(vars(record))


async def test_a_name_that_does_not_answer_keeps_no_daemon_from_starting(daemons, monkeypatch):
    """Any user may bind one and never listen."""
    monkeypatch.setattr(claim, "PAUSE_S", 0.0)

    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(PREFIX + DEVICE)
        daemons.first.take(DEVICE)
