"""The daemon with a clock on its event loop: `python -m tests.support.turns FILE [FLAG...]`.

Every turn of the loop that takes `WORTH_S` of CPU time or more is a line of the file: the turn's
seconds, those of its longest callback, of the garbage collector and of the kernel, and which one
that callback was. CPU time does not depend on who else uses the machine. Imports are left out: they
cost a start the same with any content of the store. uvloop's turns cannot be looked into, so the
daemon runs on asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

WORTH_S: Final = 0.01


def watch(path: str) -> None:
    """Writes the long turns of all loops of this process to a file."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.set_inheritable(out, False)
    longest, collecting, importing, depth = (0.0, ""), 0.0, 0.0, 0
    bootstrap: Any = importlib._bootstrap  # type: ignore[attr-defined]
    load: Callable[[str, object], ModuleType] = bootstrap._find_and_load
    run, turn = asyncio.events.Handle._run, asyncio.base_events.BaseEventLoop._run_once

    def timed_run(handle: asyncio.Handle) -> None:
        nonlocal longest
        before = time.thread_time()
        run(handle)
        took = time.thread_time() - before
        if took > longest[0] or not longest[1]:
            longest = (took, describe(handle) if took >= WORTH_S else "-")

    def collected(phase: str, _info: dict[str, int]) -> None:
        nonlocal collecting
        collecting += time.thread_time() * (-1 if phase == "start" else 1)

    def timed_turn(loop: asyncio.BaseEventLoop) -> None:
        nonlocal longest, collecting, importing
        longest, collecting, importing = (0.0, ""), 0.0, 0.0
        before, kernel = time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_stime
        turn(loop)
        took = time.thread_time() - before - importing
        kernel = resource.getrusage(resource.RUSAGE_THREAD).ru_stime - kernel
        if took >= WORTH_S:
            text = f"{took:.4f} {longest[0]:.4f} {collecting:.4f} {kernel:.4f} {longest[1]}\n"
            os.write(out, text.encode())

    def timed_import(name: str, importer: object) -> ModuleType:
        nonlocal importing, depth
        before, depth = time.thread_time(), depth + 1
        try:
            return load(name, importer)
        finally:
            depth -= 1
            if not depth and threading.current_thread() is threading.main_thread():
                importing += time.thread_time() - before

    gc.callbacks.append(collected)
    bootstrap._find_and_load = timed_import
    asyncio.events.Handle._run = timed_run  # type: ignore[method-assign]
    asyncio.base_events.BaseEventLoop._run_once = timed_turn  # type: ignore[method-assign]


def describe(handle: asyncio.Handle) -> str:
    """The task of a callback and where it stands now, or the callback."""
    callback: Any = handle._callback
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle)
    places: list[str] = []
    inner: Any = task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        if frame is not None:
            places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return f"{task.get_name()}: {' > '.join(places[-4:])}"


def read(path: Path) -> list[tuple[float, str]]:
    """The long turns so far: CPU seconds, and what the longest callback was."""
    found = []
    for line in path.read_text().splitlines():
        took, _, callback = line.partition(" ")
        found.append((float(took), callback))
    return found


def main() -> None:
    """Runs the daemon."""
    sys.modules["uvloop"] = None  # type: ignore[assignment] - an ImportError
    watch(sys.argv.pop(1))
    sys.argv[0] = "pyflanneld"
    from pyflannel.cli import pyflanneld

    pyflanneld.main()


if __name__ == "__main__":
    main()
