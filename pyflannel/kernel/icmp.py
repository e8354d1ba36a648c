"""ICMP echo over raw sockets: requests out, replies in with the time at which the kernel had them.

A raw socket sees every ICMP packet of the machine; two filters in the kernel leave it echo replies
with its own identifier alone. Packets are never fragmented, and may be as large as the device
takes, whatever a router said of the path (`IP_PMTUDISC_PROBE`): that is what is to be found out.

Source: linux/icmp.h, linux/icmpv6.h, linux/in.h, linux/in6.h, socket(7) `SO_TIMESTAMPNS`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress
from pyflannel.kernel.sockopts import (
    IP_MTU_DISCOVER,
    IPV6_MTU_DISCOVER,
    SO_TIMESTAMPNS,
    SOL_RAW,
    attach_filter,
)
from pyflannel.kernel.udp import IP_PMTUDISC_PROBE

_ICMP_FILTER: Final = 1
_ICMP6_FILTER: Final = 1
_ECHO_REPLY: Final = {Family.V4: 0, Family.V6: 129}
_ICMPV6_TYPES: Final = 256
_TIME: Final = struct.Struct("@ll")
_MOST: Final = 65_535
_IPV4_HEADER: Final = 20
_ANCILLARY: Final = socket.CMSG_SPACE(_TIME.size)
_ACCEPT: Final = 0xFFFF_FFFF


class EchoSocket:
    """A raw socket of one family.

    Args:
        family: of its packets.

    Raises:
        KernelError: there is none: CAP_NET_RAW is missing, or the family.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.ident = int.from_bytes(os.urandom(2))
        """In all requests; replies with another one are not seen."""
        v4 = family is Family.V4
        kind = socket.AF_INET if v4 else socket.AF_INET6
        protocol = socket.IPPROTO_ICMP if v4 else socket.IPPROTO_ICMPV6
        try:
            self._sock = socket.socket(kind, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            hint = "is CAP_NET_RAW missing?" if error.errno == errno.EPERM else ""
            raise KernelError("open", f"raw {family} socket", error.errno or 0, hint) from error
        level, option = (
            (socket.IPPROTO_IP, IP_MTU_DISCOVER) if v4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
        )
        try:
            self._filter()
            self._sock.setsockopt(level, option, IP_PMTUDISC_PROBE)
            self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        except OSError as error:
            self._sock.close()
            raise KernelError("set up", f"raw {family} socket", error.errno or 0) from error

    def send(self, address: IPAddress, message: bytes) -> int:
        """Sends an ICMP message; 0, or the `errno` with which the kernel refused it."""
        try:
            self._sock.sendto(message, (str(address), 0))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def receive(self) -> Iterator[tuple[bytes, float]]:
        """Every ICMP message that has come, and when, in seconds since the epoch. Never waits."""
        while True:
            try:
                packet, ancillary, _, _ = self._sock.recvmsg(_MOST, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                continue  # an error of a former packet, which is reported once
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIME.unpack_from(data)
                    yield self._body(packet), seconds + nanoseconds / 1e9

    def close(self) -> None:
        """Ends it."""
        self._sock.close()

    def _body(self, packet: bytes) -> bytes:
        if self.family is Family.V6:
            return packet
        return packet[(packet[0] & 0xF) * 4 if packet else _IPV4_HEADER :]

    def _filter(self) -> None:
        if self.family is Family.V4:
            passes = struct.pack("=I", ~(1 << _ECHO_REPLY[Family.V4]) & 0xFFFF_FFFF)
            self._sock.setsockopt(SOL_RAW, _ICMP_FILTER, passes)
        else:
            blocked = [0xFFFF_FFFF] * (_ICMPV6_TYPES // 32)
            wanted = _ECHO_REPLY[Family.V6]
            blocked[wanted // 32] &= ~(1 << wanted % 32)
            self._sock.setsockopt(
                socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *blocked)
            )
        # ICMP begins at the length that IPv4's header names; with IPv6 the socket sees ICMP alone.
        load = [(0xB1, 0, 0, 0), (0x48, 0, 0, 4)] if self.family is Family.V4 else [(0x28, 0, 0, 4)]
        lines = [*load, (0x15, 0, 1, self.ident), (0x06, 0, 0, _ACCEPT), (0x06, 0, 0, 0)]
        attach_filter(self._sock, b"".join(struct.pack("=HBBI", *line) for line in lines))
