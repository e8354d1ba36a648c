"""Writes docs/backends.md from what the backends declare: tools/backends.py [FILE]."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.core.configparse import load_network_config
from pyflannel.core.kind import Kind, every
from pyflannel.core.settings import Setting

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "backends.md"
INTRODUCTION: Final = """\
# Backends

What `Backend` of the network config may be. Each backend declares this itself, in its own file;
`tools/backends.py` writes the tables, and `pyflannel config --help` shows the same for the node it
runs on, with the backends of other packages.

"""
BOTH: Final = {
    "EnableIPv6": True,
    "Network": "10.244.0.0/16",
    "IPv6Network": "fd00:10:244::/48",
}
"""A network of both families, to ask what devices are called in it."""
KIND_HEAD: Final = ("`Type`", "what it does", "families", "bytes added", "devices", "state")
SETTING_HEAD: Final = ("key", "default", "may be", "effect")


def document() -> str:
    """The whole page."""
    kinds = list(every(KINDS))
    lines = table(KIND_HEAD, map(kind_row, kinds))
    for kind in kinds:
        if settings := kind.settings.declared().values():
            lines += ["", f"## {kind.name}", "", *table(SETTING_HEAD, map(setting_row, settings))]
    return INTRODUCTION + "\n".join(lines) + "\n"


def kind_row(kind: Kind) -> Sequence[str]:
    """A kind in the first table."""
    config = load_network_config(json.dumps({**BOTH, "Backend": {"Type": kind.name}}), KINDS)
    overhead = [f"{count} over {family}" for family, count in kind.overhead.items() if count]
    names = kind.device_names(config).values()
    return (
        f"`{kind.name}`",
        kind.summary,
        ", ".join(map(str, kind.families)),
        ", ".join(overhead) or "none",
        ", ".join(f"`{name}`" for name in names) or "–",
        ", ".join(f"`{file.name}`" for file in kind.state_files) or "–",
    )


def setting_row(setting: Setting[object]) -> Sequence[str]:
    """A setting in the table of its kind."""
    return f"`{setting.key}`", f"`{json.dumps(setting.default)}`", setting.wanted, setting.effect


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    Path(sys.argv[1] if sys.argv[1:] else DOCUMENT).write_text(document())
