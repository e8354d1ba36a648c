"""Runs the commands that a document shows, and compares what they print with what it shows.

In blocks fenced as `console`, a line `HOST# COMMAND` is a command for that host, run by a shell of
its own with `-e`; lines that begin with `> ` belong to the command before them. The lines behind it
are what it prints. In them `...` stands for any text, of several lines if it is a line of its own;
how much blank there is between two words does not matter. A command without such lines may print
what it likes. A command that ends with another code than 0 fails.

`HOST# NAME=$(COMMAND)` gives a variable to all later commands, of other hosts as well: the reader
would type the value.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_FENCE: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT: Final = re.compile(r"(\w+)=\$\((.*)\)")
_PROMPT: Final = re.compile(r"^(\w+)# (.*)$")

Shell = Callable[[str], str]
"""Runs a script and gives what it printed; raises if that fails."""


@dataclass
class Step:
    """One command of a document."""

    host: str
    script: str
    expected: list[str] = field(default_factory=list)


def steps(text: str) -> Iterator[Step]:
    """The commands of a document, in order."""
    for block in _FENCE.findall(text):
        step: Step | None = None
        for line in block.splitlines():
            if found := _PROMPT.match(line):
                if step is not None:
                    yield step
                step = Step(*found.groups())
            elif step is None:
                raise ValueError(f"a console block begins with {line!r}, not with a prompt")
            elif line.startswith("> ") or line == ">":
                step.script += "\n" + line[2:]
            else:
                step.expected.append(line)
        if step is not None:
            yield step


def matches(expected: list[str], printed: str) -> bool:
    """Whether that is what the document shows."""
    pattern = ""
    for line in expected:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            words = [re.escape(word).replace(r"\.\.\.", ".*") for word in line.split()]
            pattern += r"[ \t]*" + r"[ \t]+".join(words) + r"[ \t]*\n"
    return (
        re.fullmatch(pattern, printed if printed.endswith("\n") or not printed else printed + "\n")
        is not None
    )


def follow(path: Path, hosts: Mapping[str, Shell], tell: Callable[[str], None] = print) -> int:
    """Runs all commands of a document; returns how many there were.

    Raises:
        AssertionError: something else was printed than it shows.
    """
    count = 0
    variables: dict[str, str] = {}
    for step in steps(path.read_text()):
        count += 1
        tell(f"{step.host}# " + step.script.replace("\n", "\n> "))
        assigned = _ASSIGNMENT.fullmatch(step.script)
        script = assigned[2] if assigned else step.script
        known = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
        printed = hosts[step.host](known + script)
        if assigned:
            variables[assigned[1]] = printed.strip()
            continue
        tell(printed.rstrip("\n"))
        if step.expected and not matches(step.expected, printed):
            shown = "\n".join(step.expected)
            raise AssertionError(
                f"{path.name}: {step.host}# {step.script}\nis shown to print\n{shown}\n"
                f"but printed\n{printed}"
            )
    return count
