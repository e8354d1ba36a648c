"""Bounds what strangers can hold of a server: connections, and time without a request.

The health port is open to every host that reaches the node. Without bounds 1,500 connections that
send nothing take all descriptors of the daemon, and then it answers no one.

A connection must complete a request within `request_s` of its beginning, and the next one within
`idle_s` of the last; single bytes do not count. When there are `most` connections and one more
comes, the one that has waited longest goes. So a probe, which asks at once, is answered during a
flood.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one server."""

    most: int = 64
    """Connections at a time. A node has a few probes and scrapers, each with one."""
    request_s: float = 5.0
    """For the first request. A kubelet gives a whole probe 1 s by default."""
    idle_s: float = 75.0
    """Until the next request; aiohttp's own default for a kept connection."""


class Gate:
    """A protocol factory around another one.

    Args:
        make: makes the protocol of one connection.
        limits: the bounds.
    """

    def __init__(self, make: Callable[[], asyncio.Protocol], limits: Limits) -> None:
        self._make = make
        self._limits = limits
        self._open: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        """Connections with their deadlines, the one that has waited longest first."""

    def __call__(self) -> asyncio.Protocol:
        """For `loop.create_server`."""
        return _Guarded(self._make(), self)

    def __len__(self) -> int:
        return len(self._open)

    def served(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole request has come in; the connection may wait for the next one."""
        if transport is not None and transport in self._open:
            self._open.pop(transport).cancel()
            self._await_request(transport, self._limits.idle_s)

    def admit(self, transport: asyncio.BaseTransport) -> None:
        """A connection begins."""
        if len(self._open) >= self._limits.most:
            self._drop(next(iter(self._open)))
        self._await_request(transport, self._limits.request_s)

    def release(self, transport: asyncio.BaseTransport) -> None:
        """A connection has ended."""
        deadline = self._open.pop(transport, None)
        if deadline is not None:
            deadline.cancel()

    def _await_request(self, transport: asyncio.BaseTransport, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._open[transport] = loop.call_later(seconds, self._drop, transport)

    def _drop(self, transport: asyncio.BaseTransport) -> None:
        self.release(transport)
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()  # not close: that waits for a client who does not read


class _Guarded(asyncio.Protocol):
    """Hands everything on to the real protocol, and tells the gate of beginning and end."""

    def __init__(self, inner: asyncio.Protocol, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._gate.admit(transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._gate.release(self._transport)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
