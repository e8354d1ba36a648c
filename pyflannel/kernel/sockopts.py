"""Options of sockets that the `socket` module does not have, and what is done with them alone.

Source: asm-generic/socket.h, linux/in.h, linux/in6.h, linux/socket.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from typing import Final

SOL_RAW: Final = 255
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
"""The two go beyond net.core.*mem_max, with CAP_NET_ADMIN."""
SO_TIMESTAMPNS: Final = 35
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23


def attach_filter(sock: socket.socket, code: bytes) -> None:
    """Has a program of classic BPF say which packets a socket gets.

    Args:
        code: instructions (`struct sock_filter`), eight bytes each.

    Raises:
        OSError: the kernel refuses it.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def detach_filter(sock: socket.socket) -> None:
    """Lets a socket get every packet again, if some program chose for it."""
    with contextlib.suppress(OSError):  # ENOENT: there was none
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
