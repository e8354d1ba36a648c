"""Every behaviour that `pyflannel/kernel/base.py` promises, on the fake and on the real kernel.

The latter under plain asyncio and under uvloop, in a namespace of the test's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.testing.fakenetlink import FakeNetlink
from tests.contract.netlink.world import OtherPrograms, World, build
from tests.support.coroutines import Main, plainly
from tests.support.netns import in_new_netns


@pytest.fixture(
    params=[
        "fake",
        pytest.param("kernel-asyncio", marks=[pytest.mark.root, pytest.mark.guest]),
        pytest.param("kernel-uvloop", marks=[pytest.mark.root, pytest.mark.guest]),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def runner(kind: str) -> Callable[[Main], None]:
    """A kernel's world is in a child process, with its loop."""
    if kind == "fake":
        return plainly
    run = asyncio.run if kind == "kernel-asyncio" else uvloop.run
    return lambda main: in_new_netns(lambda: run(main()))


@pytest.fixture
@asynccontextmanager
async def w(kind: str, runner: Callable[[Main], None]) -> AsyncIterator[World]:
    """A world of the kind that is tested."""
    netlink = FakeNetlink() if kind == "fake" else KernelNetlink()
    try:
        others = netlink if isinstance(netlink, FakeNetlink) else OtherPrograms()
        yield await build(netlink, others)
    finally:
        await netlink.close()
