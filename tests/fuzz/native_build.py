"""Compiles the harnesses in C with the native sources that they exercise."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = Path(__file__).parents[2] / "pyflannel" / "datapath" / "native"
PURE = ("packet.c", "segment.c", "coalesce.c")
ENGINE = (*PURE, "table.c", "engine.c", "tx.c", "rx.c")


def clang() -> str:
    """The compiler with the sanitizers and libFuzzer."""
    for name in ("clang", "clang-19", "clang-16", "clang-15", "clang-14"):
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("clang is not installed")


def build(target: Path, harness: str, sources: tuple[str, ...], *flags: str) -> Path:
    """Compiles a harness with the sources it exercises; warnings are errors.

    Args:
        flags: for the compiler, after ours; or more of our own files.
    """
    subprocess.run(
        [
            clang(),
            *("-g", "-O1", "-std=gnu11", "-pthread", "-Wall", "-Wextra", "-Werror"),
            *flags,
            "-fno-sanitize-recover=all",
            f"-I{NATIVE}",
            "-o",
            target,
            HERE / harness,
            *(NATIVE / source for source in sources),
        ],
        check=True,
    )
    return target
