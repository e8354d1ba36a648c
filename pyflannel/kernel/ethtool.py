"""Offloads of an interface, by the ioctl that ethtool(8) uses.

An answer takes microseconds, so nothing here is awaited. The interface is looked for in the network
namespace of the calling thread.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted

SIOCETHTOOL: Final = 0x8946
ETHTOOL_STXCSUM: Final = 0x17
ETHTOOL_STSO: Final = 0x1F
ETHTOOL_SGRO: Final = 0x2C
"""linux/ethtool.h: `struct ethtool_value` is a command and a value. The command that reads an
offload is the one before the command that sets it."""
_NAMES: Final = {ETHTOOL_STXCSUM: "tx-checksumming", ETHTOOL_STSO: "tso", ETHTOOL_SGRO: "gro"}


def set_offload(name: str, command: int, *, on: bool) -> None:
    """Switches one offload of an interface.

    Args:
        command: one of `ETHTOOL_STXCSUM`, `ETHTOOL_STSO`, `ETHTOOL_SGRO`.

    Raises:
        KernelError: the interface does not let it be switched.
    """
    _ethtool(name, command, int(on))


def offload(name: str, command: int) -> bool:
    """Whether an offload of an interface is on.

    Args:
        command: the one that would set it.

    Raises:
        KernelError: the interface does not say.
    """
    return bool(_ethtool(name, command - 1, 0))


def _refusal(name: str, command: int, code: int) -> KernelError:
    setting = command in _NAMES
    operation = "set offload" if setting else "get offload"
    subject = f"{name} {_NAMES[command if setting else command + 1]}"
    if code == errno.ENODEV:
        return DeviceUnavailable(operation, subject, code, "the link is gone")
    if code in {errno.EPERM, errno.EACCES}:
        return NotPermitted(operation, subject, code)
    return KernelError(operation, subject, code)


def _ethtool(name: str, command: int, value: int) -> int:
    import ctypes

    data = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    ifreq = struct.pack("16sP16x", name.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, SIOCETHTOOL, ifreq)
        except OSError as error:
            raise _refusal(name, command, error.errno or 0) from error
    return int(struct.unpack("=4xI", data.raw)[0])
