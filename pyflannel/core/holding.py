"""One rule for taking a lease, keeping it and taking it back: a state machine without a clock.

The machine says what to do next, and when; the caller does it and reports what came of it:

    step = holding.step()           ATTEMPT · LOOK · PUBLISH · RENEW, with the time and the reason
    …the caller does that…          with whatever requests it takes
    holding.won(…) / shown(…) / renewed(…) / lost(…) / failed(…)

No answer ends the trying. Refused, unreachable, gone, another owner: each has its own back-off, and
after each there is a next step. There are only two situations, *seeking* (the next attempt is due
at some time) and *having* (a lease was won; a look, a renewal or a write is due). From having to
seeking leads only a look, or a sighting, that shows the key gone or another's.

What the machine claims is bound to what a read or a conditional write has shown:

* `HELD` for as long as that is not longer ago than one check and a little;
* `UNCONFIRMED` afterwards: the store does not answer, or refuses to, and by our own clock the lease
  has not ended;
* `NOT_HELD` while seeking, and from the lease's end by our own clock on. Packets flow on, as
  upstream's do: what the node routes is not this machine's business.

All times are seconds on one monotonic clock. The end of a lease is counted from the moment a
request was *sent*: the store's own count cannot have begun earlier.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from typing import Final

from pyflannel.core.renewal import Renewal
from pyflannel.records import dataclass

CHECK_S: Final = 60.0
"""The key is read again this long after it was last shown to be ours. The watch tells of changes
within milliseconds; this is for the day on which it does not. It costs 60 small reads an hour,
against 720 probes of a silent watch."""
STALE_S: Final = CHECK_S + 15.0
"""A claim holds for one check and the time that a request may take through all endpoints."""
JITTER: Final = 0.5
"""Share of each back-off that is left to chance, so that many nodes do not come in step."""
WAKE_SPREAD_S: Final = 1.0
"""After news that end the wait of all nodes (a subnet was freed, the config was widened) each
waiting node looks within this time: a hundred nodes come spread over a second instead of in one
instant."""


class Do(enum.Enum):
    """What the caller can be told to do."""

    ATTEMPT = "try to get a lease"
    LOOK = "read our key"
    PUBLISH = "write our attributes"
    RENEW = "renew the store's lease"


class Answer(enum.Enum):
    """Why something that was done did not succeed."""

    RACED = "another node was faster"
    LEASE_ENDED = "the store's lease has ended"
    FULL = "no subnet is free"
    IN_USE = "another live node uses our public IP"
    REFUSED = "the store refuses"
    UNREACHABLE = "the store does not answer"


class Belief(enum.StrEnum):
    """What a node may claim about its lease."""

    HELD = "held"
    UNCONFIRMED = "unconfirmed"
    NOT_HELD = "not held"


_BACKOFF: Final = {
    # First wait and ceiling, in seconds.
    Answer.RACED: (0.05, 1.0),
    Answer.LEASE_ENDED: (0.05, 1.0),
    Answer.FULL: (5.0, 30.0),
    Answer.IN_USE: (5.0, 5.0),
    Answer.REFUSED: (0.1, 10.0),
    Answer.UNREACHABLE: (0.1, 5.0),
}
"""RACED: the rival's write is there, so looking at once is right; of fifty nodes that start
together each loses two or three races. FULL: news end this wait (`wake`), the polling is for the
day on which they do not come. IN_USE: the other node may be switched off without any news. REFUSED:
somebody has to put a role or a password right, and then watches for the node to come back; what
costs the store much, an authentication, has a back-off of its own in the store's client.
UNREACHABLE: a person who repaired something should not have to wait longer."""

LONGEST_WAIT_S: Final = max(ceiling for _, ceiling in _BACKOFF.values())
"""No attempt is further away than this, whatever was answered before."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next."""

    do: Do
    at: float
    """When, on the caller's clock; in the past if it is due."""
    why: str
    """A phrase for the log."""


class Holding:
    """One node's lease. Not thread-safe; belongs to the keeper of the lease.

    Args:
        now: the caller's monotonic clock.
        margin_s: renew this long before the lease would end.
        rng: source of chance for the back-offs.
    """

    __slots__ = (
        "_attempt_at",
        "_attempt_why",
        "_confirmed",
        "_failures",
        "_look_at",
        "_look_why",
        "_margin_s",
        "_publish_at",
        "_random",
        "_renewal",
    )

    def __init__(self, now: float, *, margin_s: float, rng: random.Random) -> None:
        self._margin_s = margin_s
        self._random = rng
        self._failures: Counter[tuple[Do, Answer]] = Counter()
        self._renewal: Renewal | None = None
        self._confirmed = now
        self._look_at = now
        self._look_why = ""
        self._publish_at: float | None = None
        self._attempt_at = now
        self._attempt_why = "no lease yet"

    def renew_before_end(self, margin_s: float) -> None:
        """Sets the margin, for leases that are won from now on."""
        self._margin_s = margin_s

    @property
    def has(self) -> bool:
        """Whether a lease was won and nothing has shown its loss since."""
        return self._renewal is not None

    @property
    def confirmed(self) -> float:
        """When the key was last shown to be ours; without meaning before the first lease."""
        return self._confirmed

    @property
    def end(self) -> float | None:
        """When the lease ends by our own clock; `None` for a reservation, or without a lease."""
        return self._renewal.end if self._renewal is not None else None

    @property
    def renewal(self) -> Renewal | None:
        """When the lease is renewed, for a log; `None` while there is none."""
        return self._renewal

    def belief(self, now: float) -> Belief:
        """What may be claimed now."""
        if self._renewal is None or (self._renewal.end is not None and now >= self._renewal.end):
            return Belief.NOT_HELD
        return Belief.HELD if now - self._confirmed <= STALE_S else Belief.UNCONFIRMED

    def step(self) -> Step:
        """The next thing to do. There always is one."""
        if self._renewal is None:
            return Step(Do.ATTEMPT, self._attempt_at, self._attempt_why)
        steps = [Step(Do.LOOK, self._look_at, self._look_why)]
        if self._publish_at is not None:
            steps.append(Step(Do.PUBLISH, self._publish_at, "our attributes have changed"))
        if self._renewal.deadline is not None:
            steps.append(Step(Do.RENEW, self._renewal.deadline, self._renewal.reason))
        return min(steps, key=lambda step: step.at)

    # What came of it

    def won(self, sent: float, ttl_s: float | None) -> None:
        """A conditional write (or a read of what is ours) gave us a lease.

        Args:
            sent: when the request was sent that granted or renewed the store's lease.
            ttl_s: what it has from then on; `None` for a reservation.
        """
        self._renewal = Renewal(ttl_s, self._margin_s, sent)
        self._publish_at = None
        self._failures.clear()
        self._confirm(sent)

    def shown(self, sent: float) -> None:
        """A read that was sent then shows our key to be ours."""
        for answer in Answer:
            del self._failures[Do.LOOK, answer]
        self._confirm(sent)

    def renewed(self, sent: float, ttl_s: float | None) -> None:
        """The store's lease has `ttl_s` again; its key has still to be looked at."""
        if self._renewal is not None:
            self._renewal.succeeded(sent, ttl_s)
            for answer in Answer:
                del self._failures[Do.RENEW, answer]
            self.doubt(sent, "a renewal says nothing about the key")

    def lost(self, now: float, why: str) -> None:
        """A read or a sighting shows our key gone or another's."""
        self._renewal = None
        self._publish_at = None
        self._failures.clear()
        self._attempt_at = now
        self._attempt_why = why

    def failed(self, now: float, do: Do, answer: Answer) -> None:
        """What was to be done was not: there is a later time for it now."""
        wait = self._next_wait(do, answer)
        if do is Do.ATTEMPT:
            self._attempt_at = now + wait
            self._attempt_why = answer.value
        elif do is Do.LOOK:
            self._look_at = now + wait
            self._look_why = f"again, as {answer.value}"
        elif do is Do.PUBLISH:
            if self._publish_at is not None:
                self._publish_at = now + wait
            if answer in (Answer.RACED, Answer.LEASE_ENDED):
                self.doubt(now, answer.value)
        elif self._renewal is not None:
            self._renewal.failed(now)
            if answer is Answer.LEASE_ENDED:
                self.doubt(now, answer.value)

    # News

    def want(self, now: float) -> None:
        """Our attributes are not what the store holds: they have to be written."""
        if self._renewal is not None:
            self._publish_at = now

    def published(self) -> None:
        """They stand in the store."""
        self._publish_at = None
        for answer in Answer:
            del self._failures[Do.PUBLISH, answer]

    def doubt(self, now: float, why: str) -> None:
        """Our key may be another than we think; it has to be read.

        A look that fails keeps its back-off: doubts alone must not make us ask without a pause.
        """
        if not any(self._failures[Do.LOOK, answer] for answer in Answer) and self._look_at > now:
            self._look_at = now
            self._look_why = why

    def wake(self, now: float) -> None:
        """Something happened that may end our wait for a lease: the next attempt comes soon."""
        self._attempt_at = min(self._attempt_at, now + self._random.uniform(0, WAKE_SPREAD_S))

    def _confirm(self, sent: float) -> None:
        self._confirmed = max(self._confirmed, sent)
        # A tenth by chance: nodes that start together shall not read together ever after.
        self._look_at = sent + CHECK_S * (1 - self._random.uniform(0, 0.1))
        self._look_why = "a check"

    def _next_wait(self, do: Do, answer: Answer) -> float:
        first, ceiling = _BACKOFF[answer]
        # The exponent is bounded so that a week of failures does not overflow a float.
        wait = min(ceiling, first * 2.0 ** min(self._failures[do, answer], 16))
        self._failures[do, answer] += 1
        return wait * (1 - JITTER * self._random.random())
