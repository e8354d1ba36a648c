"""The seam between what is asked of the API server and what carries it there.

`transport.py` does it with aiohttp, tests do it with a server in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from pyflannel.core.ip import IPAddress
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request."""

    method: str
    path: str
    """`/api/v1/nodes`."""
    query: Mapping[str, str]
    body: bytes = b""
    content_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    retry_after_s: float = 0.0
    """0 if the server does not say."""


class Stream(Protocol):
    """An answer that goes on. Belongs to one task."""

    async def chunk(self) -> bytes:
        """The next part, empty at the end.

        Raises:
            StoreError: the connection is gone, or what `abort` was given.
        """
        ...

    def abort(self, error: Exception) -> None:
        """Has a waiting `chunk`, or the next one, raise this."""
        ...

    def close(self) -> None:
        """Ends it. Twice is fine."""
        ...


class Transport(Protocol):
    """Carries requests. Every one has an end: a time-out, and `close`."""

    async def ask(self, request: Request) -> Reply:
        """The whole answer, whatever its status.

        Raises:
            StoreUnavailable: none came.
            StoreConfigError: credentials cannot be read.
        """
        ...

    async def stream(self, request: Request) -> Stream | Reply:
        """An answer that goes on; a `Reply` if its status is not 200.

        Raises:
            StoreUnavailable: none began.
            StoreConfigError: credentials cannot be read.
        """
        ...

    def drop(self, error: Exception) -> None:
        """Breaks all streams off, each with this error; new requests get new connections."""
        ...

    def addresses(self) -> Collection[IPAddress]:
        """Where the server was reached so far."""
        ...

    def describe(self) -> str:
        """The server's URL."""
        ...

    async def close(self) -> None:
        """Ends everything. Twice is fine."""
        ...
