"""The least of the machine's limits that a daemon can live with.

Below them a start fails somewhere, in a library as a rule, with a traceback, an abort or another
exit code than documented; so they are looked at before. Each floor is what a node with everything
switched on was measured to use, and half as much again.
"""

from __future__ import annotations

from typing import Final

from pyflannel.records import dataclass

MIN_FILES: Final = 64
"""Backend udp with three data paths' descriptors, etcd, health and status servers: 36; children
open a dozen for a moment."""
MIN_TASKS: Final = 24
"""Eight threads (etcd's four, the event loop's, the interpreter's), native's two, and children:
iptables and an extension's commands, eight at a time."""
MIN_ADDRESS_SPACE: Final = 768 << 20
"""510 MB at the peak, of which 60 are resident: each thread reserves a stack and an arena."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this process may have; `None` is no limit."""

    files: int | None = None
    """Descriptors (`RLIMIT_NOFILE`)."""
    address_space: int | None = None
    """Bytes (`RLIMIT_AS`)."""
    tasks: int | None = None
    """Processes and threads that may still be started, by `pids.max` of the narrowest group."""
    tasks_where: str = ""
    """The control group."""


def too_low(limits: Limits) -> str:
    """Which limit is too low, as a sentence with the way out; empty if all are enough."""
    if limits.files is not None and limits.files < MIN_FILES:
        return (
            f"the limit of open files is {limits.files}, and a node needs {MIN_FILES}: raise it "
            "(LimitNOFILE= in the unit, ulimit -n in a shell)"
        )
    if limits.address_space is not None and limits.address_space < MIN_ADDRESS_SPACE:
        return (
            f"the limit of the address space is {limits.address_space >> 20} MiB, and a node needs "
            f"{MIN_ADDRESS_SPACE >> 20}: raise it (LimitAS= in the unit, ulimit -v in a shell); to "
            "bound its memory use MemoryMax="
        )
    if limits.tasks is not None and limits.tasks < MIN_TASKS:
        return (
            f"control group {limits.tasks_where} allows {limits.tasks} more processes or threads, "
            f"and a node needs {MIN_TASKS}: raise it (TasksMax= in the unit, --pids-limit of a "
            "container)"
        )
    return ""
