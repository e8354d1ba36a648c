"""What the service manager is told: readiness, status, liveness; and what it hands over.

The protocol is one datagram of `KEY=VALUE` lines to the unix socket named by `NOTIFY_SOCKET`
(sd_notify(3)). Without the variable there is no service manager and every call is silent. A failing
send is logged and returned; it never stops the daemon, which works the same for those who cannot
hear it. The variable stays in the environment, as upstream leaves it, so a child may notify as well
if the unit's `NotifyAccess=` lets it. The default lets only the main process: wrappers must `exec`.

`WATCHDOG_USEC` asks for a sign of life; file descriptors put into the store come back after a
restart in `LISTEN_FDS` (sd_listen_fds(3)).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.logs import get_logger

log = get_logger(__name__)

SEND_TIMEOUT_S: Final = 0.5
"""How long a full socket may hold us up. systemd reads at once; a manager that does not is stuck,
and the data path must not be stuck with it."""
FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START: passed descriptors follow stdin, stdout and stderr."""
WATCHDOG_SHARE: Final = 0.5
"""A sign of life every half of the limit, as sd_watchdog_enabled(3) recommends."""


class Notifier:
    """Sends notifications to the service manager.

    Args:
        address: of its socket: a path, or `@name` in the abstract namespace; empty for none.

    Each method returns what went wrong, `None` if the message was sent or there is no one to
    hear it.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._warned = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """The one that `NOTIFY_SOCKET` names."""
        return cls(environment.get("NOTIFY_SOCKET", ""))

    @property
    def is_connected(self) -> bool:
        """Whether a service manager listens."""
        return bool(self._address)

    def ready(self, status: str = "") -> OSError | None:
        """Start-up, or a reload, is finished."""
        return self._send("READY=1", *_status(status))

    def status(self, text: str) -> OSError | None:
        """One line for `systemctl status`."""
        return self._send(*_status(text))

    def stopping(self, status: str = "") -> OSError | None:
        """The end has begun."""
        return self._send("STOPPING=1", *_status(status))

    def watchdog(self) -> OSError | None:
        """A sign of life."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, usec: int) -> OSError | None:
        """Asks for so many microseconds more, from now, for the present start or stop."""
        return self._send(f"EXTEND_TIMEOUT_USEC={usec}")

    def store_fds(self, name: str, fds: Sequence[int]) -> OSError | None:
        """Puts descriptors into the manager's store; they come back under this name on a restart.

        The manager is told not to watch them: an ICMP error on a socket is no end of it.

        Args:
            name: printable ASCII without `:`, at most 255 characters.
            fds: ours stay open; the manager gets copies.
        """
        if (
            not name
            or len(name) > 255
            or ":" in name
            or not (name.isascii() and name.isprintable())
        ):
            raise ValueError(f"{name!r} cannot be the name of stored file descriptors")
        return self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=fds)

    def remove_fds(self, name: str) -> OSError | None:
        """Takes the descriptors of this name out of the store."""
        return self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def _send(self, *lines: str, fds: Sequence[int] = ()) -> OSError | None:
        if not self._address:
            return None
        try:
            self._transmit("\n".join(lines).encode("utf-8", "replace"), fds)
        except OSError as error:
            write = log.debug if self._warned else log.warning
            write("service manager not notified", message=lines[0], error=error)
            self._warned = True
            return error
        self._warned = False
        return None

    def _transmit(self, message: bytes, fds: Sequence[int]) -> None:
        if self._address[0] not in "/@":
            raise OSError(f"NOTIFY_SOCKET={self._address}: neither a path nor @abstract")
        # A leading NUL is how the kernel spells the abstract namespace.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            sender.connect(address)
            if fds:
                socket.send_fds(sender, [message], list(fds))
            else:
                sender.send(message)


def _status(text: str) -> tuple[str, ...]:
    """The status as one line, or none; a newline would begin another assignment."""
    return (f"STATUS={shown(' '.join(text.split()), MOST_IN_LOG)}",) if text else ()


def watchdog_interval_s(
    environment: Mapping[str, str] = os.environ, *, pid: int | None = None
) -> float | None:
    """Seconds between signs of life, half of what the unit allows; `None` if none are wanted.

    Args:
        pid: our process id. `WATCHDOG_PID` says for which process the watchdog is meant, so that a
            child that inherits the variables does not answer for us.
    """
    text = environment.get("WATCHDOG_USEC", "")
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        return None
    if environment.get("WATCHDOG_PID", "") not in {"", str(os.getpid() if pid is None else pid)}:
        return None
    return int(text) / 1e6 * WATCHDOG_SHARE


def listen_fds(
    environment: Mapping[str, str] = os.environ, *, pid: int | None = None
) -> dict[str, list[int]]:
    """Descriptors that the service manager passed to us, by name; one name may have several.

    They are marked close-on-exec, so that children do not inherit what is ours. Call it once: the
    descriptors are the caller's to close.
    """
    if environment.get("LISTEN_PID", "") != str(os.getpid() if pid is None else pid):
        return {}
    text = environment.get("LISTEN_FDS", "")
    if not text.isascii() or not text.isdigit():
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for position in range(int(text)):
        descriptor = FIRST_FD + position
        try:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keywords
        except OSError as error:
            log.warning("passed file descriptor is not there", fd=descriptor, error=error)
            break
        name = names[position] if position < len(names) and names[position] else "unknown"
        found.setdefault(name, []).append(descriptor)
    return found


class FdStore:
    """Descriptors that outlive the daemon in the service manager's store.

    Its user calls `take`, and `keep` for what the next start shall find. What was not
    taken is of another configuration; `drop_rest` ends it, so that nothing lives on unseen.

    Args:
        notifier: to the manager that keeps them; without one nothing is kept.
        passed: what it handed over, as `listen_fds` gives it.
    """

    def __init__(
        self, notifier: Notifier, passed: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self._notifier = notifier
        self._passed = {name: list(fds) for name, fds in (passed or {}).items()}

    @classmethod
    def from_environment(cls) -> FdStore:
        """The one of the unit that we run in. Once a process: it owns what was passed."""
        return cls(Notifier.from_environment(), listen_fds())

    def take(self, name: str) -> int | None:
        """What was kept under a name; the caller's from now on. `None` if there is nothing."""
        fds = self._passed.pop(name, [])
        for surplus in fds[1:]:
            os.close(surplus)
        return fds[0] if fds else None

    def keep(self, name: str, fd: int) -> None:
        """Keeps it, in the place of what had this name."""
        self._notifier.remove_fds(name)
        self._notifier.store_fds(name, [fd])

    def forget(self, name: str) -> None:
        """Ends what is kept under a name, and what was passed under it."""
        for fd in self._passed.pop(name, []):
            os.close(fd)
        self._notifier.remove_fds(name)

    def drop_rest(self) -> None:
        """Ends everything that was passed and not taken."""
        for name in list(self._passed):
            self.forget(name)
