"""What docker's daemon lets be said about packets from other nodes to a container's own address.

Since version 28 it drops them in `raw PREROUTING`, before any rule of others. How that is switched
off depends on the release, and one that does not know the option refuses to start with it. So the
program itself is asked, by looking for the option's name in it: that works for the tree of another
machine too, and runs nothing.
"""

from __future__ import annotations

import enum
import mmap
from pathlib import Path
from typing import Final

FLAG: Final = "allow-direct-routing"
"""dockerd's option since 28.2, also a key of daemon.json."""
VARIABLE: Final = "DOCKER_INSECURE_NO_IPTABLES_RAW"
"""A variable of dockerd's environment since 28.0.2, for releases without the option."""
_PREFIXES: Final = "-@:+!|"
"""What may stand before the program in `ExecStart=` (systemd.service(5), "Command lines")."""


class Direct(enum.Enum):
    """How a dockerd is told to let other nodes' packets through."""

    NOTHING = "nothing"
    """It drops none (before 28), or cannot be told (28.0.0 and 28.0.1)."""
    VARIABLE = "variable"
    FLAG = "flag"


def program(command_line: str) -> str:
    """The path of the program that a command line of a unit runs; empty if there is none."""
    words = command_line.split(maxsplit=1)
    return words[0].lstrip(_PREFIXES) if words else ""


def direct_routing(root: Path, command_line: str) -> Direct:
    """What the dockerd of a unit understands; `NOTHING` if it cannot be read.

    Args:
        root: of the tree that it is in.
        command_line: the unit's `ExecStart=`.
    """
    path = root / program(command_line).lstrip("/")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if text.find(FLAG.encode()) >= 0:
                return Direct.FLAG
            if text.find(VARIABLE.encode()) >= 0:
                return Direct.VARIABLE
    except (OSError, ValueError):  # no such file, a directory, an empty file
        pass
    return Direct.NOTHING
