"""A terminal as a picture: text with its colours, as SVG.

Every run of text has its width, so that columns stay aligned with any fixed-width font. The picture
loads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Final

COLUMN: Final = 8.4
"""Units per column: about 0.6 of the font's size, as fixed-width fonts have it."""
LINE: Final = 18
MARGIN: Final = 16
COLUMNS: Final = 80
_CODE: Final = re.compile("\x1b\\[([0-9;]*)m")
CLASSES: Final = {"0": "", "1": "b", "2": "d", "36": "c", "32;1": "g", "31;1": "r"}
"""The known codes (ECMA-48 SGR); others are shown plain."""
STYLE: Final = (
    "rect{fill:#1c2128}"
    "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
    "fill:#d5dbe2;white-space:pre}"
    ".b{font-weight:bold;fill:#fff}.d{fill:#9aa4b0}.c{fill:#6cc7e0}"
    ".g{font-weight:bold;fill:#7ee787}.r{font-weight:bold;fill:#ff9b92}"
)


def render(text: str, title: str) -> str:
    """The picture of a screen.

    Args:
        text: lines, with colours as a terminal gets them.
        title: for screen readers.
    """
    lines = text.strip("\n").split("\n")
    columns = max([COLUMNS, *(len(_CODE.sub("", line)) for line in lines)])
    width, height = round(columns * COLUMN + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    rows = "".join(_row(line, number) for number, line in enumerate(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}"><title>{escape(title)}</title>'
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" rx="8"/>\n'
        f"{rows}</svg>\n"
    )


def _row(line: str, number: int) -> str:
    y = MARGIN + number * LINE + 13  # the base line of a font of 14
    spans = "".join(
        f'<tspan x="{MARGIN + column * COLUMN:.1f}" textLength="{len(text) * COLUMN:.1f}"'
        f"{_class(code)}>{escape(text, quote=False)}</tspan>"
        for column, text, code in runs(line)
    )
    return f'<text y="{y}" xml:space="preserve">{spans}</text>\n' if spans else ""


def _class(code: str) -> str:
    name = CLASSES.get(code, "")
    return f' class="{name}"' if name else ""


def runs(line: str) -> Iterator[tuple[int, str, str]]:
    """The parts of a line: the column where each begins, its text, and its code."""
    column, code = 0, ""
    for at, part in enumerate(_CODE.split(line)):
        if at % 2:
            code = "" if part in {"", "0"} else part
            continue
        # A wide gap between columns is not drawn.
        for piece in re.finditer(r"\S+(?: {1,2}\S+)*", part):
            yield column + piece.start(), piece[0], code
        column += len(part)
