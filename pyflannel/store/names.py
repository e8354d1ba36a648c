"""Addresses of a store's hosts, looked up where a dead DNS server holds nothing up.

A look-up blocks its thread, with a server that does not answer for half a minute. So look-ups have
threads of their own, one for each name at most, and the caller waits no longer than it wants to:
the answer is there for the next one. What was found is used again when the server is dead later.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from pyflannel.aio.threads import ThreadPool

THREADS: Final = 8
"""Names that are looked up at a time: a cluster has three to seven members."""
FRESH_S: Final = 30.0
"""An answer is used that long without another look-up: members seldom move."""
PATIENCE_S: Final = 1.0
"""How long a new answer is waited for where there is an old one."""


def is_address(host: str) -> bool:
    """Whether there is nothing to look up."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def look_up(host: str) -> tuple[str, ...]:
    """The addresses of a host, in the order in which they are to be tried; blocks.

    Raises:
        OSError: it has none, or the server does not answer.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


class Names:
    """The book of addresses; belongs to one event loop.

    Args:
        resolve: looks one name up, in a thread.
        now: a monotonic clock.
    """

    def __init__(
        self,
        resolve: Callable[[str], Sequence[str]] = look_up,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._now = now
        self._threads = ThreadPool("etcd-names", THREADS)
        self._known: dict[str, tuple[Sequence[str], float]] = {}
        self._asking: dict[str, asyncio.Task[Sequence[str]]] = {}

    async def addresses(self, host: str) -> Sequence[str]:
        """Where a host is; the host itself if it is an address.

        May be cancelled: the look-up goes on.

        Raises:
            OSError: the name is not known, and was not before.
        """
        if is_address(host):
            return (host,)
        known = self._known.get(host)
        if known is not None and self._now() - known[1] < FRESH_S:
            return known[0]
        asking = self._asking.get(host)
        if asking is None:
            asking = self._asking[host] = asyncio.create_task(self._ask(host), name=f"name {host}")
            asking.add_done_callback(lambda task: self._done(host, task))
        if known is None:
            return await asyncio.shield(asking)
        await asyncio.wait({asking}, timeout=PATIENCE_S)
        if asking.done() and not asking.cancelled() and asking.exception() is None:
            return asking.result()
        return known[0]

    async def _ask(self, host: str) -> Sequence[str]:
        found = await self._threads.run(lambda: self._resolve(host))
        self._known[host] = (found, self._now())
        return found

    def _done(self, host: str, task: asyncio.Task[Sequence[str]]) -> None:
        del self._asking[host]
        if not task.cancelled():
            task.exception()  # retrieved: a caller that still waits gets it as well

    async def close(self) -> None:
        """Leaves look-ups that do not end; their threads do not keep the process."""
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self._threads.close(0.0)
