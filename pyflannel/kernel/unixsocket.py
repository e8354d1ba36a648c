"""Unix sockets in the file system: a dead one of ours is replaced, everything else is left alone.

A daemon that was killed leaves its socket file behind. It is removed only if it is recognised:

* it is a socket, not a link to one, owned by root or by our own user;
* its mode is one that we give (`MODES`);
* nothing answers there, of any socket type: the kernel says ECONNREFUSED.

The mode is set before the file exists, so there is no moment in which others may connect.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from enum import StrEnum
from pathlib import Path
from typing import Final

from pyflannel.core.errors import ConfigError, DeviceUnavailable
from pyflannel.foreign import shown

MODES: Final = (0o600, 0o660)
"""Modes of our sockets: for our own user, or for a group too."""
BACKLOG: Final = 128
"""Connections that wait to be accepted; asyncio's own default is 100."""


class Standing(StrEnum):
    """What stands at a path where a socket of ours is wanted. The values are parts of messages."""

    NOTHING = "nothing"
    DEAD = "a dead socket of ours"
    ALIVE = "a socket on which a program listens"
    OTHER_SOCKET = "a dead socket that pyflanneld did not make"
    NO_SOCKET = "not a socket"


def look(path: str | Path) -> Standing:
    """What stands at `path`; in doubt, something that is not ours.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return Standing.NOTHING
    if not stat.S_ISSOCK(found.st_mode):
        return Standing.NO_SOCKET
    if _answers(path):
        return Standing.ALIVE
    ours = found.st_uid in {0, os.geteuid()} and stat.S_IMODE(found.st_mode) in MODES
    return Standing.DEAD if ours else Standing.OTHER_SOCKET


def _answers(path: str | Path) -> bool:
    """Whether a socket is bound there. Any answer but "connection refused" counts as yes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # EPROTOTYPE: a datagram socket; EAGAIN: its backlog is full
    return True


def remove_dead(path: str | Path) -> bool:
    """Removes a dead socket of ours; whether there was one.

    Raises:
        OSError: it cannot be removed.
    """
    if look(path) is not Standing.DEAD:
        return False
    Path(path).unlink(missing_ok=True)
    return True


def group_id(name: str) -> int:
    """The number of a group, given by its name or its number.

    Raises:
        ConfigError: there is no such group.
    """
    if name.isascii() and name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError, OSError):  # OSError: a name service that does not answer
        raise ConfigError(f"there is no group {shown(name)} on this machine") from None


def listen(path: str, *, purpose: str, option: str, group: int | None = None) -> socket.socket:
    """A listening stream socket at `path`, mode 0600; the directory is made if it is missing.

    Args:
        path: where; a dead socket of ours that stands there is replaced.
        purpose: for messages: `status socket`.
        option: the flag that names another path.
        group: whose members may connect as well: mode 0660.

    Raises:
        DeviceUnavailable: something else stands there, or the socket cannot be made.
    """
    operation = f"listen on {purpose}"
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        remove_dead(path)
        standing = look(path)
        if standing is not Standing.NOTHING:
            code = errno.EADDRINUSE if standing is Standing.ALIVE else errno.EEXIST
            hint = f"{standing} is there, and is left alone; name another path with {option}"
            raise DeviceUnavailable(operation, path, code, hint)
        return _bound(path, group)
    except OSError as error:
        hint = _WAY_OUT.get(error.errno or 0, "") or ("" if error.errno else str(error))
        code = error.errno or 0
        raise DeviceUnavailable(operation, path, code, f"{hint}: {option}".lstrip(": ")) from error


def _bound(path: str, group: int | None) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The kernel gives the file the mode that the socket has before bind(2), less the umask
        # (net/unix/af_unix.c, unix_bind_bsd).
        os.fchmod(made.fileno(), MODES[group is not None])
        made.bind(path)
        if group is not None:
            _give_to(path, group)
        made.listen(BACKLOG)
        made.settimeout(0)
    except BaseException:
        with contextlib.suppress(OSError):
            made.close()
        raise
    return made


def _give_to(path: str, group: int) -> None:
    """Gives a socket that was made just now to a group; it had our own user's until here.

    Then the mode once more: a umask such as our unit's has taken the group's part away. By a
    descriptor, because chmod(2) follows a link that another user puts in the socket's place.
    """
    try:
        os.chown(path, -1, group, follow_symlinks=False)
        file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_ISSOCK(os.fstat(file).st_mode):
                Path(f"/proc/self/fd/{file}").chmod(MODES[1])
        finally:
            os.close(file)
    except OSError as error:
        Path(path).unlink(missing_ok=True)
        hint = (
            "without CAP_CHOWN this user must be a member of the group: SupplementaryGroups= in a"
            " unit"
        )
        subject = f"{path} to group {group}"
        raise DeviceUnavailable("give", subject, error.errno or 0, hint) from error


_WAY_OUT: Final = {
    errno.EACCES: "the directory may not be written by this user; name another path with",
    errno.EPERM: "the directory may not be written by this user; name another path with",
    errno.EROFS: "the file system is read-only; name another path with",
    errno.ENOTDIR: "a part of the path is a file; name another path with",
    errno.EEXIST: "a file stands in the place of the directory; name another path with",
    errno.EADDRINUSE: "another program took the path just now; name another one with",
}
