"""What may end the wait for a lease: another network config, and a subnet that is free again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from pyflannel.aio.backoff import Backoff
from pyflannel.aio.clock import Clock
from pyflannel.core.errors import StoreError
from pyflannel.logs import get_logger
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import DeleteEvent, PutEvent, Store
from pyflannel.store.etcd.netconfig import CONFIG_RETRY_S

log = get_logger(__name__)


class Listeners:
    """Two watches, from `start` to `stop`.

    Args:
        store: the etcd cluster.
        prefix: what all keys begin with.
        clock: the time.
        config: called at the start and when the config may be another one.
        room: called at the start and when a subnet may be free.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        clock: Clock,
        *,
        config: Callable[[], Awaitable[None]],
        room: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._config = config
        self._room = room
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def listening(self) -> bool:
        """Whether they run."""
        return bool(self._tasks)

    def start(self) -> None:
        """Has both called until `stop`; nothing if that is so already."""
        if self._tasks:
            return
        config = codec.config_key(self._prefix)
        leases = codec.subnets_prefix(self._prefix)
        self._tasks = [
            asyncio.create_task(
                self._follow(config, lambda _: True, self._config), name="config, for a lease"
            ),
            asyncio.create_task(
                self._follow(leases, _may_give_room, self._room), name="free subnets, for a lease"
            ),
        ]

    async def stop(self) -> None:
        """Ends them."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(
        self,
        prefix: bytes,
        matters: Callable[[PutEvent | DeleteEvent], bool],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """Calls `changed` now and at each event below a prefix that matters, without end."""
        backoff = Backoff()
        while True:
            try:
                # The revision comes first, so that nothing falls between the look and the watch.
                start = (await self._store.get(codec.config_key(self._prefix))).header.revision + 1
                await changed()
                stream = self._store.watch_prefix(prefix, start)
                async with contextlib.aclosing(stream):
                    async for response in stream:
                        backoff.reset()
                        if any(matters(event) for event in response.events):
                            await changed()
            except StoreError as error:
                # The attempts meet the same failure, and tell.
                log.debug("not listening for what ends the wait", error=error)
            await self._clock.sleep(max(backoff.next(), CONFIG_RETRY_S))


def _may_give_room(event: PutEvent | DeleteEvent) -> bool:
    return isinstance(event, DeleteEvent)
