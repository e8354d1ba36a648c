"""A pair of sockets that stands for a TUN, so that a data path can be tested without a device.

A TUN keeps packets apart, is non-blocking, and has a queue. So has an AF_UNIX SOCK_SEQPACKET pair;
(SOCK_DGRAM would do as well, but does not tell that the other end was closed, which here plays the
deleted device). What a pair cannot show: refused writes while the link is down, routing, and the
kernel's opinion of a packet. Those are tested on a real TUN.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Final, Self

from pyflannel.kernel.sockopts import SO_SNDBUFFORCE

DEFAULT_BUFFER_BYTES: Final = 4 << 20
"""Asked for in each direction. The kernel charges some 800 bytes for the smallest packet, so that
this is 5,000 of them; without privileges net.core.wmem_max (212,992) bounds it to 270."""


class TunPair:
    """Both ends of a pair: `device` is handed to the data path, `kernel` is played by the test."""

    def __init__(self, buffer_bytes: int = DEFAULT_BUFFER_BYTES) -> None:
        self.device, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.device, self.kernel):
            end.setblocking(False)  # noqa: FBT003  the socket module's signature
            try:
                # The sender's buffer holds what the receiver has not read yet (unix(7)).
                end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, buffer_bytes)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)

    def inject(self, packet: bytes) -> None:
        """Sends a packet through the device, as the kernel does for what is routed there.

        Raises:
            BlockingIOError: if the queue is full.
        """
        self.kernel.send(packet)

    def emitted(self) -> list[bytes]:
        """The packets that the data path wrote to the device since the last call, in order."""
        packets = []
        try:
            while packet := self.kernel.recv(65536):
                packets.append(packet)
        except BlockingIOError:
            pass
        return packets

    def close(self) -> None:
        """Closes both ends. May be called twice."""
        self.device.close()
        self.kernel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def tun_pair(buffer_bytes: int = DEFAULT_BUFFER_BYTES) -> TunPair:
    """A new pair."""
    return TunPair(buffer_bytes)
