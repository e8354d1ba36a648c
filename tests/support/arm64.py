"""Programs for arm64, run by this machine: Debian's interpreter under QEMU's user-mode emulation.

Nothing is installed in the system for it: the interpreter's packages are fetched by an apt with
lists of its own, and unpacked into a tree below the cache folder; no script of theirs is run. QEMU
translates each system call, and this kernel answers it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.kernels.cache import cache_folder
from tools import debs

EMULATOR: Final = "qemu-aarch64"
PACKAGES: Final = ("python3-minimal", "libpython3-stdlib")


def tree() -> Path:
    """A tree with an interpreter for arm64; made when it is first asked for."""
    target = cache_folder() / f"arm64-{debs.release()}"
    if target.is_dir():
        return target
    half = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        for package in debs.fetch(PACKAGES, "arm64", half / "apt"):
            subprocess.run(["dpkg", "-x", package, half / "tree"], check=True)
        (half / "tree").rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def run_python(
    arguments: Sequence[str | Path],
    *,
    search: Sequence[Path],
    cwd: Path,
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Runs the emulated interpreter.

    Args:
        search: directories in which it looks for modules, first ones first.
        cwd: where it runs; with `-c` or `-m` it looks for modules there before all others.
    """
    there = tree()
    path = os.pathsep.join(map(str, search))
    return subprocess.run(
        [
            *(EMULATOR, "-L", there, "-E", f"PYTHONPATH={path}"),
            *(there / "usr/bin/python3", "-B", *arguments),
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
