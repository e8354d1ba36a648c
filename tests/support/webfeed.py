"""`pyflannel web` over status files in place of daemons: python -m tests.support.webfeed FILE...

A file that is not there is a daemon that does not answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.web.address import parse
from pyflannel.web.run import run


def read(path: Path) -> Callable[[], dict[str, Any]]:
    """A question to a file."""

    def ask() -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError as error:
            hint = "is pyflanneld running?"
            raise DeviceUnavailable("connect to", str(path), error.errno or 0, hint) from error
        return status

    return ask


def say(url: str) -> None:
    """Says where the page is."""
    print(url, flush=True)


if __name__ == "__main__":
    files = [Path(each) for each in sys.argv[1:]]
    sys.exit(run(parse(":0"), {each.stem: read(each) for each in files}, say))
