"""A pytest plugin: a test may be a coroutine function.

It has an event loop of its own. What a fixture gives as an asynchronous context manager is entered
in the task of the test; the test gets what comes of that. Such a fixture is a generator with two
decorators, `pytest.fixture` above `contextlib.asynccontextmanager`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar, cast

import pytest
import uvloop

Main = Callable[[], Coroutine[Any, Any, None]]


Test = TypeVar("Test", bound=Callable[..., Any])


def on_both_loops(test: Test) -> Test:
    """Marks a test to run under asyncio's own loop and under uvloop's."""
    loops = pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    return pytest.mark.usefixtures("runner")(loops(test))


@pytest.fixture
def loop() -> Callable[..., Any]:
    """What runs a coroutine: asyncio's own loop, unless `on_both_loops` says otherwise."""
    return asyncio.run


@pytest.fixture
def runner(loop: Callable[..., Any]) -> Callable[[Main], None]:
    """Runs a test under `loop`; a module may have its own."""
    return lambda main: loop(main())


def plainly(main: Main) -> None:
    """Runs a test in this process, under asyncio's own loop."""
    asyncio.run(main())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """The fixture `runner`, where a test has one, runs it elsewhere or under another loop."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}

    async def main() -> None:
        async with AsyncExitStack() as stack:
            for name, value in given.items():
                if isinstance(value, AbstractAsyncContextManager):
                    given[name] = await stack.enter_async_context(value)
            await test(**given)

    run: Callable[[Main], None] = cast("Any", pyfuncitem.funcargs.get("runner", plainly))
    run(main)
    return True
