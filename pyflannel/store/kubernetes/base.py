"""The seam between the requests to the API server and the code that sends them.

`transport.py` sends them with aiohttp; tests use a server in memory.
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
    """An answer that arrives in parts. Belongs to one task."""

    async def chunk(self) -> bytes:
        """The next part, empty at the end.

        Raises:
            StoreError: the connection is lost, or the error given to `abort`.
        """
        ...

    def abort(self, error: Exception) -> None:
        """Makes the waiting `chunk`, or the next one, raise this error."""
        ...

    def close(self) -> None:
        """Ends it. May be called twice."""
        ...


class Transport(Protocol):
    """Sends requests. Each one ends: by a time-out, or by `close`."""

    async def ask(self, request: Request) -> Reply:
        """The whole answer, with any status.

        Raises:
            StoreUnavailable: there was no answer.
            StoreConfigError: credentials cannot be read.
        """
        ...

    async def stream(self, request: Request) -> Stream | Reply:
        """An answer in parts; a `Reply` if its status is not 200.

        Raises:
            StoreUnavailable: there was no answer.
            StoreConfigError: credentials cannot be read.
        """
        ...

    def drop(self, error: Exception) -> None:
        """Aborts all streams with this error. New requests get new connections."""
        ...

    def addresses(self) -> Collection[IPAddress]:
        """Addresses at which the server has been reached so far."""
        ...

    def describe(self) -> str:
        """The server's URL."""
        ...

    async def close(self) -> None:
        """Ends everything. May be called twice."""
        ...
