"""Runs the test suite in two halves at a time.

    python tools/runtests.py [PYTEST-ARGUMENT...]

Tests of integration and interop wait for daemons and for time to pass. Beside them run the others:
unit, contract and fuzz tests keep one CPU busy in namespaces of their own, and give way; then come
the booted nodes. What is printed is pytest's own output, one half after the other, and a last line
like pytest's with the sums. With a path among the arguments there is one run, of that path.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
BESIDE: Final = ("tests/unit", "tests/contract", "tests/fuzz", "tests/system")
WAITS: Final = ("tests/integration", "tests/interop")
NICE: Final = 5
"""Of the half beside, so that it takes no time away from what is measured in the other."""
_COUNT: Final = re.compile(r"(\d+) (failed|passed|skipped|xfailed|xpassed|deselected|errors?)\b")


def main(arguments: list[str]) -> int:
    """Runs the suite; returns pytest's exit code, the worse of two."""
    pytest = [sys.executable, "-m", "pytest"]
    if any(
        not word.startswith("-") and (ROOT / word.partition("::")[0]).exists() for word in arguments
    ):
        return subprocess.run([*pytest, *arguments], cwd=ROOT, check=False).returncode
    begin = time.monotonic()
    # No cache: both would write it.
    common = ["-p", "no:cacheprovider", "--color=no", *arguments]
    with tempfile.TemporaryFile("w+") as kept:
        beside = subprocess.Popen(
            ["nice", "-n", str(NICE), *pytest, *BESIDE, *common],
            cwd=ROOT, stdout=kept, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            last, code = _shown([*pytest, *WAITS, *common])
            codes = [code, beside.wait()]
        finally:
            if beside.poll() is None:
                beside.terminate()
                beside.wait()
        kept.seek(0)
        text = kept.read()
    print(text, end="")
    sums = _counts(last) + _counts(text.rstrip().rpartition("\n")[2])
    words = ", ".join(f"{number} {what}" for what, number in sums.items())
    print(f"==== {words} in {time.monotonic() - begin:.2f}s ====")
    return max(codes)


def _shown(command: list[str]) -> tuple[str, int]:
    """Runs a command, shows what it prints, and gives its last line and its exit code."""
    last = ""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            last = line
    return last, running.returncode


def _counts(line: str) -> Counter[str]:
    return Counter(
        {
            what.rstrip("s") if what == "errors" else what: int(number)
            for number, what in _COUNT.findall(line)
        }
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(sys.argv[1:]))
