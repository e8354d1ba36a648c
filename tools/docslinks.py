"""A hook of mkdocs: documents that are named in the text become links on the site.

In the source tree a page is named as `docs/install.md`, because that is where it is. Named alike
but not there is a dead link, and ends the build. What is named outside of `docs/` stays as it is.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
_NAMED: Final = re.compile(r"(?<!\[)`docs/([\w./-]+\.(?:md|json|svg))`")
_FENCED: Final = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:  # noqa: ANN401
    """Called by mkdocs for each page."""
    return linked(markdown, page.file.src_uri)


def linked(text: str, source: str) -> str:
    """The text with links.

    Args:
        text: of a page.
        source: where it is, below docs/.
    """

    def link(found: re.Match[str]) -> str:
        target = os.path.relpath(found[1], PurePosixPath(source).parent)
        return f"[{found[0]}]({target})"

    parts = _FENCED.split(text)
    return "".join(part if at % 2 else _NAMED.sub(link, part) for at, part in enumerate(parts))


def named(text: str) -> Iterator[str]:
    """The documents that a page names, below docs/."""
    for part in _FENCED.split(text)[::2]:
        yield from _NAMED.findall(part)
