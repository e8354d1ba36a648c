"""The loop that all backends share: takes what happened, and has the network converge.

What happens: leases change, the kernel changes, time passes, something failed before. When to act
on it is decided by `Schedule`, a state machine without clock or task; `Driver` waits, and calls.

* A changed lease is acted on at once. While a pass is under way, events pile up by lease (the last
  one counts), so a burst becomes a few passes and the queue is never longer than the cluster.
* A notification waits `DEBOUNCE_S` for its fellows: `ip link set down` sends dozens. If they keep
  coming (a flapping interface, a program that fights us for a route), passes are spaced further and
  further apart, up to `SPACING_MAX_S`, which still heals well within 2 s.
* Failures are retried with a backoff; every `resync_s` everything is compared in any case.
* A failure is logged when it appears and when it is over, not in between.

A lease event is kept until the network has taken it. One that the network cannot take (a defect,
brought up by what was written into a lease) is logged, counted and handed over again with each full
pass, and holds up no other.

Only the driver calls the network, one method at a time (`notice` excepted). An exception that is
none of ours is a defect: it is logged with its traceback, counted, and the loop goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import field, replace
from typing import Final, NoReturn

from pyflannel.aio.backoff import Backoff
from pyflannel.aio.clock import Clock, SystemClock
from pyflannel.aio.pace import Pace, let_go, paced
from pyflannel.aio.tasks import forever
from pyflannel.backend.base import (
    RESYNC_INTERVAL_S,
    Applied,
    Network,
    PartlyApplied,
)
from pyflannel.core.errors import ApplyError, DatapathError, FlannelError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAdded, LeaseAttrs, LeaseEvent
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Netlink, Notification, Notifications, Topic
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import NetworkReport

log = get_logger(__name__)

DEBOUNCE_S: Final = 0.05
"""Longer than the kernel takes to send what one command causes, short against the 2 s in which
everything must be healed."""
SPACING_MAX_S: Final = 0.8
"""Longest wait of a notification for its pass. With a pass of at most 0.2 s, healing stays under
1 s; a pass of 30 ms (1,000 peers) every 0.8 s is 4 % of a CPU while the storm lasts."""
CALM_S: Final = 2.0
"""After this long without notifications the next one gets the short wait again."""
RETRY_FIRST_S: Final = 0.25
RETRY_MAX_S: Final = RESYNC_INTERVAL_S
HANDED_AT_ONCE: Final = 200
"""Lease events that a network takes at a time, before others may have their turn: 1 ms."""
WHOLE: Final = "kernel"
"""What a pass failed with as a whole is told under."""
NAMED_FAILURES: Final = 20
"""New failures of one pass that get a log line each; the rest is a number, and in the status."""


@dataclass(frozen=True, slots=True)
class Due:
    """The next pass."""

    at: float
    """Monotonic seconds."""
    reason: str
    full: bool


class Schedule:
    """When the next pass is due and why. Pure: takes the time, gives the next deadline."""

    def __init__(self, resync_s: float, backoff: Backoff | None = None) -> None:
        self._resync_s = resync_s
        self._backoff = backoff or Backoff(first=RETRY_FIRST_S, ceiling=RETRY_MAX_S)
        self._lease: float | None = None
        self._notice: float | None = None
        self._retry: float | None = None
        self._resync = 0.0
        self._spacing = DEBOUNCE_S
        self._last_notice = float("-inf")

    def lease_changed(self, now: float) -> None:
        """A lease event, `synced` or a rebase arrived."""
        self._lease = now

    def noticed(self, now: float) -> None:
        """The kernel reported something relevant."""
        if now - self._last_notice > CALM_S:
            self._spacing = DEBOUNCE_S
        self._last_notice = now
        if self._notice is None:
            self._notice = now + self._spacing

    def next(self) -> Due:
        """The pass that is due first."""
        due = Due(self._resync, "resync", full=True)
        if self._retry is not None and self._retry < due.at:
            due = Due(self._retry, "retry", full=True)
        if self._notice is not None and self._notice < due.at:
            due = Due(self._notice, "notification", full=False)
        if self._lease is not None and self._lease < due.at:
            due = Due(self._lease, "leases", full=False)
        return due

    def started(self, due: Due) -> None:
        """The pass begins: it takes along all that was known when it began."""
        self._lease = None
        if self._notice is not None:
            self._notice = None
            self._spacing = min(self._spacing * 2, SPACING_MAX_S)
        if due.full:
            self._retry = None

    def ended(self, due: Due, now: float, *, failed: bool) -> None:
        """The pass is over."""
        if due.full:
            self._resync = now + self._resync_s
        if not failed:
            self._backoff.reset()
            self._retry = None
        elif self._retry is None:
            self._retry = now + self._backoff.next()


@dataclass(slots=True)
class DriverStats:
    """What the driver has seen; for the status and the metrics."""

    passes: Counter[str] = field(default_factory=Counter)
    """By reason: `leases`, `notification`, `retry`, `resync`."""
    changed: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    """By kind, see `Applied`."""
    defects: int = 0
    overflows: int = 0
    failing: dict[str, str] = field(default_factory=dict)
    """What fails now, with its reason."""
    failing_since: dict[str, float] = field(default_factory=dict)
    """When it began, in seconds since the epoch."""
    last_error: str = ""
    """The last failure there was, also if it is over."""
    last_pass_s: float = 0.0
    """How long the last pass took."""
    longest_pass_s: float = 0.0
    """The longest one since the start; as a rule the one that programmed the leases found then."""


class Driver:
    """Runs one network.

    Args:
        network: what to drive; nothing else calls it from now on.
        netlink: whose notifications are listened to.
        clock: the time; a test hands in a fake one.
        resync_s: seconds between full passes.
        attrs_changed: called when the attributes that our lease must carry became others (the VTEP
            MAC could not be put back); must not block.
        observe: told every notification, for others who follow the machine; must not block.
    """

    def __init__(
        self,
        network: Network,
        netlink: Netlink,
        *,
        clock: Clock | None = None,
        resync_s: float = RESYNC_INTERVAL_S,
        attrs_changed: Callable[[LeaseAttrs], None] | None = None,
        observe: Callable[[Notification], None] | None = None,
    ) -> None:
        self._network = network
        self._netlink = netlink
        self._clock = clock if clock is not None else SystemClock()
        self._schedule = Schedule(resync_s)
        self._attrs_changed = attrs_changed
        self._observe = observe
        self._attrs = network.own_attrs()
        self._events: dict[SubnetKey, LeaseEvent] = {}
        self._stuck: dict[SubnetKey, LeaseEvent] = {}
        self._refused: dict[str, FlannelError] = {}
        self._synced = False
        self._stream: Notifications | None = None
        self._heard: frozenset[int] = frozenset()
        """The links of whose neighbours the kernel tells us."""
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._busy = asyncio.Lock()
        self._attempts: Counter[str] = Counter()
        self.stats = DriverStats()

    @property
    def mtu(self) -> int:
        """Bytes a container may send."""
        return self._network.mtu

    @property
    def attrs(self) -> LeaseAttrs:
        """What our lease must carry, as of the last pass or rebase."""
        return self._attrs

    def submit(self, events: Sequence[LeaseEvent]) -> None:
        """Takes lease events; returns at once."""
        for event in events:
            known = self._events.pop(event.lease.key, None)
            if isinstance(known, LeaseAdded) and isinstance(event, LeaseAdded):
                event = LeaseAdded(event.lease, known.previous)  # noqa: PLW2901 - merged
            self._events[event.lease.key] = event
        if events:
            self._settled.clear()
            self._schedule.lease_changed(self._clock.monotonic())
            self._wake.set()

    def synced(self) -> None:
        """The first snapshot has been submitted: leftovers may be swept."""
        self._synced = True
        self._settled.clear()
        self._schedule.lease_changed(self._clock.monotonic())
        self._wake.set()

    async def settled(self) -> None:
        """Returns when all that was submitted has been through a pass, also one that failed."""
        await self._settled.wait()

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """Follows the machine between two passes; see `Network.rebase`."""
        async with self._busy:
            self._attrs = await self._network.rebase(underlay, lease)
            self._schedule.lease_changed(self._clock.monotonic())
            self._wake.set()
            return self._attrs

    async def detach(self) -> None:
        """The orderly end of the network; call it when `run` has been cancelled."""
        async with self._busy:
            await self._network.detach()

    async def run(self) -> NoReturn:
        """Drives the network until cancelled. The first pass is a full one and comes at once."""
        async with asyncio.TaskGroup() as group:
            forever(group, "kernel notifications", self._listen())
            forever(group, "backend passes", self._converge())
        raise AssertionError("a task group of endless tasks ended")

    async def _listen(self) -> NoReturn:
        backoff = Backoff()
        while True:
            try:
                await self._listen_once()
                reason = "the stream of notifications ended"
            except FlannelError as error:
                reason = str(error)
            except Exception as error:
                # A task's border: logged as a defect, and on we go.
                self.stats.defects += 1
                log.exception("defect while listening to the kernel")
                reason = str(error)
            # What happens until we listen again is not seen.
            self._notice(Notification(topic=Topic.OVERFLOW))
            log.debug("kernel notifications interrupted", reason=reason)
            await self._clock.sleep(backoff.next())

    async def _listen_once(self) -> None:
        self._heard = self._network.neighbours_of
        stream = self._netlink.notifications(near=self._network.near, neighbours_of=self._heard)
        async with aclosing(stream):
            self._stream = stream
            try:
                async for notification in stream:
                    self._notice(notification)
            finally:
                self._stream = None

    def _hear(self) -> None:
        """Has the kernel tell of the neighbours of the devices that a pass made or found."""
        indexes = self._network.neighbours_of
        if self._stream is None or indexes == self._heard:
            return
        new, self._heard = indexes - self._heard, indexes
        self._stream.hear_neighbours_of(indexes)
        # What was changed there since its tables were listed went by unheard.
        if new and self._network.notice(Notification(topic=Topic.OVERFLOW)):
            self._schedule.noticed(self._clock.monotonic())

    def _notice(self, notification: Notification) -> None:
        if self._observe is not None:
            self._observe(notification)
        if notification.topic is Topic.OVERFLOW:
            self.stats.overflows += 1
        if self._network.notice(notification):
            self._schedule.noticed(self._clock.monotonic())
            self._wake.set()

    async def _converge(self) -> NoReturn:
        while True:
            self._wake.clear()
            due = self._schedule.next()
            wait = due.at - self._clock.monotonic()
            if wait > 0:
                await self._wait(wait)
            else:
                async with self._busy:
                    await self._pass(due)
                    self._hear()
                    self._publish()

    async def _wait(self, seconds: float) -> None:
        """Until something is due or something happens."""
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleep, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            woken.cancel()

    async def _pass(self, due: Due) -> None:
        start = self._clock.monotonic()
        self._schedule.started(due)
        self.stats.passes[due.reason] += 1
        failed = True
        try:
            await self._hand_over(full=due.full)
            self._account(await self._network.apply(full=due.full))
            await self._report(self._refused)
            failed = bool(self._refused)
        except ApplyError as error:
            if isinstance(error, PartlyApplied):
                self._account(error.applied)
            await self._report({**self._refused, **error.failures})
        except FlannelError as error:
            await self._report({**self._refused, WHOLE: error})
        except Exception as error:
            # A task's border: a defect must not end the loop.
            self.stats.defects += 1
            text = f"{type(error).__name__}: {error}"
            if text != self.stats.last_error:
                log.exception("defect in a backend pass, going on")
            self.stats.last_error = text
        now = self._clock.monotonic()
        self.stats.last_pass_s = now - start
        self.stats.longest_pass_s = max(self.stats.longest_pass_s, now - start)
        self._schedule.ended(due, now, failed=failed)
        if not self._events and not self._synced:
            self._settled.set()

    async def _hand_over(self, *, full: bool) -> None:
        events, self._events = self._events, {}
        for key in events:
            self._stuck.pop(key, None)
        if full:
            events, self._stuck = {**self._stuck, **events}, {}
        self._refused = {
            name: error
            for name, error in self._refused.items()
            if name in {_peer(key) for key in self._stuck}
        }
        synced, self._synced = self._synced, False
        waiting = list(events.values())
        pace = Pace()
        for start in range(0, len(waiting), HANDED_AT_ONCE):
            self._hand_over_some(waiting[start : start + HANDED_AT_ONCE])
            await pace.breathe()
        if synced:
            self._network.synced()
        await let_go(events, waiting)

    def _hand_over_some(self, events: Sequence[LeaseEvent]) -> None:
        try:
            self._network.update(events)
        except Exception:
            # A defect; which of them it was is found out one by one. A network may be told the same
            # event twice.
            log.debug("lease events failed together, taking them one by one", exc_info=True)
            for event in events:
                self._hand_over_alone(event)

    def _hand_over_alone(self, event: LeaseEvent) -> None:
        try:
            self._network.update([event])
        except Exception as error:
            # A task's border: one lease must not keep the others out.
            key = event.lease.key
            self.stats.defects += 1
            if _peer(key) not in self._attempts:
                log.exception("defect with the lease of a peer, going on", peer=key.describe())
            self._stuck[key] = event
            self._refused[_peer(key)] = DatapathError(f"{type(error).__name__}: {error}")

    def _account(self, applied: Applied) -> None:
        self.stats.changed += applied.changed
        if applied.repaired:
            self.stats.repaired.update(applied.repaired)
            log.info("repaired what had been changed by others", **applied.repaired)

    async def _report(self, failures: Mapping[str, FlannelError]) -> None:
        """One line when a failure appears and one when it is over."""
        new = [name async for name in paced(failures) if name not in self._attempts]
        for name in new[:NAMED_FAILURES]:
            log.warning("not applied, will be retried", what=name, reason=str(failures[name]))
        if len(new) > NAMED_FAILURES:
            log.warning(
                "more is not applied, pyflannel status lists all of it",
                count=len(new) - NAMED_FAILURES,
            )
        over = [name async for name in paced(self._attempts) if name not in failures]
        for name in over[:NAMED_FAILURES]:
            log.info("recovered", what=name, attempts=self._attempts[name])
        if len(over) > NAMED_FAILURES:
            log.info("more recovered", count=len(over) - NAMED_FAILURES)
        async for name in paced(over):
            del self._attempts[name]
        began, now = self.stats.failing_since, self._clock.time()
        failing: dict[str, str] = {}
        since: dict[str, float] = {}
        async for name, error in paced(failures.items()):
            self._attempts[name] += 1
            failing[name] = self.stats.last_error = str(error)
            since[name] = began.get(name, now)
        self.stats.failing, self.stats.failing_since = failing, since

    def _publish(self) -> None:
        attrs = self._network.own_attrs()
        if attrs != self._attrs:
            self._attrs = attrs
            if self._attrs_changed is not None:
                self._attrs_changed(attrs)

    def peer_counters(self, lease: Lease) -> Mapping[str, int] | None:
        """As in `Network`."""
        return self._network.peer_counters(lease)

    def report(self) -> NetworkReport:
        """The network's report with what we counted."""
        stats = self.stats
        shown = self._network.report()
        # A network may also know of failures outside our passes (extension's commands).
        failing, since = {**shown.failing, **stats.failing}, dict(stats.failing_since)
        whole = stats.failing.get(WHOLE)
        if whole is not None and whole in shown.failing.values():
            # The network names what it failed with: one failure, under the better name.
            del failing[WHOLE]
            began = since.pop(WHOLE)
            since |= {name: began for name, text in shown.failing.items() if text == whole}
        return replace(
            shown,
            ignored_count=len(shown.ignored),
            failing_count=len(failing),
            passes=dict(stats.passes),
            changed=stats.changed,
            repaired=dict(stats.repaired),
            failing=failing,
            failing_since=since,
            last_error=stats.last_error,
            last_pass_s=round(stats.last_pass_s, 6),
            longest_pass_s=round(stats.longest_pass_s, 6),
            defects=stats.defects,
            notification_overflows=stats.overflows,
        )


def _peer(key: SubnetKey) -> str:
    """How a failure with a peer's lease is named."""
    return f"peer {key.describe()}"
