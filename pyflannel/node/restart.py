"""Whether a stop that was asked for is one half of a restart.

A node that gives its subnet back at its end must not do so when its unit is restarted (for an
upgrade, say): docker and the containers keep the former subnet. The signal is the same in both
cases, so the service manager is asked which job it is at. Without a service manager a stop is a
stop. One that does not answer counts as a restart, and the lease ends by itself.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from pyflannel.core.errors import CommandError
from pyflannel.kernel.process import run

ANSWER_S: Final = 0.5
"""systemctl answers within 20 ms; of the 1.5 s that an orderly end may take."""
COMMAND: Final = ("systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager")

Jobs = Callable[[], Awaitable[str]]
"""What `COMMAND` prints. Raises `CommandError`."""


async def list_jobs() -> str:
    """The real `Jobs`."""
    done = await run(COMMAND, timeout_s=ANSWER_S)
    if done.returncode:
        raise CommandError(f"{' '.join(COMMAND)}: exit status {done.returncode}")
    return done.stdout.decode(errors="replace")


def own_unit(cgroups: str) -> str:
    """The unit that a process runs in, by its `/proc/PID/cgroup`; empty if it is no service."""
    for line in cgroups.splitlines():
        parts = [part for part in line.rpartition(":")[2].split("/") if part.endswith(".service")]
        if parts:
            return parts[-1]
    return ""


async def is_restart(
    environ: Mapping[str, str] = os.environ,
    jobs: Jobs = list_jobs,
    cgroups: Path = Path("/proc/self/cgroup"),
) -> bool:
    """Whether the service manager stops us only to start us again, or may do so."""
    if "INVOCATION_ID" not in environ:
        return False
    try:
        unit = own_unit(cgroups.read_text(errors="replace"))
        listed = await jobs()
    except (OSError, CommandError):
        return True
    # JOB UNIT TYPE STATE; systemd lists a restart as `restart` until the start of it is due.
    rows = [words for line in listed.splitlines() if len(words := line.split()) >= 4]
    kinds = [words[2] for words in rows if words[1] == unit]
    return not kinds or any(kind != "stop" for kind in kinds)
