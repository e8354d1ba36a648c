"""What can be done to a node's link to etcd, and to nothing else that it carries.

Cuts and losses are nft rules on the node, for the members' addresses alone. A slow link is a
detour: new connections are led to a relay that passes everything on later, and those from before
are reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Self

from pyflannel.lab.nodes import Node
from tests.integration.etcd_cluster.campaign.ground import HOSTS, PORT, Ground

RELAY: Final = "192.0.2.250"
RELAY_PORT: Final = 30000
DELAY_S: Final = 0.25
"""Each way, with each piece: half a second for a round trip, of which TLS needs two."""
LOSS_PERCENT: Final = 20
"""Each way: a third of the exchanges; TCP still gets through within seconds."""


def cut(node: Node, members: Sequence[int]) -> None:
    """No packet passes between the node and these members, and none says so."""
    hosts = ", ".join(HOSTS[n] for n in members)
    _install(
        node,
        f"chain out {{ type filter hook output priority 0; ip daddr {{ {hosts} }} drop; }}\n"
        f"chain in {{ type filter hook input priority 0; ip saddr {{ {hosts} }} drop; }}\n",
    )


def lose(node: Node) -> None:
    """Some packets between the node and etcd are lost."""
    hosts = ", ".join(HOSTS)
    some = f"numgen random mod 100 < {LOSS_PERCENT} drop"
    _install(
        node,
        f"chain out {{ type filter hook output priority 0; ip daddr {{ {hosts} }} {some}; }}\n"
        f"chain in {{ type filter hook input priority 0; ip saddr {{ {hosts} }} {some}; }}\n",
    )


def slow_down(node: Node) -> None:
    """All traffic between the node and etcd is delayed."""
    ways = "".join(
        f"ip daddr {host} tcp dport {PORT} dnat to {RELAY}:{RELAY_PORT + n};\n"
        for n, host in enumerate(HOSTS)
    )
    hosts = ", ".join(HOSTS)
    _install(
        node,
        f"chain detour {{ type nat hook output priority -100;\n{ways}}}\n"
        "chain out { type filter hook output priority 0;\n"
        f"ip daddr {{ {hosts} }} tcp dport {PORT} ct status ! dnat reject with tcp reset; }}\n",
    )


def mend(node: Node) -> None:
    """The link is as it was."""
    node.exec(["nft", "-f", "-"], stdin="table ip campaign {}\ndelete table ip campaign\n")


def _install(node: Node, chains: str) -> None:
    mend(node)
    node.exec(["nft", "-f", "-"], stdin=f"table ip campaign {{\n{chains}}}\n")


class Relays:
    """The detours; they run in a thread of their own in the members' namespace."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="relays", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._ground.enter()
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        servers = [
            await asyncio.start_server(self._accept(host), RELAY, RELAY_PORT + n)
            for n, host in enumerate(HOSTS)
        ]
        self._ready.set()
        await self._over.wait()
        for server in servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(
        self, host: str
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            with contextlib.suppress(OSError), contextlib.closing(writer):
                behind_reader, behind = await asyncio.open_connection(host, PORT)
                with contextlib.closing(behind):
                    ways = (_way(reader, behind), _way(behind_reader, writer))
                    tasks = [asyncio.ensure_future(way) for way in ways]
                    try:
                        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for one in tasks:
                            one.cancel()
                        await asyncio.gather(*tasks, return_exceptions=True)

        return pass_on


async def _way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        await asyncio.sleep(DELAY_S)
        writer.write(data)
        await writer.drain()
