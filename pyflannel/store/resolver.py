"""Looks up names for aiohttp. Imported late, as aiohttp itself."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from pyflannel.aio.threads import ThreadPool


class Resolver(AbstractResolver):
    """Looks names up in our own threads: those of the loop are waited for at its end."""

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a host."""
        found = await self._threads.run(
            lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=of,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for of, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing: the threads are their owner's."""
