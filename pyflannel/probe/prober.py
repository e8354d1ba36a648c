"""Probes the peers in turn and keeps their answers.

One task, one loop: send what is due, read the answers, judge what is late, sleep. The loop does not
wake for each answer: the kernel records when each arrived, so answers are read when the loop wakes
anyway, which saves a node with 1,000 peers most of its wake-ups. A probe is late only if the socket
has been emptied after its deadline. So a slow daemon blames no peer, and after a pause of the whole
machine the probes of that time do not count.

Probes only inform: no route changes because of them.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import islice
from random import SystemRandom
from typing import Final, NamedTuple, NoReturn, Protocol

from pyflannel.aio.clock import Clock, within
from pyflannel.aio.pace import drained, let_go, paced
from pyflannel.core.announce import Announcer
from pyflannel.core.errors import FlannelError
from pyflannel.core.ip import Family, IPAddress, SubnetKey
from pyflannel.logs import get_logger
from pyflannel.probe import echo
from pyflannel.probe.judge import Cause, State, Track, worst
from pyflannel.probe.schedule import FEW, Schedule
from pyflannel.probe.targets import Target
from pyflannel.probe.words import sentence
from pyflannel.records import dataclass
from pyflannel.report.model import ProbeFailure, ProbeReport
from pyflannel.report.problems import PEER_DOWN, PEER_SMALL_ONLY

log = get_logger(__name__)

TIMEOUT_S: Final = 1.0
"""A round trip by satellite takes 0.6 s."""
LEAST_SLEEP_S: Final = 0.2
"""Between two looks at sockets and schedule. All that is due meanwhile leaves together."""
MANY_SLEEP_S: Final = 0.4
"""The same with more than a few peers, when something is always due. A wake-up costs more than the
probes that leave then; a whole burst of the schedule leaves in this time."""
IDLE_S: Final = 60.0
"""Without a peer there is nothing to do."""
REOPEN_S: Final = 60.0
LATE_S: Final = 1.0
"""If the loop wakes later than this, it or the machine stood still."""
UNDERLAY_EVERY: Final = 6
LARGE_EVERY: Final = 10
LARGE_AGAIN: Final = 3
"""Of a peer that only small packets reach: it should soon show that the path is repaired."""
EAGER_TURNS: Final = 3
"""The first turns of a peer follow each other at once: its route may have just been made."""
FRESH_S: Final = 60.0
AGAIN_S: Final = 1.0
"""For this long after its failure a peer is probed again this soon after each miss: most come
back."""
FEW_ILL: Final = 5
MOST_FAILING_SHOWN: Final = 100

_ILL: Final = frozenset({State.DOWN, State.SMALL_ONLY})
_ANSWERING: Final = frozenset({State.UP, State.SMALL_ONLY})


class Echoes(Protocol):
    """ICMP echo of one family; see `kernel.icmp.EchoSocket`."""

    @property
    def ident(self) -> int:
        """The identifier in all of its requests."""
        ...

    def send(self, address: IPAddress, message: bytes) -> int:
        """Sends; 0 or an `errno`."""
        ...

    def receive(self) -> Iterator[tuple[bytes, float]]:
        """The answers that have arrived, and when."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


@dataclass(slots=True, eq=False)
class _Peer:
    """One peer in one family."""

    target: Target
    track: Track
    turns: int = 0
    gone: bool = False


class _Sent(NamedTuple):
    peer: _Peer
    kind: str
    """`tunnel`, `underlay`, `size`."""
    size: int
    at: float
    """Seconds since the epoch."""
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """What is known of one peer."""

    state: State
    reason: str
    cause: Cause
    since: float | None
    heard: float | None
    rtt_s: float | None
    loss: float | None
    mtu: int | None
    underlay_heard: float | None
    underlay_rtt_s: float | None


UNSEEN: Final = PeerView(
    state=State.UNKNOWN,
    reason="",
    cause=Cause.NONE,
    since=None,
    heard=None,
    rtt_s=None,
    loss=None,
    mtu=None,
    underlay_heard=None,
    underlay_rtt_s=None,
)
"""The state of a peer that is not probed."""


@dataclass(slots=True)
class _Counts:
    sent: int = 0
    answered: int = 0
    lost: int = 0
    void: int = 0


@dataclass(slots=True)
class Prober:
    """Probes the peers of one node. `run` once, the rest at any time in the event loop.

    Args:
        base_s: seconds between two turns of a peer, where there are few.
        clock: the time.
        open_echoes: gives the edge of a family; raises `FlannelError`.
        mtu: bytes of the largest packet that the overlay promises to carry, by family.
        random: numbers from 0 to 1.
    """

    base_s: float
    clock: Clock
    open_echoes: Callable[[Family], Echoes]
    mtu: Callable[[Family], int]
    random: Callable[[], float] = field(default_factory=lambda: SystemRandom().random)
    _schedule: Schedule[_Peer] = field(init=False)
    _peers: dict[SubnetKey, tuple[_Peer, ...]] = field(init=False, default_factory=dict)
    _pending: dict[SubnetKey, Sequence[Target]] = field(init=False, default_factory=dict)
    _sent: dict[int, _Sent] = field(init=False, default_factory=dict)
    _edges: dict[Family, Echoes] = field(init=False, default_factory=dict)
    _closed: dict[Family, tuple[str, float]] = field(init=False, default_factory=dict)
    _secret: bytes = field(init=False, default_factory=lambda: os.urandom(echo.SECRET))
    _number: int = field(init=False, default=0)
    _states: Counter[State] = field(init=False, default_factory=Counter)
    """Peers by state; kept, because the report is made each second."""
    _ill: dict[SubnetKey, State] = field(init=False, default_factory=dict)
    _counts: _Counts = field(init=False, default_factory=_Counts)
    _changed: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _said: Announcer[SubnetKey] = field(init=False, default_factory=Announcer)

    def __post_init__(self) -> None:
        self._schedule = Schedule(self.base_s, self.random, self.clock.monotonic())

    def update(self, changes: Mapping[SubnetKey, Sequence[Target]]) -> None:
        """Sets the targets of some peers from now on; no target for a peer that is gone.

        A peer with unchanged targets keeps its state.
        """
        self._pending |= changes
        self._changed.set()

    async def run(self) -> NoReturn:
        """Probes until cancelled."""
        planned = self.clock.monotonic()
        try:
            while True:
                self._changed.clear()
                now = self.clock.monotonic()
                await self._take(now)
                self._receive()
                self._expire(now, paused=now - planned > LATE_S)
                self._send(now)
                least = MANY_SLEEP_S if len(self._peers) > FEW else LEAST_SLEEP_S
                planned = max(self._next(now), self.clock.monotonic() + least)
                delay = planned - self.clock.monotonic()
                if delay <= MANY_SLEEP_S:
                    await self.clock.sleep(delay)
                    continue
                await within(self.clock, delay, self._changed.wait())
                if self._changed.is_set():  # many in a row are one
                    await self.clock.sleep(LEAST_SLEEP_S)
                    planned = self.clock.monotonic()
        finally:
            for edge in self._edges.values():
                edge.close()

    # Peers

    async def _take(self, now: float) -> None:
        pending, self._pending = self._pending, {}
        new: list[_Peer] = []
        async for key, wanted in paced(pending.items()):
            known = self._peers.get(key, ())
            if tuple(peer.target for peer in known) == tuple(wanted):
                continue
            self._drop(key)
            if wanted:
                peers = tuple(
                    _Peer(each, Track(has_underlay=each.underlay is not None)) for each in wanted
                )
                self._peers[key] = peers
                self._states[State.UNKNOWN] += 1
                new += peers
        spread = self._schedule.spread(len(new))
        async for peer in drained(new):
            self._schedule.add(peer, now, spread)
        await let_go(pending)

    def _drop(self, key: SubnetKey) -> None:
        known = self._peers.get(key)
        if known is None:
            return
        self._states[_state(known)] -= 1
        self._ill.pop(key, None)
        self._said.forget(key)
        del self._peers[key]
        for peer in known:
            peer.gone = True
            self._schedule.remove(peer)

    # Sending

    def _send(self, now: float) -> None:
        while (peer := self._schedule.due(now)) is not None:
            edge = self._edge(peer.target.family, now)
            if edge is None:
                continue
            packets = 0
            for kind, address, size in self._turn(peer):
                self._one(edge, peer, kind, address, size)
                packets += 1
            self._schedule.sent(packets)

    def _turn(self, peer: _Peer) -> Iterator[tuple[str, IPAddress, int]]:
        target, track = peer.target, peer.track
        small = echo.SMALLEST[target.family]
        ill = track.state is not State.UNKNOWN and track.tunnel.misses > 0
        # Outside the tunnel first: then it is judged first, and its result is part of the verdict.
        if target.underlay is not None and (
            ill or peer.turns % UNDERLAY_EVERY == 0 or peer.turns < EAGER_TURNS
        ):
            yield "underlay", target.underlay, small
        address = target.overlay[track.tunnel.misses % len(target.overlay)]
        yield "tunnel", address, small
        if track.state is not State.UNKNOWN and not ill:
            largest = self.mtu(target.family)
            every = LARGE_EVERY if track.state is State.UP else LARGE_AGAIN
            wanted = peer.turns % every == 1 or track.sizes.searching(small)
            if wanted and largest > small:
                yield "size", address, track.sizes.next(small, largest)
        peer.turns += 1

    def _one(self, edge: Echoes, peer: _Peer, kind: str, address: IPAddress, size: int) -> None:
        self._number += 1
        family = peer.target.family
        message = echo.request(family, edge.ident, self._secret, self._number, size)
        at = self.clock.time()
        refused = edge.send(address, message)
        if kind == "tunnel":
            peer.track.refused = errno.errorcode.get(refused, "") if refused else ""
        if kind == "size" and refused == errno.EMSGSIZE:
            return  # this node's device has a smaller MTU now, which says nothing about the path
        self._counts.sent += 1
        deadline = self.clock.monotonic() + TIMEOUT_S
        self._sent[self._number] = _Sent(peer, kind, size, at, deadline)

    def _edge(self, family: Family, now: float) -> Echoes | None:
        edge = self._edges.get(family)
        if edge is not None:
            return edge
        _, again = self._closed.get(family, ("", now))
        if now < again:
            return None
        try:
            edge = self._edges[family] = self.open_echoes(family)
        except FlannelError as error:
            if family not in self._closed:
                log.warning("peers are not probed", family=family, error=error)
            self._closed[family] = (str(error), now + REOPEN_S)
            return None
        self._closed.pop(family, None)
        return edge

    # Judging

    def _receive(self) -> None:
        for family, edge in self._edges.items():
            for message, at in edge.receive():
                number = echo.answer(family, message, self._secret)
                sent = self._sent.pop(number, None) if number is not None else None
                if sent is not None and not sent.peer.gone:
                    self._answered(sent, at)

    def _answered(self, sent: _Sent, at: float) -> None:
        self._counts.answered += 1
        took = at - sent.at
        rtt = took if 0 <= took <= TIMEOUT_S else None  # else the clock was set
        track = sent.peer.track
        if sent.kind == "size":
            searching = track.sizes.failed is not None
            track.sizes.answered(sent.size)
            if searching and track.sizes.searching(echo.SMALLEST[sent.peer.target.family]):
                self._schedule.soon(sent.peer, self.clock.monotonic())
        elif sent.kind == "tunnel":
            track.tunnel.answered(at, rtt)
        else:
            track.underlay.answered(at, rtt)
        self._settle(sent.peer)

    def _expire(self, now: float, *, paused: bool) -> None:
        while self._sent:
            number = next(iter(self._sent))
            if self._sent[number].deadline > now:
                break
            sent = self._sent.pop(number)
            if sent.peer.gone:
                continue
            if paused:
                self._counts.void += 1
            else:
                self._counts.lost += 1
                self._missed(sent, now)

    def _missed(self, sent: _Sent, now: float) -> None:
        peer, track = sent.peer, sent.peer.track
        if sent.kind == "underlay":
            track.underlay.missed()
        elif sent.kind == "size":
            if not track.tunnel.misses:
                track.sizes.missed(sent.size)
                self._schedule.soon(peer, now)
        else:
            track.tunnel.missed()
            if peer.turns < EAGER_TURNS or track.state in {State.UP, State.SMALL_ONLY}:
                self._schedule.soon(peer, now)
            elif track.since is not None and self.clock.time() - track.since < FRESH_S:
                # Of many, those that are not judged yet go first.
                wait = AGAIN_S * max(1.0, len(self._ill) / FEW_ILL)
                if wait < self._schedule.interval_s:
                    self._schedule.soon(peer, now + wait)
        self._settle(peer)

    def _settle(self, peer: _Peer) -> None:
        track = peer.track
        before = track.state
        if not track.settle(self.clock.time()):
            return
        key = peer.target.key
        others = [each.track.state for each in self._peers[key] if each is not peer]
        self._states[worst([before, *others])] -= 1
        state = worst([track.state, *others])
        self._states[state] += 1
        if state in _ILL:
            self._ill[key] = state
        else:
            self._ill.pop(key, None)
        if before is not State.UNKNOWN:
            self._say(peer)

    def _say(self, peer: _Peer) -> None:
        state, key = peer.track.state, peer.target.key
        if not self._said.worth(key, state, self.clock.monotonic()):
            return
        name = key.describe()
        via = peer.target.underlay or peer.target.overlay[0]
        if state is State.UP:
            log.info(f"peer {name} via {via} answers again", peer=name)
            return
        log.warning(
            f"peer {name} via {via}: {sentence(peer.target, peer.track)}",
            peer=name,
            code=PEER_DOWN if state is State.DOWN else PEER_SMALL_ONLY,
            others_not_logged=self._said.take_withheld(),
        )

    def _next(self, now: float) -> float:
        times = [now + IDLE_S]
        if self._sent:
            times.append(next(iter(self._sent.values())).deadline)
        turn = self._schedule.next()
        if turn is not None:
            times.append(turn)
        return min(times)

    # Reports

    def answering(self) -> list[IPAddress]:
        """The overlay addresses of the peers that answer."""
        return [
            peer.target.overlay[0]
            for peers in self._peers.values()
            for peer in peers
            if peer.track.state in _ANSWERING and not peer.track.tunnel.misses
        ]

    def view(self, key: SubnetKey) -> PeerView:
        """What is known of a peer."""
        peers = self._peers.get(key)
        return _view(peers) if peers is not None else UNSEEN

    def report(self) -> ProbeReport:
        """The probes of all peers, and the peers that fail. Cheap with any number of peers."""
        counts = self._counts
        return ProbeReport(
            interval_s=round(self._schedule.interval_s, 3),
            states={state.value: self._states[state] for state in State},
            sent=counts.sent,
            answered=counts.answered,
            lost=counts.lost,
            void=counts.void,
            refused="; ".join(text for text, _ in self._closed.values()),
            failing={
                key.describe(): _failure(self._peers[key])
                for key in islice(self._ill, MOST_FAILING_SHOWN)
            },
        )


def _state(peers: tuple[_Peer, ...]) -> State:
    return worst([peer.track.state for peer in peers])


def _view(peers: tuple[_Peer, ...]) -> PeerView:
    state = _state(peers)
    shown = next(peer for peer in peers if peer.track.state is state)
    track = shown.track
    heard = [peer.track.tunnel.heard for peer in peers if peer.track.tunnel.heard is not None]
    return PeerView(
        state=state,
        reason=sentence(shown.target, track),
        cause=track.cause,
        since=track.since,
        heard=max(heard, default=None),
        rtt_s=track.tunnel.rtt_s,
        loss=track.tunnel.loss,
        mtu=track.sizes.passed,
        underlay_heard=track.underlay.heard,
        underlay_rtt_s=track.underlay.rtt_s,
    )


def _failure(peers: tuple[_Peer, ...]) -> ProbeFailure:
    view = _view(peers)
    return ProbeFailure(
        state=view.state.value, cause=view.cause.value, text=view.reason, since=view.since
    )
