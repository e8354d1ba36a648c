"""One daemon at a time: a lock for each environment file, which the kernel takes from who dies.

The lock is `flock` on a file beside the one it protects (that one is replaced by every write, so
its inode is no place for a lock). The holder's process id stands in it while it is held.

flock(2) asks for no more than an open descriptor, so who may read the file may lock it. Therefore
it is 0600. Earlier releases made it 0644; such a file may be open in any process, and is replaced:
a successor `.new` is locked first and then renamed over it. A daemon that has locked a file looks
whether it is still the one at the path, so there is one holder at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.logs import get_logger

log = get_logger(__name__)

SUFFIX: Final = ".lock"
SUCCESSOR: Final = ".new"
MODE: Final = 0o600
TRIES: Final = 5
"""How often a lock is tried before it counts as held by a daemon."""
PAUSE_S: Final = 0.02
"""Between two tries. `is_held` and a daemon that ends hold it for microseconds."""
_LOCKS: Final = Path("/proc/locks")
_CONTENT: Final = re.compile(r"(?:[0-9]{1,19}\n?)?", re.ASCII)
"""What stands in a lock file of ours: nothing, or a process id."""


class SingleInstance:
    """Held from `acquire` to `release`, or as a context manager.

    Args:
        subnet_file: what only one daemon may write. Daemons with different files, in different
            network namespaces of one machine, do not disturb each other.
        flag: the option that names the file, for messages.
    """

    def __init__(self, subnet_file: str | os.PathLike[str], *, flag: str = "--subnet-file") -> None:
        self.subnet_file = Path(subnet_file)
        self._flag = flag
        self._fd: int | None = None

    @property
    def path(self) -> Path:
        """The file that is locked; its holder has written its process id into it."""
        return self.subnet_file.with_name(self.subnet_file.name + SUFFIX)

    def acquire(self) -> None:
        """Takes the lock, within 0.1 s or not at all. Blocks so long.

        Raises:
            DeviceUnavailable: another daemon has it, or the directory is read-only.
            NotPermitted: the directory may not be written.
            KernelError: anything else; above all, that the file is not a lock of ours.
        """
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            for number in range(1, TRIES + 1):
                if self._take(last=number == TRIES):
                    return
                time.sleep(PAUSE_S)
        except OSError as error:
            raise self._refused("open", error) from error
        raise self._held("")  # others replaced the file each time, so they are starting too

    def _take(self, *, last: bool) -> bool:
        """One try. False if another one may succeed.

        Raises:
            KernelError: `last`, and it is held.
            OSError: the file cannot be opened.
        """
        fd, loose = self._open(self.path)
        try:
            locked = _try_lock(fd)
            if not locked and last and not (loose and not _holder(fd)):
                raise self._held(_holder(fd))
            if loose and (locked or last):
                # No daemon holds it: we do, or a process whose id is not in it.
                former, (fd, locked) = fd, self._replace()
                os.close(former)
            if not locked or not _is_at(fd, self.path):
                return False
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            self._fd, fd = fd, -1
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    def _open(self, path: Path) -> tuple[int, bool]:
        """The file as a descriptor, and whether others may have it open too.

        Raises:
            OSError: it cannot be opened.
            KernelError: it is no lock file of ours.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags, MODE)
        try:
            found = os.fstat(fd)
            problem = _not_ours(fd, found)
        except BaseException:
            os.close(fd)
            raise
        if problem:
            os.close(fd)
            hint = f"{problem}, so it is left alone; choose another {self._flag}"
            raise KernelError("lock", str(path), errno.EEXIST, hint)
        return fd, bool(stat.S_IMODE(found.st_mode) & ~MODE)

    def _replace(self) -> tuple[int, bool]:
        """Puts a file that only we have open in the place of one that others may have open.

        Returns:
            Its descriptor, and whether it is locked and in place; if not, try again.
        """
        successor = self.path.with_name(self.path.name + SUCCESSOR)
        fd, _ = self._open(successor)
        try:
            if not _try_lock(fd) or not _is_at(fd, successor):
                return fd, False
            # Who is second finds the first one's successor in place: not loose any more.
            if stat.S_IMODE(self.path.stat().st_mode) & ~MODE:
                successor.rename(self.path)
                return fd, True
            successor.unlink()
        except BaseException:
            os.close(fd)
            raise
        return fd, False

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

    def _held(self, holder: str) -> KernelError:
        who = f"another pyflanneld (pid {holder})" if holder else "another pyflanneld"
        what = self._flag.removeprefix("--").replace("-", " ")
        hint = f"{who} runs with {what} {self.subnet_file}"
        if holder and not _lives(int(holder)):
            hint = (
                f"it is held, but not by the pyflanneld whose pid is in it ({holder}), which is"
                " gone; `lslocks` shows who, and if that is no pyflanneld, remove the file"
            )
        return DeviceUnavailable("lock", str(self.path), errno.EWOULDBLOCK, hint)

    def _refused(self, operation: str, error: OSError) -> KernelError:
        code = error.errno or 0
        subject = str(self.path)
        if code == errno.EROFS:
            return DeviceUnavailable(operation, subject, code, "the file system is read-only")
        if code in (errno.EACCES, errno.EPERM):
            return NotPermitted(operation, subject, code, "is this root?")
        return KernelError(operation, subject, code)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether a descriptor is of the file that stands at a path now."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _not_ours(fd: int, found: os.stat_result) -> str:
    """Why a file is no lock file of ours; empty if it is one."""
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    if found.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {found.st_uid}"
    if not is_lock_content(os.pread(fd, 32, 0).decode("latin-1")):
        return "it holds something else than a process id"
    return ""


def is_lock_content(content: str) -> bool:
    """Whether this is what stands in a lock file of ours: nothing, or a process id."""
    return _CONTENT.fullmatch(content) is not None


def _holder(fd: int) -> str:
    """The process id in the lock file, "" if there is none."""
    with contextlib.suppress(OSError):
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        if text.isdigit():
            return text
    return ""


def _lives(pid: int) -> bool:
    """Whether there is such a process in our pid namespace; also if /proc hides it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def is_held(subnet_file: str | os.PathLike[str]) -> bool:
    """Whether a daemon with this subnet file lives, as far as this user may see.

    The kernel's list of locks needs no right to open the file. It leaves out the locks of other pid
    namespaces; those are found by trying, where the file may be opened.
    """
    path = SingleInstance(subnet_file).path
    try:
        if _is_listed(path.stat()):
            return True
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _is_listed(found: os.stat_result) -> bool:
    """Whether the kernel lists a `flock` on this file.

    Source: proc_locks(5); `1: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF`, device in hex.
    """
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError):
        for line in _LOCKS.read_text().splitlines():
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5] == device:
                return True
    return False


def upstream_daemons() -> list[int]:
    """Process ids of flannel's own daemon, `flanneld`, in our network namespace.

    It takes no lock that we could see; it is known by its name.
    """
    return processes_here("flanneld")


def our_daemons() -> list[int]:
    """Process ids of `pyflanneld` in our network namespace, whatever their subnet files are."""
    return processes_here("pyflanneld")


def processes_here(name: str) -> list[int]:
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
