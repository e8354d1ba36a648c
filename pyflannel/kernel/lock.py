"""One daemon at a time: a lock for each subnet file, which the kernel takes from whoever dies.

The lock is `flock` on a file beside the one it protects (that one is replaced by every write, so
its inode is no place for a lock). The file stays behind: removing it would let a third process lock
a new file of that name while a second one still holds the removed one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.logs import get_logger

log = get_logger(__name__)

SUFFIX: Final = ".lock"


class SingleInstance:
    """Held from `acquire` to `release`, or as a context manager.

    Args:
        subnet_file: what only one daemon may write. Daemons with different files, in different
            network namespaces of one machine, do not disturb each other.
    """

    def __init__(self, subnet_file: str | os.PathLike[str]) -> None:
        self._subnet_file = Path(subnet_file)
        self._fd: int | None = None

    @property
    def path(self) -> Path:
        """The file that is locked; whoever holds it has written his process id into it."""
        return self._subnet_file.with_name(self._subnet_file.name + SUFFIX)

    def acquire(self) -> None:
        """Takes the lock, at once or not at all.

        Raises:
            DeviceUnavailable: another daemon has it, or the directory is read-only.
            NotPermitted: the directory may not be written.
            KernelError: anything else.
        """
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise self._refused("open", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            holder = _holder(fd)
            os.close(fd)
            raise self._refused("lock", error, holder) from error
        self._fd = fd

    def hold(self, stack: contextlib.AsyncExitStack) -> None:
        """Takes the lock until the stack is closed.

        A directory that cannot be written is no reason to stop: packets can flow all the same.

        Raises:
            DeviceUnavailable: another daemon has it.
        """
        try:
            self.acquire()
        except KernelError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise
            log.warning(f"cannot tell whether another daemon runs here: {error}")
        else:
            stack.callback(self.release)

    def release(self) -> None:
        """Gives the lock back. May be called twice."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _refused(self, operation: str, error: OSError, holder: str = "") -> KernelError:
        code = error.errno or 0
        subject = str(self.path)
        if code == errno.EWOULDBLOCK:
            who = f"another pyflanneld (pid {holder})" if holder else "another pyflanneld"
            hint = f"{who} runs with subnet file {self._subnet_file}"
            return DeviceUnavailable(operation, subject, code, hint)
        if code == errno.EROFS:
            return DeviceUnavailable(operation, subject, code, "the file system is read-only")
        if code in (errno.EACCES, errno.EPERM):
            return NotPermitted(operation, subject, code, "is this root?")
        return KernelError(operation, subject, code)


def _holder(fd: int) -> str:
    """The process id in the lock file, "" if there is none."""
    with contextlib.suppress(OSError):
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        if text.isdigit():
            return text
    return ""


def is_held(subnet_file: str | os.PathLike[str]) -> bool:
    """Whether a daemon with this subnet file lives. Needs no permission to write."""
    try:
        fd = os.open(SingleInstance(subnet_file).path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def upstream_daemons() -> list[int]:
    """Process ids of flannel's own daemon, `flanneld`, in our network namespace.

    It takes no lock that we could see; it is known by its name.
    """
    return _processes("flanneld")


def our_daemons() -> list[int]:
    """Process ids of `pyflanneld` in our network namespace, whatever their subnet files are."""
    return _processes("pyflanneld")


def _processes(name: str) -> list[int]:
    """Those of a name that share our network namespace, ourselves left out.

    Processes that go meanwhile, or that we may not look at, do not count.
    """
    found = []
    with contextlib.suppress(OSError):
        ours = Path("/proc/self/ns/net").stat().st_ino
        for directory in Path("/proc").iterdir():
            if directory.name.isdecimal() and int(directory.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if (directory / "comm").read_text() == f"{name}\n" and (
                        directory / "ns/net"
                    ).stat().st_ino == ours:
                        found.append(int(directory.name))
    return sorted(found)
