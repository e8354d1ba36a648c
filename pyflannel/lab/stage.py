"""The demo's output: headlines with times, commands, their output; in colour on a terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from pyflannel.lab import svg
from pyflannel.lab.spaces import Space

WIDTH: Final = 79
"""Columns: one less than a terminal has, because some wrap in the last one."""

INDENT: Final = "   "

_CODES: Final = re.compile("\x1b\\[[0-9;]*m")


class Stage:
    """Prints the demo: headlines with times, commands, output; colours only on a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: list[str] = []
        self._colors = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colors = self._colors and "NO_COLOR" not in os.environ
        self._number = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A headline that ends with the time of the enclosed work; its output follows."""
        self._number += 1
        text = f"{self._number}  {title}"
        head = f"\n{self._paint(text, '1')}"
        # Without a terminal no user watches, and a split headline is hard to read in a file.
        if self._colors:
            self._write(head)
        begin = time.monotonic()
        yield
        took = f"{time.monotonic() - begin:.2f} s"
        gap = " " * max(1, WIDTH - len(text) - len(took))
        self._write(f"{'' if self._colors else head}{gap}{self._paint(took, '2')}\n")

    def command(self, where: str, command: str) -> None:
        """A command, as typed at a prompt."""
        prompt = f"{where}$"
        first, *more = folded(command, WIDTH - len(INDENT) - len(prompt) - 1)
        self.line(f"{INDENT}{self._paint(prompt, '2')} {self._paint(first, '36')}")
        for text in more:
            self.line(f"{INDENT}{' ' * len(prompt)} {self._paint(text, '36')}")

    def output(self, lines: Sequence[str]) -> None:
        """What a command printed."""
        for line in lines:
            self.line(f"{INDENT}{line}".rstrip())

    def line(self, text: str = "") -> None:
        """One line as it is."""
        self._write(text + "\n")

    def verdict(self, text: str, *, good: bool) -> None:
        """The last word."""
        self.line("\n" + self._paint(text, "32;1" if good else "31;1"))

    def picture(self) -> str:
        """The output so far, as SVG."""
        return svg.render("".join(self._shown), "What pyflannel lab demo prints")

    def _write(self, text: str) -> None:
        self._shown.append(text)
        self._out.write(text if self._colors else _CODES.sub("", text))
        self._out.flush()

    @staticmethod
    def _paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m"


def folded(command: str, width: int) -> list[str]:
    """A command in lines of at most `width` columns, cut at blanks.

    Each line but the last ends with a backslash, so that the command can be pasted.
    """
    lines = [""]
    for word in command.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if len(longer) > width - 2 and lines[-1]:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] = longer
    return lines


def pyflannel_says(
    space: Space, arguments: Sequence[str], *, stdin: str = "", check: bool = True
) -> list[str]:
    """The output of our command there, by lines.

    Args:
        space: where it runs.
        arguments: behind `pyflannel`.
        stdin: for it.
        check: whether any other exit code than 0 is an error.
    """
    command = [sys.executable, "-m", "pyflannel.cli.pyflannel", *arguments]
    return space.run(command, stdin=stdin, check=check).stdout.splitlines()
