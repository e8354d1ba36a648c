"""Takes out of a lock file's conditions what holds wherever pyflannel runs.

tools/lockfile.py requirements.lock
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

ALWAYS: Final = (
    "implementation_name == 'cpython'",
    "sys_platform == 'linux'",
    "platform_python_implementation != 'PyPy'",
)


def simplified(condition: str) -> str:
    """A condition without its parts that are always true; empty if nothing is left."""
    for part in ALWAYS:
        condition = re.sub(rf" and {re.escape(part)}(?=$| |\))", "", condition)
        condition = re.sub(rf"(?:(?<=\()|^){re.escape(part)} and ", "", condition)
        condition = "" if condition == part else condition
    while (bare := re.sub(r"\((\w+ == '\w+')\)", r"\1", condition)) != condition:
        condition = bare
    if condition.startswith("(") and condition.endswith(")") and condition.count("(") == 1:
        condition = condition[1:-1]
    return condition


def main() -> None:
    """Entry point."""
    path = Path(sys.argv[1])
    lines = []
    for line in path.read_text().splitlines():
        requirement, separator, rest = line.partition(" ; ")
        if separator:
            condition = simplified(rest.removesuffix(" \\"))
            line = f"{requirement}{f' ; {condition}' if condition else ''} \\"  # noqa: PLW2901
        lines.append(line)
    path.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
