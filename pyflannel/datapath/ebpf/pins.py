"""Where pinned programs and maps live, and whether that place is ours.

`/sys/fs/bpf` may be mounted with mode 1777. Then any local user can make `/sys/fs/bpf/pyflannel`
before we do: as a directory in which to replace our maps, or as a symbolic link to a directory
whose files we would delete. So a place that others can write to is neither used nor cleaned.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from pathlib import Path
from typing import Final

from pyflannel.datapath.ebpf import bpf

BPFFS: Final = "/sys/fs/bpf"
DIRECTORY: Final = "pyflannel"
"""Ours in it."""
BPF_FS_MAGIC: Final = 0xCAFE4A11
"""linux/magic.h."""
_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def is_bpffs(path: str) -> bool:
    """Whether a BPF file system that we may write to is mounted there.

    In the unit's sandbox it is our directory in it alone.
    """
    own = Path(path, DIRECTORY)
    return _is_writable_bpffs(str(own) if own.is_dir() else path)


def _is_writable_bpffs(path: str) -> bool:
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(path.encode(), buffer) != 0:
        return False
    (kind,) = struct.unpack_from("=l", buffer.raw)
    return kind & 0xFFFFFFFF == BPF_FS_MAGIC and os.access(path, os.W_OK)


def pin_directory(base: str = BPFFS) -> Path:
    """Where this network namespace's pins live."""
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    return Path(base) / DIRECTORY / str(namespace)


def obstacle(directory: Path) -> str:
    """Why a pin directory is not ours to use; empty if it is, or does not exist yet.

    This checks the directory, its parent and the mount point: all places where a user could replace
    what we made.
    """
    try:
        base = directory.parent.parent.stat()
    except OSError as error:
        return str(error)
    if base.st_mode & _BY_OTHERS and not base.st_mode & stat.S_ISVTX:
        return f"any user may rename what is in {directory.parent.parent}"
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


def keep_pinned(fd: int, path: Path) -> bool:
    """Pins a map, program or link under a path of ours, unless it is pinned; whether it was not.

    Raises:
        KernelError, OSError: it cannot be pinned.
    """
    there = bpf.get_pinned(str(path))
    if there is not None:
        try:
            if bpf.object_id(there) == bpf.object_id(fd):
                return False
        finally:
            os.close(there)
        path.unlink()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    bpf.pin(fd, str(path))
    return True


def remove(directory: Path) -> bool:
    """Removes a pin directory of ours with its content; whether there was one.

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
        return True  # another process pinned something meanwhile
    return True
