"""Our systemd unit without systemd: what it starts, and how it is stopped.

For tests where there is no systemd, as in the guests of `make kernels`. `tests/system` has the unit
on a real one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyflannel.lab.nodes import Node

UNIT: Final = Path(__file__).parents[2] / "systemd/pyflannel.service"


def setting(name: str) -> list[str]:
    """The values that the unit gives a setting, in order."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def start_command(arguments: str) -> str:
    """The unit's command with its rights, for a shell."""
    (capabilities,) = setting("CapabilityBoundingSet")
    names = [f"+{each.removeprefix('CAP_').lower()}" for each in capabilities.split()]
    (command,) = setting("ExecStart")
    return f"setpriv --bounding-set {','.join(['-all', *names])} {command} {arguments}"


class Manager:
    """Plays systemd towards one daemon: hears it, keeps its descriptors, and stops it.

    Args:
        path: of the socket by which it is told things.
    """

    def __init__(self, path: Path) -> None:
        self.environment: Mapping[str, str] = {"NOTIFY_SOCKET": str(path)}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._store: list[tuple[str, int]] = []

    def stop(self, node: Node) -> None:
        """What `systemctl stop` does with a unit like ours (systemd.service(5), systemd.kill(5)).

        `KillMode=mixed`: SIGTERM for the main process alone. When it has ended, what is left of the
        unit gets SIGKILL, and the descriptors in the store are closed.

        Raises:
            AssertionError: the unit is stopped in another way than this.
            LabTimeout: it has not ended after TimeoutStopSec=; systemd would kill it.
        """
        assert setting("KillMode") == ["mixed"]
        assert setting("KillSignal") + setting("ExecStop") + setting("ExecStopPost") == []
        (limit_s,) = setting("TimeoutStopSec")
        daemon = node.daemon
        assert daemon is not None
        daemon.send(signal.SIGTERM)
        assert node.wait_exit(timeout=float(limit_s)) == 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGKILL)  # the lab gives each daemon a session
        self._hear()
        self._close_store()

    def _hear(self) -> None:
        """Takes what it was told; of that only the store concerns us."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 16)
            except BlockingIOError:
                return
            lines = data.decode().splitlines()
            (name,) = [each[7:] for each in lines if each.startswith("FDNAME=")] or [""]
            if "FDSTOREREMOVE=1" in lines:
                self._close_store(name)
            self._store += [(name, each) for each in descriptors]

    def _close_store(self, name: str = "") -> None:
        for each in [each for each in self._store if name in ("", each[0])]:
            os.close(each[1])
            self._store.remove(each)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hear()
        self._close_store()
        self._socket.close()
