"""Reads the limits that hold for this process, and raises those that it needs and may raise."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
from pathlib import Path
from typing import Final

from pyflannel.core.limits import MIN_FILES, Limits

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")
_M_ARENA_MAX: Final = -8
"""`M_ARENA_MAX` of glibc's malloc.h."""


def read_limits(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> Limits:
    """The limits of this process; what cannot be read is none."""
    tasks, where = _tasks_left(root, own)
    return Limits(
        files=_soft(resource.RLIMIT_NOFILE),
        address_space=_soft(resource.RLIMIT_AS),
        tasks=tasks,
        tasks_where=where,
    )


def raise_files() -> None:
    """Raises a soft limit of descriptors that is too low, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MIN_FILES if hard == resource.RLIM_INFINITY else min(MIN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def share_one_heap() -> bool:
    """Has all threads allocate from one heap; whether this C library has more, and can be told.

    glibc gives each thread that allocates one of its own, which never shrinks: 2 MB with the few
    that a daemon has. What threads gain by that, not to wait for each other, the interpreter's lock
    takes away. To be called before there are threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, 1) == 1


def forbid_core_dumps() -> None:
    """Has the kernel write no core of this process and of its children, whatever ends them.

    systemd-coredump keeps to it too: it is told the limit (`%c` of core_pattern).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # The unit has set it, and forbids to set limits.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def raise_locked_memory() -> bool:
    """Lifts the limit of locked memory as far as it may be lifted; whether that was any further."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    as_allowed = (before[1], before[1])  # without CAP_SYS_RESOURCE
    for wanted in (no_limit, as_allowed):
        if wanted == before:
            return False
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, wanted)
            return True
    return False


def locked_memory() -> int | None:
    """Bytes of memory that this process may lock; `None` = no limit."""
    return _soft(resource.RLIMIT_MEMLOCK)


def linux_version(release: str = "") -> tuple[int, int]:
    """Major and minor version of the running kernel; (0, 0) if its release does not begin so.

    For messages and for what was measured. What a kernel can do is asked of the kernel:
    distributions carry features back.

    Args:
        release: as `uname -r` has it, if not that of this machine.
    """
    found = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _soft(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _tasks_left(root: Path, own: Path) -> tuple[int | None, str]:
    """How many tasks the narrowest control group above us still allows, and which one that is."""
    left: int | None = None
    narrowest = ""
    for base, path in _groups(root, own):
        group = base / path.lstrip("/")
        while group == base or base in group.parents:
            most, current = _number(group / "pids.max"), _number(group / "pids.current")
            if most is not None and current is not None and (left is None or most - current < left):
                left, narrowest = most - current, "/" + str(group.relative_to(base))
            group = group.parent
    return left, narrowest.replace("/.", "/")


def _groups(root: Path, own: Path) -> list[tuple[Path, str]]:
    """Where our control groups are: of version 2, and version 1's hierarchy of the controller."""
    try:
        lines = own.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found: list[tuple[Path, str]] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            found.append((root, path))
        elif "pids" in controllers.split(","):
            found.append((root / "pids", path))
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
