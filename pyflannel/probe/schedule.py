"""When each peer is probed. Pure: it is given the time and returns what is due.

Each peer has its turn once an interval, at a time of its own that varies by a tenth, so that nodes
which started together do not probe together. The interval grows with the number of peers, and a
token bucket always bounds what a node sends.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FEW: Final = 20
"""Up to this many peers the interval is the configured one."""
MOST_PER_S: Final = 50.0
"""Packets a node may send."""
BURST: Final = 20.0
"""Packets that may leave at once: those of the 0.4 s between two looks at many peers."""
PACKETS_PER_TURN: Final = 1.3
"""One through the tunnel, one beside it every sixth turn, a large one every tenth; rounded up."""
JITTER: Final = 0.1
MOST_PASSED_OVER: Final = 1000
"""Most outdated entries passed over in one search for the next turn: 1 ms."""
FIRST_PER_S: Final = 25.0
"""Peers a second that are probed for the first time. Half of the packets are left for others."""


def interval(base_s: float, peers: int) -> float:
    """Seconds between two turns of a peer.

    Args:
        base_s: for few peers.
        peers: how many there are: 10 s become 26 s with 100, 49 s with 1,000, 130 s with 5,000.
    """
    stretched = base_s * (1 + math.log(peers / FEW)) if peers > FEW else base_s
    return max(stretched, peers * PACKETS_PER_TURN / MOST_PER_S)


class Schedule(Generic[K]):
    """Turns of peers.

    Args:
        base_s: seconds between two turns of a peer where there are few.
        random: gives numbers from 0 to 1.
        now: monotonic seconds.
    """

    def __init__(self, base_s: float, random: Callable[[], float], now: float) -> None:
        self._base_s = base_s
        self._random = random
        self._order = itertools.count()
        self._turns: list[tuple[float, int, K]] = []
        self._current: dict[K, int] = {}
        """The valid entry of each key. Older ones are passed over."""
        self._tokens = BURST
        self._filled = now

    @property
    def interval_s(self) -> float:
        """Between two turns of a peer, now."""
        return interval(self._base_s, len(self._current))

    def spread(self, new: int) -> float:
        """Seconds in which this many new peers should have their first turn."""
        return min(self.interval_s or self._base_s, 1 + new / FIRST_PER_S)

    def add(self, key: K, now: float, spread: float) -> None:
        """Adds a peer, with its first turn within `spread`, and then once an interval."""
        self._enter(key, now + self._random() * spread)

    def remove(self, key: K) -> None:
        """Removes a peer."""
        self._current.pop(key, None)

    def soon(self, key: K, now: float) -> None:
        """Makes a peer's next turn due at once."""
        if key in self._current:
            self._enter(key, now)

    def due(self, now: float) -> K | None:
        """The peer whose turn it is, with its next turn entered; `None` if none may have one now.

        The caller reports with `sent` how many packets the turn took.
        """
        self._fill(now)
        for _ in range(MOST_PASSED_OVER):
            if not self._turns:
                return None
            when, entry, key = self._turns[0]
            if self._current.get(key) != entry:
                heapq.heappop(self._turns)
                continue
            if when > now or self._tokens < 1:
                return None
            heapq.heappop(self._turns)
            jitter = 1 + JITTER * (2 * self._random() - 1)
            self._enter(key, now + self.interval_s * jitter)
            return key
        return None

    def sent(self, packets: int) -> None:
        """Takes this many packets from the bucket."""
        self._tokens -= packets

    def next(self) -> float | None:
        """When to ask again, in monotonic seconds; `None` if never.

        There may only be an outdated entry then.
        """
        if not self._turns:
            return None
        wait = max(0.0, 1 - self._tokens) / MOST_PER_S
        return max(self._turns[0][0], self._filled + wait)

    def _enter(self, key: K, when: float) -> None:
        entry = self._current[key] = next(self._order)
        heapq.heappush(self._turns, (when, entry, key))

    def _fill(self, now: float) -> None:
        self._tokens = min(BURST, self._tokens + (now - self._filled) * MOST_PER_S)
        self._filled = now
