"""One daemon for each device: who keeps a device holds its name.

The kernel lets one process open a TUN device. A vxlan or ipip device is found by its name, so two
daemons with one VNI would each make it as its own config says. Therefore a daemon binds an abstract
Unix socket with the device's name. That name belongs to the network namespace, as the device does,
and the kernel frees it with the process, however that ends.

Every user may bind any such name. One that is held by another user than root and our own is no
daemon's: it is told and passed over, so no local user can keep a daemon from starting. The uid is
that of the process that called listen(2), by the kernel's word (`SO_PEERCRED`, unix(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.core.kind import OWN_VNI
from pyflannel.logs import get_logger

log = get_logger(__name__)

PREFIX: Final = "\0pyflannel/device/"
TRIES: Final = 5
"""How often a name is tried that is taken but does not answer: its daemon starts, or ends, just
now."""
PAUSE_S: Final = 0.02
_CREDENTIALS: Final = struct.Struct("iII")
"""`struct ucred`: pid, uid, gid."""


class Holder(NamedTuple):
    """Who holds a name."""

    pid: int
    """0 if it is in another pid namespace."""
    uid: int

    def __str__(self) -> str:
        try:
            name = Path(f"/proc/{self.pid}/comm").read_text().strip()
        except OSError:
            return "a pyflanneld of another container"
        return f"{name} (pid {self.pid})"


class DeviceClaims:
    """The devices that this process keeps. To be used in a running event loop."""

    def __init__(self) -> None:
        self._held: dict[str, socket.socket | None] = {}

    def take(self, device: str) -> None:
        """Holds a device until `close`; costs nothing if it is held already.

        Raises:
            DeviceUnavailable: another daemon keeps it.
        """
        if device in self._held:
            return
        for _ in range(TRIES):
            try:
                self._held[device] = _listen(device)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    self._pass_over(device, str(error))
                    return
            else:
                return
            holder = find_holder(device)
            if holder is None:
                time.sleep(PAUSE_S)
            elif holder.uid in {0, os.geteuid()}:
                hint = f"{holder} keeps this device; {OWN_VNI}"
                raise DeviceUnavailable("link", device, errno.EBUSY, hint)
            else:
                self._pass_over(device, f"user {holder.uid} holds its name ({holder})")
                return
        self._pass_over(device, "a process holds its name and does not answer")

    def _pass_over(self, device: str, reason: str) -> None:
        log.warning("cannot tell whether another daemon keeps it", device=device, reason=reason)
        self._held[device] = None

    def close(self) -> None:
        """Gives all devices back."""
        for held in self._held.values():
            if held is not None:
                asyncio.get_running_loop().remove_reader(held)
                held.close()
        self._held.clear()


def _listen(device: str) -> socket.socket:
    """Holds a name.

    Raises:
        OSError: EADDRINUSE if it is held.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        held.bind(PREFIX + device)
        held.listen()
    except OSError:
        held.close()
        raise
    # Those who ask are let go at once; else the queue would be full after some of them.
    asyncio.get_running_loop().add_reader(held, _turn_away, held)
    return held


def _turn_away(held: socket.socket) -> None:
    with contextlib.suppress(OSError):
        held.accept()[0].close()


def find_holder(device: str) -> Holder | None:
    """Who keeps a device in this network namespace; `None` if none does, or does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
        try:
            asking.connect(PREFIX + device)
            found = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return Holder(pid, uid)
