"""Whether an endpoint with silent watches is still there: one question serves all of its watches.

A node has two watches, of the leases and of the config, and both are silent for hours. Each would
ask on its own whether its member is frozen; that was most of what a cluster at rest cost etcd. So
what one watch has heard counts for the other: an endpoint is asked when nothing has been heard from
it for a while, and watches that come with the question while it is asked share the answer.

An answer to another request does not show that the *watch* is still served. TCP's keepalive notices
a dead connection; no member is known that is alive and forgets a watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from pyflannel.records import dataclass

E = TypeVar("E")


class Alive(Generic[E]):
    """When each endpoint was last heard. Belongs to one event loop.

    Args:
        idle_s: an endpoint that was silent for so long is asked.
        ask: asks one; returns if it is alive, raises if it is not.
        now: a monotonic clock.
    """

    def __init__(
        self, idle_s: float, ask: Callable[[E], Awaitable[None]], now: Callable[[], float]
    ) -> None:
        self._idle_s = idle_s
        self._ask = ask
        self._now = now
        self._heard: dict[E, float] = {}
        self._asking: dict[E, _Question] = {}

    def heard(self, endpoint: E) -> None:
        """It has said something."""
        self._heard[endpoint] = self._now()

    def timeout_s(self, endpoint: E) -> float:
        """How long a watch may wait for its next answer until `check` has to be called."""
        return max(0.0, self._heard.get(endpoint, self._now()) + self._idle_s - self._now())

    async def check(self, endpoint: E) -> None:
        """Returns if the endpoint was heard lately, or is heard now.

        Raises:
            What `ask` raises.
        """
        if self.timeout_s(endpoint) > 0.0 and endpoint in self._heard:
            return
        question = self._asking.get(endpoint)
        if question is None:
            question = self._asking[endpoint] = _Question(
                asyncio.ensure_future(self._ask(endpoint))
            )
        question.waiting += 1
        try:
            # A watch that is closed meanwhile must not take the question away from the others.
            await asyncio.shield(question.task)
        finally:
            question.waiting -= 1
            if not question.waiting:
                question.task.cancel()
            if self._asking.get(endpoint) is question and (
                question.task.done() or not question.waiting
            ):
                del self._asking[endpoint]
        self.heard(endpoint)


@dataclass(slots=True)
class _Question:
    """One that is under way."""

    task: asyncio.Future[None]
    waiting: int = 0
    """Watches that want to know."""
