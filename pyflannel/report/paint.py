"""Colours for a page on a terminal. They repeat what the words say, never more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_GREEN: Final = "32"
_YELLOW: Final = "33"
_RED: Final = "31;1"
_PLACES: Final = re.compile(
    r"^(?P<severity>ERROR|WARNING)(?= PF\d)"
    r"|(?<=: )(?P<verdict>fine|works, with \d+ problems?|NOT READY)(?=;)"
    r"|(?<=  )(?P<state>up|down|small-only|failing|ignored)(?=  |$)",
    re.MULTILINE,
)
"""A problem's head, the verdict, a cell of the peer table."""
_TONES: Final[Mapping[str, str]] = {
    "ERROR": _RED,
    "WARNING": _YELLOW,
    "fine": _GREEN,
    "NOT READY": _RED,
    "up": _GREEN,
    "down": _RED,
}


def painted(page: str) -> str:
    """A page whose verdict, severities and states have their colour (ECMA-48 SGR)."""
    return _PLACES.sub(lambda found: _tone(found[0]), page)


def wanted(environ: Mapping[str, str], *, terminal: bool) -> bool:
    """Whether to paint: on a terminal that can, unless the user asks not to (no-color.org)."""
    return terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _tone(words: str) -> str:
    return f"\x1b[{_TONES.get(words, _YELLOW)}m{words}\x1b[0m"
