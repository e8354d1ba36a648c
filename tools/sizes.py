"""Finds modules and functions that have grown too long: `make check` runs it.

The limits are a little above what is longest now, so that nothing grows back unnoticed. A module
that reaches its limit has more than one subject: move one out. Lower a limit when the longest
becomes shorter. How long modules are is printed as well.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
READ: Final = ("pyflannel", "bench", "tools")
MODULE_LINES: Final = 640
FUNCTION_LINES: Final = 95
LISTS: Final = {"pyflannel/lab/faults.py:_faults"}
"""Functions that are a list of values, and no longer to read for it."""


def modules(root: Path) -> Iterator[tuple[str, str]]:
    """The name of each module below `root`, and its text."""
    for directory in READ:
        for path in sorted((root / directory).rglob("*.py")):
            yield str(path.relative_to(root)), path.read_text()


def too_long(name: str, text: str) -> Iterator[str]:
    """What is too long in a module, a line for each."""
    lines = text.count("\n")
    if lines > MODULE_LINES:
        yield f"{name}: {lines} lines, at most {MODULE_LINES}: move one of its subjects out"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES and f"{name}:{node.name}" not in LISTS:
            yield f"{name}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}"


def summary(lengths: list[int]) -> str:
    """How long modules are: the median, the 90th percentile, the longest."""
    ninth = statistics.quantiles(lengths, n=10)[-1]
    return (
        f"{len(lengths)} modules: median {statistics.median(lengths):.0f} lines, "
        f"nine of ten below {ninth:.0f}, the longest {max(lengths)}"
    )


def main() -> int:
    """Prints what is too long; returns the exit code."""
    found = dict(modules(ROOT))
    problems = [problem for name, text in found.items() for problem in too_long(name, text)]
    print("\n".join([*problems, summary([text.count("\n") for text in found.values()])]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
