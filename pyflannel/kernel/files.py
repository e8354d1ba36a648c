"""Files that others read: written whole or not at all, read without surprises.

A reader (docker's unit, a CNI plugin, our next start) sees the old content or the new one, never a
part, also when the power goes: write to a hidden file in the same directory, fsync, rename over the
target, fsync the directory. The price is upstream's as well: the inode changes, so a bind mount of
the *file* keeps the old content. Mount the directory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted

MOST_BYTES: Final = 1 << 20
"""No file that we read is larger than a few kilobytes; a mebibyte is a mistake or an attack."""


def write_atomically(
    path: str | Path,
    data: bytes,
    *,
    default_mode: int = 0o644,
    make_parents: bool = True,
    private: bool = False,
) -> None:
    """Replaces a file's content in one step.

    A new file gets exactly `default_mode`, whatever the umask; an existing regular file's
    permission bits are kept. A symbolic link to one is replaced, not followed. What is no file (a
    device like /dev/null, a socket, a FIFO), or a link to that, is left alone: EEXIST. Concurrent
    writers do not disturb each other: the last rename wins. Blocks for as long as the disk takes.

    Args:
        path: the target.
        data: its new content.
        default_mode: permission bits of a new file.
        make_parents: create missing directories (0755, less the umask).
        private: for our own user alone, 0600 whatever the file had before; a missing directory is
            made 0700.

    Raises:
        NotPermitted: a directory may not be written.
        DeviceUnavailable: read-only file system, or no space left.
        KernelError: anything else; the old content is untouched in every case.
    """
    target = Path(path)
    try:
        if make_parents:
            target.parent.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
        mode = 0o600 if private else _mode_of(target, default_mode)
        _replace(target, data, mode)
    except OSError as error:
        raise _translated("write", target, error) from error


def _replace(target: Path, data: bytes, mode: int) -> None:
    _refuse_special(target)
    # Cut, so that the longest permitted name has room for what is added. (NAME_MAX counts bytes.)
    stem = os.fsdecode(os.fsencode(target.name)[:200])
    temporary = target.parent / f".{stem}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600)
    try:
        try:
            os.fchmod(descriptor, mode)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(target)
    except BaseException:
        _unlink_quietly(temporary)
        raise
    _sync_directory(target.parent)


def _refuse_special(target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except OSError:
        return  # nothing there, or a link to nothing; what is really wrong comes from the attempt
    if stat.S_ISDIR(mode) and not target.is_symlink():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise _SpecialFile(errno.EEXIST, os.strerror(errno.EEXIST))


class _SpecialFile(OSError):
    """Something that a rename must not replace."""


def _mode_of(target: Path, default_mode: int) -> int:
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return default_mode
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) else default_mode


def _unlink_quietly(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return  # what led here is the error to report


def _sync_directory(directory: Path) -> None:
    """Makes the rename survive a power cut, where the file system can.

    The new content stands already, so a refusal (no read permission, EINVAL) is not a failure.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


_WAY_OUT: Final = {
    errno.EACCES: "may this user write to the directory?",
    errno.EPERM: "is the file or its directory immutable, or guarded by a security module?",
    errno.EROFS: "the file system is read-only: remount it, choose another path, or if it is so for"
    " this unit alone (ProtectSystem=), give that a ReadWritePaths=",
    errno.ENOSPC: "free some space or inodes, or choose another path",
    errno.EDQUOT: "the quota is used up: raise it, or choose another path",
    errno.EISDIR: "a directory stands in the place of the file: remove it",
    errno.EEXIST: "a file stands in the place of the directory",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.ENOENT: "the directory does not exist",
    errno.EBUSY: "is the file itself a mount point? mount its directory instead",
    errno.ELOOP: "the path's symbolic links go round in a circle",
}


def _translated(operation: str, path: Path, error: OSError) -> KernelError:
    number = error.errno or 0
    kind: type[KernelError] = KernelError
    if isinstance(error, _SpecialFile):
        hint = "what stands there is not a regular file, so it is left alone: choose another path"
        return KernelError(operation, str(path), number, hint)
    if number in {errno.EACCES, errno.EPERM}:
        kind = NotPermitted
    elif number in {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}:
        kind = DeviceUnavailable
    return kind(operation, str(path), number, _WAY_OUT.get(number, ""))


MOST_LINKS: Final = 40
"""As the kernel's own `MAXSYMLINKS` (include/linux/namei.h)."""


def inside(root: str | Path, path: str) -> Path:
    """Where a path of another machine's tree lies, links followed as that machine follows them.

    An absolute link starts at `root` again, and `..` does not leave it, as with chroot(2). What
    does not exist counts as no link. The answer holds as long as the tree does not change.

    Args:
        root: the tree, or `/`.
        path: in the tree, absolute or relative to its root.

    Raises:
        KernelError: the links go round in a circle.
    """
    todo = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done[:-1]
        elif part not in {"", "."}:
            try:
                target = str(Path(root, *done, part).readlink())
            except OSError:  # EINVAL: not a link
                done.append(part)
                continue
            links += 1
            if links > MOST_LINKS:
                way_out = _WAY_OUT[errno.ELOOP]
                raise KernelError("follow", str(Path(root, path.lstrip("/"))), errno.ELOOP, way_out)
            if target.startswith("/"):
                done = []
            todo += target.split("/")[::-1]
    return Path(root, *done)


class FileText(NamedTuple):
    """The content of a file."""

    text: str
    whole: bool
    """Whether it ends with a newline, as text files do. If not, its writer was interrupted or did
    not know better; the last line may be cut off."""


class FileMissing(NamedTuple):
    """There is no such file."""


class FileUnreadable(NamedTuple):
    """There is something, but it cannot be read as text."""

    reason: str
    """A sentence that names the path."""


FileContent = FileText | FileMissing | FileUnreadable


def read_text_if_exists(
    path: str | Path, *, most_bytes: int = MOST_BYTES, own: bool = False
) -> FileContent:
    """Reads a small text file that may be missing, unreadable, torn or no text at all.

    Never raises for what it finds, and never blocks (a FIFO is reported, not waited for).

    Args:
        path: of the file; links are followed.
        most_bytes: a longer file is not read.
        own: it is one that we wrote for ourselves; what others may write is not believed.
    """
    target = Path(path)
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return FileMissing()
    except OSError as error:
        return FileUnreadable(str(_translated("read", target, error)))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return FileUnreadable(f"read {target}: not a regular file")
        if own and (reason := _why_not_ours(found)):
            return FileUnreadable(f"read {target}: {reason}")
        data = _read_all(descriptor, most_bytes)
    except OSError as error:
        return FileUnreadable(str(_translated("read", target, error)))
    finally:
        os.close(descriptor)
    if len(data) > most_bytes:
        return FileUnreadable(f"read {target}: longer than {most_bytes} bytes")
    if b"\0" in data:
        return FileUnreadable(f"read {target}: not text, NUL byte at offset {data.index(0)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return FileUnreadable(f"read {target}: not text, bad UTF-8 at offset {error.start}")
    return FileText(text, whole=text.endswith("\n"))


def _why_not_ours(found: os.stat_result) -> str:
    if found.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {found.st_uid}, not to us: remove it, or give it to root"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write it (mode {stat.S_IMODE(found.st_mode):04o}): chmod 0600"
    return ""


def _read_all(descriptor: int, most_bytes: int) -> bytes:
    """Up to one byte more than we accept."""
    data = b""
    while len(data) <= most_bytes:
        chunk = os.read(descriptor, most_bytes + 1 - len(data))
        if not chunk:
            break
        data += chunk
    return data
