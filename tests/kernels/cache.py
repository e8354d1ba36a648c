"""The cache folder, and running programs: what the rooms of the runner share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
"""The checkout."""


class KernelsError(Exception):
    """What keeps the runner from running: says what was tried, the answer, and the way out."""


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where Debian's packages come from."""

    main: str
    security: str = ""
    """Empty where the machine has no such source."""


def cache_folder() -> Path:
    """The folder for everything that is built outside the tree; `make clean` names the same one."""
    chosen = os.environ.get("PYFLANNEL_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pyflannel"


def parse_mirrors(text: str) -> Mirrors:
    """Reads what `tools/debian-mirror.sh` prints."""
    found = dict(line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return Mirrors(found["main"], found.get("security", ""))


def mirrors() -> Mirrors:
    """The mirrors of this machine."""
    return parse_mirrors(command(ROOT / "tools/debian-mirror.sh").stdout)


def say(text: str) -> None:
    """A line of progress."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def command(
    *words: str | Path, cwd: Path | None = None, timeout: float = 300.0, stdin: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end.

    Raises:
        KernelsError: if it is not there, fails or takes too long, with the end of what it printed.
    """
    argv = [str(word) for word in words]
    try:
        done = subprocess.run(
            argv, cwd=cwd, capture_output=True, timeout=timeout, check=False, input=stdin
        )
    except FileNotFoundError as error:
        raise KernelsError(f"{argv[0]}: not installed ({error})") from error
    except subprocess.TimeoutExpired as error:
        raise KernelsError(f"{' '.join(argv[:4])}: no end within {timeout:g} s") from error
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if done.returncode != 0:
        last = "\n".join((out + err).splitlines()[-15:])
        raise KernelsError(f"{' '.join(argv[:4])}: ended with {done.returncode}\n{last}")
    return subprocess.CompletedProcess(argv, done.returncode, out, err)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One runner at a time builds what is cached; others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
