"""Where pinned programs and maps live, and whether that place is ours.

`/sys/fs/bpf` may be mounted with mode 1777. Then any local user can make `/sys/fs/bpf/pyflannel`
before we do: as a directory in which the user exchanges our maps, or as a symbolic link to a
directory whose files we would delete. A place that others can write is neither used nor cleaned.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

BPFFS: Final = "/sys/fs/bpf"
DIRECTORY: Final = "pyflannel"
"""Ours in it."""
_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def pin_directory(base: str = BPFFS) -> Path:
    """Where this network namespace's pins live."""
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    return Path(base) / DIRECTORY / str(namespace)


def obstacle(directory: Path) -> str:
    """Why a pin directory is not ours to use; empty if it is, or does not exist yet.

    Looked at are the directory, the one above it, and the mount point: everything in which somebody
    could exchange what we made.
    """
    try:
        base = directory.parent.parent.stat()
    except OSError as error:
        return str(error)
    if base.st_mode & _BY_OTHERS and not base.st_mode & stat.S_ISVTX:
        return f"everybody may rename what is in {directory.parent.parent}"
    for path in (directory.parent, directory):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return str(error)
        if not stat.S_ISDIR(found.st_mode):
            return f"{path} is not a directory"
        if found.st_uid not in {0, os.geteuid()}:
            return f"{path} belongs to user {found.st_uid}"
        if found.st_mode & _BY_OTHERS:
            return f"others may write to {path}"
    return ""


def make(directory: Path) -> str:
    """Makes a pin directory; why it cannot be used, empty if it can."""
    for path, mode in ((directory.parent, 0o755), (directory, 0o700)):
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            pass
        except OSError as error:
            return str(error)
    return obstacle(directory)


def is_there(directory: Path) -> bool:
    """Whether there is a pin directory of ours."""
    return not obstacle(directory) and os.path.isdir(directory)  # noqa: PTH112 - never raises


def remove(directory: Path) -> bool:
    """Removes a pin directory of ours with what is in it; whether there was one.

    Raises:
        OSError: something in it cannot be removed.
    """
    if not is_there(directory):
        return False
    for entry in directory.iterdir():
        entry.unlink(missing_ok=True)
    try:
        directory.rmdir()
    except OSError:
        return True  # somebody pinned meanwhile
    return True
