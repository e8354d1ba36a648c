"""A pytest plugin: a test that leaves something behind fails.

Looked for: asyncio tasks, threads, descriptors, children, processes that a test's children left,
and network devices in the namespace of the tests. A test is looked at by itself. Where a fixture of
a class, a module or a package is alive, as a lab for a whole module is, what is left is looked for
when the fixture has ended.
"""

from __future__ import annotations

import asyncio.runners
import contextlib
import gc
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

MARK: Final = "PYFLANNEL_TESTS"
"""In the environment of everything that the tests start."""
GRACE_S: Final = 5.0
"""What was killed a moment ago may take this long to be gone on a busy machine."""
OF_MODULES: Final = frozenset(
    (
        "bond0",
        "bonding_masters",
        "tunl0",
        "gre0",
        "gretap0",
        "erspan0",
        "sit0",
        "ip6tnl0",
        "ip6gre0",
    )
)
"""What the kernel makes when it loads a module, in the first namespace as well."""
WIDE: Final = frozenset(("class", "module", "package"))


@dataclass(frozen=True)
class Seen:
    """What there is, as words for a report."""

    threads: frozenset[str]
    descriptors: frozenset[str]
    children: frozenset[str]
    processes: frozenset[str]
    devices: frozenset[str]

    def without(self, before: Seen) -> list[str]:
        """What has come since `before`."""
        return sorted(
            f"{kind[:-1]}: {what}"
            for kind in ("threads", "descriptors", "processes", "devices")
            for what in getattr(self, kind) - getattr(before, kind)
        ) + sorted(
            f"child: {what}" for what in self.children - before.children - self.processes
        )  # fmt: skip


def look(mark: str, *, processes: bool) -> Seen:
    """Everything of this process, and with `processes` what bears the mark and is not a child."""
    return Seen(
        frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate()),
        frozenset(_descriptors()),
        frozenset(_children()),
        frozenset(_marked(mark)) if processes else frozenset(),
        frozenset(entry.name for entry in Path("/sys/class/net").iterdir()) - OF_MODULES,
    )


def _descriptors() -> Generator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        # The listing's own.
        if not target.startswith("/proc/"):
            yield f"{entry.name} -> {target}"


def _children() -> Generator[str]:
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue
        for pid in pids:
            yield _described(pid)


def _marked(mark: str) -> Generator[str]:
    needle = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                yield _described(entry.name)
        except OSError:
            continue


def _described(pid: str) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        command = ""
    return f"{pid} {command[:120]}".strip()


class Leaks:
    """The plugin."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._wide: set[int] = set()
        self._before: Seen | None = None
        os.environ[MARK] = self._mark
        # Its first loop makes a pipe for the whole process, for signals.
        # Not where the interpreter is of another machine than the library (the wheels' tests).
        with contextlib.suppress(ImportError):
            import uvloop

            uvloop.new_event_loop().close()
        asyncio.runners._cancel_all_tasks = _complaining(asyncio.runners._cancel_all_tasks)  # type: ignore[attr-defined]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if fixturedef.scope in WIDE:
            self._wide.add(id(fixturedef))
        if fixturedef.scope != "session" or self._before is None:
            return (yield)
        former = self._look(request.node)
        try:
            return (yield)
        finally:
            self._before = _plus(self._before, self._look(request.node), former)

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        self._wide.discard(id(fixturedef))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        if self._before is None:
            self._before = self._look(item)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            before = self._before
            if not self._wide and before is not None:
                self._before = None
                self._judge(item, before)

    def _look(self, item: pytest.Item | pytest.Collector) -> Seen:
        return look(self._mark, processes=item.get_closest_marker("slow") is not None)

    def _judge(self, item: pytest.Item, before: Seen) -> None:
        left = self._look(item).without(before)
        if left:
            gc.collect()
        deadline = time.monotonic() + GRACE_S
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = self._look(item).without(before)
        if left:
            pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)


def _plus(base: Seen, now: Seen, former: Seen) -> Seen:
    """`base` and what has come between `former` and `now`."""
    names = ("threads", "descriptors", "children", "processes", "devices")
    return Seen(
        *(getattr(base, name) | (getattr(now, name) - getattr(former, name)) for name in names)
    )


def _complaining(
    cancel: Callable[[asyncio.AbstractEventLoop], None],
) -> Callable[[asyncio.AbstractEventLoop], None]:
    """`asyncio.run` cancels what is still running and says nothing."""

    def cancel_and_tell(loop: asyncio.AbstractEventLoop) -> None:
        left = [task for task in asyncio.all_tasks(loop) if not task.done() and not _closes(task)]
        cancel(loop)
        if left:
            raise AssertionError(f"left running: {', '.join(map(repr, left))}")

    return cancel_and_tell


def _closes(task: asyncio.Task[object]) -> bool:
    """Whether it is asyncio's own, for an asynchronous generator that was let go."""
    return type(task.get_coro()).__name__ == "async_generator_athrow"
