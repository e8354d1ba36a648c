"""Network namespaces: which one we are in, and going into another one."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted

_CLONE_NEWNET: Final = 0x40000000
"""linux/sched.h; `os.setns` and `os.unshare` came with Python 3.12, so libc is called."""
_NAMED: Final = Path("/run/netns")
"""Where `ip netns add` puts namespaces."""


def current() -> int:
    """The inode of the calling thread's network namespace, which identifies it while it exists."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def enter(target: str | int) -> None:
    """Moves the calling thread into a network namespace.

    Sockets that exist stay where they were made. Threads started before stay, too, so enter before
    you start any.

    Args:
        target: a path (`/run/netns/a`, `/proc/4711/ns/net`), a name of `ip netns`, or the id of a
            process that is there.

    Raises:
        DeviceUnavailable: there is no such namespace or process.
        NotPermitted: CAP_SYS_ADMIN is missing.
        KernelError: anything else.
    """
    path = _path(target)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _refused("open", path, error.errno or 0) from error
    try:
        _call("setns", path, fd, _CLONE_NEWNET)
    finally:
        os.close(fd)


def enter_new() -> None:
    """Moves the calling thread into a new, empty network namespace.

    Raises:
        NotPermitted: CAP_SYS_ADMIN is missing.
        KernelError: anything else.
    """
    _call("unshare", Path("new network namespace"), _CLONE_NEWNET)


def _path(target: str | int) -> Path:
    if isinstance(target, int):
        return Path(f"/proc/{target}/ns/net")
    return Path(target) if "/" in target else _NAMED / target


def _call(function: str, subject: Path, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        raise _refused(function, subject, ctypes.get_errno())


def _refused(operation: str, subject: Path, code: int) -> KernelError:
    if code in (errno.EPERM, errno.EACCES):
        return NotPermitted(operation, str(subject), code, "needs CAP_SYS_ADMIN")
    if code in (errno.ENOENT, errno.ESRCH):
        return DeviceUnavailable(operation, str(subject), code, "no such namespace")
    return KernelError(operation, str(subject), code)
