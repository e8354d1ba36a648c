"""Text that a terminal, a log reader or a pager would obey."""

from __future__ import annotations

from typing import Final

HOSTILE: Final = (
    "\x1b[2J\x1b]0;owned\x07",  # ESC: clears the screen, names the window
    "\x9b31mred",  # C1: the same without ESC
    "gpj.\u202ecod",  # turns the direction of writing
    "a\u2066b\u2069",  # the same, isolated
    "first\nsecond",
    "back\rforth\b\b",
    "\u2028line",
    "\ud800",  # a lone surrogate, as JSON has it
    "\udcff",  # a byte that is no UTF-8, as file names have it
    "\x7f\x00",
    "\U000e0001tag",
)
"""One of each kind."""


def is_fit(text: str) -> bool:
    """Whether every line of a text is printable."""
    return all(line.isprintable() for line in text.split("\n"))
