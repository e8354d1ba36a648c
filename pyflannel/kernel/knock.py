"""Datagrams to a port where nothing listens, with a checksum or without one yet.

The answer is the other node's refusal (ICMP port unreachable, RFC 1122 §4.1.3.1), which the kernel
hands to the connected socket that has the datagram's ports. A datagram of an ordinary socket leaves
with its checksum open where the device takes that; one by a raw socket with its own IP header
leaves as it was written. But for that the two are alike.

Source: linux/in.h; raw(7), udp(7); net/ipv4/ip_output.c, `__ip_append_data` (CHECKSUM_PARTIAL).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress, family_of
from pyflannel.core.packet import checksum

PORT: Final = 33434
"""Where traceroute begins: nothing listens there, and firewalls know what it is."""
SIZE: Final = 32
"""Bytes behind the UDP header."""
_WITH_HEADER: Final = socket.IPPROTO_RAW
"""What is sent has its own IP header, and nothing is received (raw(7))."""
_HOPS: Final = 64
_UDP: Final = struct.Struct("!HHHH")
_PSEUDO: Final = struct.Struct("!II")


class Knock:
    """A pair of sockets for one address: one to send by and to hear, one for what we write.

    Args:
        address: whom to ask.

    Raises:
        KernelError: there are no sockets, or there is no way to the address.
    """

    def __init__(self, address: IPAddress) -> None:
        self._address = address
        family = socket.AF_INET if family_of(address) is Family.V4 else socket.AF_INET6
        self._text = os.urandom(SIZE)
        with contextlib.ExitStack() as undo:
            try:
                self._raw = undo.enter_context(
                    socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _WITH_HEADER)
                )
                self._sock = undo.enter_context(
                    socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                )
                self._sock.connect((str(address), PORT))
            except OSError as error:
                hint = "is CAP_NET_RAW missing?" if error.errno == errno.EPERM else ""
                raise KernelError(
                    "open", f"sockets for {address} port {PORT}", error.errno or 0, hint
                ) from error
            undo.pop_all()

    def send(self, *, written: bool) -> int:
        """Sends one; 0, or the `errno` with which the kernel refused it.

        Args:
            written: with its checksum; without, the device decides who computes it.
        """
        try:
            if written:
                source, port = self._sock.getsockname()[:2]
                packet = datagram(source, port, self._address, self._text)
                self._raw.sendto(packet, (str(self._address), 0))
            else:
                self._sock.send(self._text)
        except ConnectionRefusedError:
            return 0  # the answer to one before, which is told by whatever call comes first
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def answered(self) -> bool:
        """Whether an answer has come since the last look; a datagram counts as one. Never waits."""
        try:
            self._sock.recv(1)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Ends it."""
        self._raw.close()
        self._sock.close()


def datagram(source: str, port: int, target: IPAddress, text: bytes) -> bytes:
    """The IP packet of a datagram to `PORT`, with a checksum.

    IPv4's header checksum, identification and length are the kernel's to fill in (raw(7)).
    """
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    addresses = socket.inet_pton(family, source) + target.packed
    length = _UDP.size + len(text)
    pseudo = addresses + _PSEUDO.pack(length, socket.IPPROTO_UDP)
    head = _UDP.pack(port, PORT, length, 0)
    # 0 would mean that there is none (RFC 768).
    value = checksum(pseudo + head + text) or 0xFFFF
    body = _UDP.pack(port, PORT, length, value) + text
    if target.version == 4:
        fixed = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, _HOPS, socket.IPPROTO_UDP, 0)
        return fixed + addresses + body
    return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, _HOPS) + addresses + body
