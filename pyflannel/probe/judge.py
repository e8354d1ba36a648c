"""What answers and missing answers say about a peer. Pure: it is given events and their times.

A peer that has never answered is `unknown`, which is no problem: a firewall may drop echoes, the
bridge may not be there yet. Only a peer that has answered can fail. It fails with the fourth miss
in a row; the last three probes are each sent as soon as the one before is lost.

The node itself is also probed, outside the tunnel. So a peer that is `down` has one of three
causes: the node is away (its underlay address has answered before and does not now), the tunnel to
it is broken (that address answers), or unknown (that address has never answered).

Sizes: a peer that answers small packets gets one of the tunnel's full MTU from time to time. If
three of those are lost while small ones pass, the peer is `small-only`, and a binary search finds
the largest size that passes.
"""

from __future__ import annotations

import enum
from dataclasses import field
from typing import Final

from pyflannel.records import dataclass

FAILS_AT: Final = 4
"""Misses in a row. With 5 % random loss a healthy peer is called down once in 160,000 rounds."""
AWAY_AT: Final = 3
"""Misses in a row of the underlay address; as many as are sent while the tunnel is tried again."""
SIZE_FAILS_AT: Final = 3
WINDOW: Final = 20
"""Number of probes over which the loss is computed."""
PRECISION: Final = 8
"""Bytes between the largest size that passes and the smallest that does not; MTUs of links are
multiples of it or nearly so."""
_RTT_WEIGHT: Final = 0.25
"""Weight of a new round trip in the mean; RFC 6298 has half of it. A step shows after a few
rounds."""


class State(enum.StrEnum):
    """The state of a peer, by its probes."""

    UNKNOWN = "unknown"
    UP = "up"
    SMALL_ONLY = "small-only"
    DOWN = "down"


class Cause(enum.StrEnum):
    """Why a peer is down."""

    NONE = ""
    AWAY = "away"
    """The node no longer answers on the underlay."""
    TUNNEL = "tunnel"
    """The node answers on the underlay."""
    UNCLEAR = "unclear"
    """The node has never answered ping on the underlay."""


@dataclass(slots=True)
class Way:
    """The answers of one address."""

    heard: float | None = None
    """When it last answered, in seconds since the epoch."""
    rtt_s: float | None = None
    misses: int = 0
    """In a row."""
    _window: int = 0
    _seen: int = 0

    def answered(self, at: float, rtt_s: float | None) -> None:
        """An answer came."""
        self.heard = at if self.heard is None else max(at, self.heard)
        self.misses = 0
        if rtt_s is not None:
            known = self.rtt_s
            self.rtt_s = rtt_s if known is None else known + _RTT_WEIGHT * (rtt_s - known)
        self._note(1)

    def missed(self) -> None:
        """No answer came in time."""
        self.misses += 1
        self._note(0)

    def _note(self, bit: int) -> None:
        self._window = (self._window << 1 | bit) & ((1 << WINDOW) - 1)
        self._seen = min(self._seen + 1, WINDOW)

    @property
    def loss(self) -> float | None:
        """Share of the last probes that were not answered; `None` before the first answer."""
        if self.heard is None or not self._seen:
            return None
        return 1 - self._window.bit_count() / self._seen


@dataclass(slots=True)
class Sizes:
    """Which packet sizes pass. Bytes of the whole IP packet."""

    passed: int | None = None
    """The largest that passed."""
    failed: int | None = None
    """The smallest that did not pass while smaller ones did; `None` if all passed."""
    misses: int = 0
    """In a row, of one size."""

    def answered(self, size: int) -> None:
        """A packet of this size was answered."""
        self.misses = 0
        self.passed = size if self.passed is None or self.failed is None else max(size, self.passed)
        if self.failed is not None and size >= self.failed:
            self.failed = None

    def missed(self, size: int) -> None:
        """A packet of this size was not answered, although small ones were."""
        self.misses += 1
        if self.misses >= SIZE_FAILS_AT:
            self.misses = 0
            self.failed = size if self.failed is None else min(self.failed, size)
            if self.passed is not None and self.passed >= self.failed:
                self.passed = None

    def next(self, smallest: int, largest: int) -> int:
        """The size to try next.

        Args:
            smallest: of a small probe, which passes.
            largest: the tunnel's MTU.
        """
        if self.failed is None or self.failed > largest:
            return largest
        low = max(self.passed or smallest, smallest)
        return largest if self.failed - low <= PRECISION else (low + self.failed) // 2

    def searching(self, smallest: int) -> bool:
        """Whether the largest size that passes is still unknown."""
        if self.failed is None:
            return self.misses > 0
        return self.misses > 0 or self.failed - max(self.passed or 0, smallest) > PRECISION


@dataclass(slots=True)
class Track:
    """One peer in one family: all that its probes have said."""

    has_underlay: bool
    """Whether its node is also probed outside the tunnel."""
    tunnel: Way = field(default_factory=Way)
    underlay: Way = field(default_factory=Way)
    sizes: Sizes = field(default_factory=Sizes)
    state: State = State.UNKNOWN
    since: float | None = None
    """When the current state began."""
    refused: str = ""
    """The kernel's error if the last probe could not be sent."""

    def settle(self, now: float) -> bool:
        """Derives the state from the answers so far; whether it has changed."""
        found = self._state()
        if found is self.state:
            return False
        self.state, self.since = found, now
        return True

    def _state(self) -> State:
        if self.tunnel.heard is None:
            return State.UNKNOWN
        if self.tunnel.misses >= FAILS_AT:
            return State.DOWN
        if self.state is State.DOWN and self.tunnel.misses:
            return State.DOWN
        return State.SMALL_ONLY if self.sizes.failed is not None else State.UP

    @property
    def cause(self) -> Cause:
        """Why it is down."""
        if self.state is not State.DOWN:
            return Cause.NONE
        if not self.has_underlay:
            return Cause.AWAY
        if self.underlay.heard is None:
            return Cause.UNCLEAR
        return Cause.AWAY if self.underlay.misses >= AWAY_AT else Cause.TUNNEL


_WORST: Final = (State.DOWN, State.SMALL_ONLY, State.UP, State.UNKNOWN)


def worst(states: list[State]) -> State:
    """The worst of the states of a peer's families; `unknown` only if all are unknown."""
    return next((state for state in _WORST if state in states), State.UNKNOWN)
