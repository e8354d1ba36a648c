"""Programs that tests build from Go modules, once, into a folder of their own."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def built(program: Path, build: Callable[[str], None], refuse: Callable[[str], Exception]) -> Path:
    """The program, built unless it is there already; several test runs may want it at once.

    Args:
        program: where it is to be.
        build: makes it there; is given the path of go.
        refuse: makes an exception of why it cannot be built.

    Raises:
        Exception: what `refuse` made, or what `build` raised.
    """
    if program.exists():
        return program
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise refuse("is built with go, which is not installed")
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            build(go)
    return program
