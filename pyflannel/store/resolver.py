"""Looks up names for aiohttp. Imported late, as aiohttp itself."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence

from aiohttp.abc import AbstractResolver, ResolveResult

from pyflannel.aio.threads import ThreadPool
from pyflannel.store.names import look_up

Addresses = Callable[[str], Awaitable[Sequence[str]]]
"""Gives all addresses of a host; raises `OSError`."""


class Resolver(AbstractResolver):
    """Asks its owner: aiohttp would use the threads of the loop, which are waited for at its end.

    Args:
        addresses: who is asked.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a host."""
        found = [(address, _family(address)) for address in await self._addresses(host)]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=of,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address, of in found
            if family in {socket.AF_UNSPEC, of}
        ]

    async def close(self) -> None:
        """Nothing: `Names` is closed by its owner."""


def in_threads(threads: ThreadPool) -> Addresses:
    """Look-ups in threads of one's own."""

    async def addresses(host: str) -> Sequence[str]:
        return await threads.run(lambda: look_up(host))

    return addresses


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
