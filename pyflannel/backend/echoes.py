"""Tells the kernel's reports of our own writes from those of changes by others.

The kernel sends a notification for every write, also to who wrote. Reading everything back after
each write would make a busy cluster read its tables all day, so each write leaves an expectation
that swallows one matching notification. A notification names the destination of a route but only
the device of a neighbour, so neighbours are counted per device.

An expectation that is not met (the kernel does not report what changed nothing) expires. A foreign
change that is swallowed in its place is found by the periodic full pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from pyflannel.core.ip import Family
from pyflannel.kernel.base import (
    Delete,
    FdbEntry,
    Neighbour,
    Notification,
    Operation,
    Route,
    Topic,
)

ECHO_EXPIRY_S: Final = 1.0
"""The kernel queues the echo before it answers the write, so only our own event loop delays it."""


class Echoes:
    """Expectations, each good for one notification."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._expected: Counter[tuple[object, ...]] = Counter()
        self._until = 0.0

    def expect(self, operations: Iterable[Operation]) -> None:
        """Our own writes are about to be made."""
        self._expire()
        for operation in operations:
            deleted = isinstance(operation, Delete)
            match operation.object:
                case Route(dst=dst):
                    self._expected[dst, deleted] += 1
                case Neighbour(index=index, ip=ip):
                    self._expected[index, Family(ip.version), deleted] += 1
                case FdbEntry(index=index):
                    self._expected[index, None, deleted] += 1
                case _:
                    pass
        self._until = self._clock() + ECHO_EXPIRY_S

    def swallow(self, notification: Notification) -> bool:
        """Whether this is an echo; then the expectation is used up."""
        self._expire()
        key: tuple[object, ...]
        if notification.topic is Topic.ROUTE:
            key = (notification.dst, notification.deleted)
        elif notification.topic is Topic.NEIGHBOUR:
            key = (notification.index, notification.family, notification.deleted)
        else:
            return False
        if key not in self._expected:
            return False
        self._expected[key] -= 1
        if not self._expected[key]:
            del self._expected[key]
        return True

    def clear(self) -> None:
        """Nothing is expected any more: notifications were lost."""
        self._expected.clear()

    def _expire(self) -> None:
        if self._clock() > self._until:
            self._expected.clear()
