"""Sends or receives traffic inside a pod, and reports the result as JSON.

Run as a program of its own (`python -I -S traffic.py ROLE …`), like `pinger`. Three kinds, each
with a role at both ends:

* `tcp-sink` / `tcp-source`: bulk over one or more connections. Buffers of a megabyte keep Python
  out of the way: the work of a call is the kernel's copying.
* `echo` / `ask`: one byte there and back over TCP, again and again: the latency of a request. The
  two interpreters are part of what is measured, some 20 µs of each round.
* `udp-sink` / `udp-source`: small datagrams, with or without a limit. One call per datagram would
  measure Python, so 64 go with one `sendmmsg`, and as many come with one `recvmmsg`.

The receiving end prints `ready` first, and its report when the other end has finished.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

BULK_BYTES = 1 << 20
"""Size of the buffers for bulk TCP: 2^20 bytes make a few hundred calls per second at 1 Gbit/s."""
BATCH = 64
"""Datagrams per call. With this many the call adds little to the cost of one."""
IDLE_S = 0.5
"""After this much silence a sink takes the traffic to be over."""
CONNECT_S = 10.0
SOCKET_BUFFER_BYTES = 4 << 20
"""Requested at both UDP ends (the kernel grants up to `rmem_max`), so that the overlay's loss is
measured, and not that of a reader without a time slice."""


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    """`struct msghdr` of the C library."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MMsgHdr(ctypes.Structure):
    """`struct mmsghdr`: a message, and how many of its bytes were transferred."""

    _fields_ = (("header", _MsgHdr), ("length", ctypes.c_uint))


class Batch:
    """`BATCH` messages of one size over one buffer; their content does not matter."""

    def __init__(self, size: int) -> None:
        self._buffer = ctypes.create_string_buffer(max(size, 1))
        self._iov = _IoVec(ctypes.cast(self._buffer, ctypes.c_void_p), size)
        self._messages = (_MMsgHdr * BATCH)()
        for message in self._messages:
            message.header.iov = ctypes.pointer(self._iov)
            message.header.iov_length = 1
        self._libc = ctypes.CDLL(None, use_errno=True)

    def send(self, fd: int, count: int) -> int:
        """Sends up to `count` datagrams on a connected socket; how many were sent."""
        return self._result(self._libc.sendmmsg(fd, self._messages, count, 0))

    def receive(self, fd: int) -> int:
        """Receives the datagrams that have arrived; how many."""
        return self._result(self._libc.recvmmsg(fd, self._messages, BATCH, 0, None))

    @staticmethod
    def _result(outcome: int) -> int:
        if outcome >= 0:
            return outcome
        code = ctypes.get_errno()
        # ENOBUFS means a full queue, ECONNREFUSED an ICMP answer to an earlier datagram.
        if code in _TRANSIENT:
            return 0
        raise OSError(code, os.strerror(code))


_TRANSIENT = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ECONNREFUSED))


def tcp_sink(options: argparse.Namespace) -> Mapping[str, object]:
    """Accepts `--flows` connections and reads until all are closed."""
    total = 0
    peers: set[str] = set()
    buffer = bytearray(BULK_BYTES)
    with _listener(options.port) as listener, selectors.DefaultSelector() as selector:
        _ready()
        for _ in range(options.flows):
            connection, peer = listener.accept()
            peers.add(peer[0])
            selector.register(connection, selectors.EVENT_READ)
        begin = end = time.monotonic()
        while selector.get_map():
            for key, _ in selector.select():
                source = key.fileobj
                if not isinstance(source, socket.socket):
                    continue
                got = source.recv_into(buffer)
                total += got
                if not got:
                    selector.unregister(source)
                    source.close()
                end = time.monotonic()
    return {"bytes": total, "seconds": end - begin, "peers": sorted(peers)}


def tcp_source(options: argparse.Namespace) -> Mapping[str, object]:
    """Sends as much as possible over `--flows` connections for `--seconds`."""
    sockets = [_connect(options) for _ in range(options.flows)]
    end = time.monotonic() + options.seconds
    block = memoryview(bytes(BULK_BYTES))

    def flow(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(CONNECT_S)
            while time.monotonic() < end:
                connection.send(block)

    threads = [threading.Thread(target=flow, args=(connection,)) for connection in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {}


def echo(options: argparse.Namespace) -> Mapping[str, object]:
    """Echoes the data of one connection until it is closed."""
    with _listener(options.port) as listener:
        _ready()
        connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(64):
            connection.sendall(data)
    return {}


def ask(options: argparse.Namespace) -> Mapping[str, object]:
    """Sends a byte and waits for it, for `--seconds`; how long the rounds took."""
    rounds_us: list[float] = []
    with _connect(options) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.monotonic() + options.seconds
        while (begin := time.monotonic()) < end:
            connection.sendall(b"?")
            connection.recv(1)
            rounds_us.append((time.monotonic() - begin) * 1e6)
    rounds_us.sort()
    count = len(rounds_us)
    return {
        "rounds": count,
        "p50_us": rounds_us[count // 2],
        "p99_us": rounds_us[count * 99 // 100],
    }


def udp_sink(options: argparse.Namespace) -> Mapping[str, object]:
    """Counts datagrams until none has come for a while."""
    received = 0
    begin = end = 0.0
    batch = Batch(2048)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        sink.bind(("", options.port))
        sink.settimeout(0)
        _ready()
        with selectors.DefaultSelector() as selector:
            selector.register(sink, selectors.EVENT_READ)
            while selector.select(IDLE_S if received else CONNECT_S):
                got = batch.receive(sink.fileno())
                end = time.monotonic()
                begin = begin or end
                received += got
    return {"received": received, "seconds": end - begin}


def udp_source(options: argparse.Namespace) -> Mapping[str, object]:
    """Sends datagrams of `--size` bytes for `--seconds`, `--rate` a second (0: no limit)."""
    batch = Batch(options.size)
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        source.connect((options.host, options.port))
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < options.seconds:
            due = BATCH
            if options.rate:
                due = min(BATCH, int(passed * options.rate) - sent)
                if due <= 0:
                    time.sleep(0.0005)
                    continue
            sent += batch.send(source.fileno(), due)
    return {"sent": sent, "seconds": time.monotonic() - begin}


def _ready() -> None:
    print("ready", flush=True)


def _listener(port: int) -> socket.socket:
    listener = socket.create_server(("", port), reuse_port=False, backlog=16)
    listener.settimeout(CONNECT_S)
    return listener


def _connect(options: argparse.Namespace) -> socket.socket:
    return socket.create_connection((options.host, options.port), timeout=CONNECT_S)


ROLES: Mapping[str, Callable[[argparse.Namespace], Mapping[str, object]]] = {
    "tcp-sink": tcp_sink,
    "tcp-source": tcp_source,
    "echo": echo,
    "ask": ask,
    "udp-sink": udp_sink,
    "udp-source": udp_source,
}


def main() -> int:
    """Plays one role; its report is the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=5201)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rate", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(ROLES[options.role](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
