"""When the driver acts, and what it makes of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Self

import pytest

from pyflannel.aio.backoff import Backoff
from pyflannel.backend.base import Applied, PartlyApplied
from pyflannel.backend.driver import CALM_S, DEBOUNCE_S, SPACING_MAX_S, Driver, Schedule
from pyflannel.core.errors import ApplyError, KernelError
from pyflannel.core.lease import LeaseAdded, LeaseAttrs, LeaseRemoved
from pyflannel.kernel.base import Notification, Topic
from pyflannel.report.model import NetworkReport
from pyflannel.testing.fakeclock import FakeClock, settle
from pyflannel.testing.fakenetlink import FakeNetlink
from tests.support.overlay import lease, overflow

REFUSED = KernelError("route replace", "10.5.2.0/24", 101)


class Schedules:
    """A schedule without jitter that has had its first pass."""

    @staticmethod
    def running() -> Schedule:
        schedule = Schedule(10.0, Backoff(first=0.25, ceiling=10.0, jitter=0))
        first = schedule.next()
        assert (first.at, first.reason, first.full) == (0.0, "resync", True)
        schedule.started(first)
        schedule.ended(first, 0.0, failed=False)
        return schedule


def test_at_rest_there_is_a_full_pass_every_ten_seconds():
    schedule = Schedules.running()
    assert (schedule.next().at, schedule.next().full) == (10.0, True)


def test_leases_are_acted_on_at_once_and_cheaply():
    schedule = Schedules.running()
    schedule.lease_changed(3.0)
    assert (schedule.next().at, schedule.next().reason, schedule.next().full) == (
        3.0,
        "leases",
        False,
    )


def test_a_burst_of_notifications_is_one_pass():
    schedule = Schedules.running()
    for moment in (1.0, 1.01, 1.02):
        schedule.noticed(moment)
    assert schedule.next().at == pytest.approx(1.0 + DEBOUNCE_S)
    schedule.started(schedule.next())
    assert schedule.next().reason == "resync"


def test_a_storm_spaces_passes_out_but_never_beyond_what_heals_in_time():
    schedule = Schedules.running()
    now, waits = 1.0, []
    for _ in range(8):
        schedule.noticed(now)
        due = schedule.next()
        waits.append(due.at - now)
        now = due.at
        schedule.started(due)
        schedule.ended(due, now, failed=False)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(DEBOUNCE_S)
    assert waits[-1] == pytest.approx(SPACING_MAX_S)
    assert SPACING_MAX_S < 1.0
    schedule.noticed(now + CALM_S + 0.1)
    assert schedule.next().at == pytest.approx(now + CALM_S + 0.1 + DEBOUNCE_S)


def test_failures_are_retried_by_full_passes_further_and_further_apart():
    schedule = Schedules.running()
    schedule.lease_changed(1.0)
    due, now, waits = schedule.next(), 1.0, []
    for _ in range(4):
        schedule.started(due)
        schedule.ended(due, now, failed=True)
        due = schedule.next()
        assert (due.reason, due.full) == ("retry", True)
        waits.append(due.at - now)
        now = due.at
    assert waits == pytest.approx([0.25, 0.5, 1.0, 2.0])
    schedule.started(due)
    schedule.ended(due, now, failed=False)
    assert schedule.next().reason == "resync"


class FakeNetwork:
    """A network that records what it is told and does what it is asked to."""

    mtu = 1450

    def __init__(self) -> None:
        self.log: list[object] = []
        self.outcomes: list[Applied | Exception | Callable[[], Awaitable[object]]] = []
        self.attrs = LeaseAttrs(backend_type="vxlan")
        self.busy = False
        self.interesting = True

    near = ()
    neighbours_of: frozenset[int] = frozenset()

    def update(self, events: Sequence[object]) -> None:
        assert not self.busy
        self.log.append(list(events))

    def synced(self) -> None:
        self.log.append("synced")

    def notice(self, notification: Notification) -> bool:
        self.log.append(notification.topic)
        return self.interesting

    async def apply(self, *, full: bool) -> Applied:
        assert not self.busy, "two methods at once"
        self.busy = True
        try:
            self.log.append("full" if full else "apply")
            outcome = self.outcomes.pop(0) if self.outcomes else Applied()
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, Applied):
                return outcome
            await outcome()
            return Applied()
        finally:
            self.busy = False

    async def rebase(self, underlay, lease=None) -> LeaseAttrs:
        assert not self.busy
        self.log.append("rebase")
        return self.attrs

    def own_attrs(self) -> LeaseAttrs:
        return self.attrs

    def report(self) -> NetworkReport:
        return NetworkReport(backend="fake")

    async def detach(self) -> None:
        self.log.append("detach")


class Stand:
    """A driver that runs on a fake clock."""

    def __init__(self, network: FakeNetwork | None = None) -> None:
        self.network = network or FakeNetwork()
        self.netlink = FakeNetlink()
        self.clock = FakeClock()
        self.changed: list[LeaseAttrs] = []
        self.driver = Driver(
            self.network, self.netlink, clock=self.clock, attrs_changed=self.changed.append
        )

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.driver.run())
        await settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def test_the_first_pass_is_full_and_comes_at_once():
    async with Stand() as stand:
        assert stand.network.log == ["full"]
        await stand.clock.advance(9.9)
        assert stand.network.log == ["full"]
        await stand.clock.advance(0.2)
        assert stand.network.log == ["full", "full"]


async def test_settled_is_when_all_that_was_submitted_has_been_through_a_pass():
    async with Stand() as stand:
        await stand.driver.settled()
        stand.driver.submit([LeaseAdded(lease(2, "vxlan"))])
        stand.driver.synced()
        waiting = asyncio.ensure_future(stand.driver.settled())
        await asyncio.sleep(0)
        assert not waiting.done()
        await settle()
        assert waiting.done()
        assert stand.network.log[-2:] == ["synced", "apply"]
        assert stand.driver.report().longest_pass_s >= 0.0


async def test_events_are_handed_over_together_and_the_last_of_a_lease_counts():
    async with Stand() as stand:
        old, new = lease(2, "vxlan"), replace(lease(2, "vxlan"), attrs=LeaseAttrs())
        stand.driver.submit([LeaseAdded(new, old)])
        stand.driver.submit([LeaseAdded(old, new), LeaseAdded(lease(3, "vxlan"))])
        stand.driver.submit([LeaseRemoved(lease(3, "vxlan"))])
        stand.driver.synced()
        await settle()
        # Added twice: what was there before the first of the two is what is replaced.
        expected = [LeaseAdded(old, old), LeaseRemoved(lease(3, "vxlan"))]
        assert stand.network.log == ["full", expected, "synced", "apply"]


async def test_events_during_a_pass_wait_for_the_next():
    network = FakeNetwork()
    gate = asyncio.Event()
    network.outcomes = [gate.wait]
    async with Stand(network) as stand:
        for number in range(2, 60):
            stand.driver.submit([LeaseAdded(lease(number, "vxlan"))])
        await settle()
        assert network.log == ["full"]
        gate.set()
        await settle()
        assert [entry if isinstance(entry, str) else len(entry) for entry in network.log] == [
            "full",
            58,
            "apply",
        ]


async def test_a_notification_leads_to_a_pass_only_if_it_concerns_the_network():
    async with Stand() as stand:
        stand.netlink.notify(Notification(topic=Topic.ROUTE))
        await settle()
        assert stand.network.log == ["full", Topic.ROUTE]
        await stand.clock.advance(DEBOUNCE_S)
        assert stand.network.log == ["full", Topic.ROUTE, "apply"]
        stand.network.interesting = False
        stand.netlink.notify(overflow())
        await stand.clock.advance(1.0)
        assert stand.network.log[3:] == [Topic.OVERFLOW]
        assert stand.driver.stats.overflows == 1


async def test_neighbours_are_heard_of_the_links_that_a_pass_found_and_of_no_others():
    """What was changed on a new one before it was heard of is looked for once more."""
    network = FakeNetwork()
    network.neighbours_of = frozenset({7})

    async def moves() -> None:
        network.neighbours_of = frozenset({8})

    async with Stand(network) as stand:

        async def tell(index: int) -> None:
            stand.netlink.notify(Notification(topic=Topic.NEIGHBOUR, index=index))
            await settle()

        await tell(3)
        assert network.log == ["full"]
        await tell(7)
        assert network.log == ["full", Topic.NEIGHBOUR]
        network.outcomes = [moves]
        await stand.clock.advance(DEBOUNCE_S)
        await stand.clock.advance(1.0)
        assert network.log[2:] == ["apply", Topic.OVERFLOW, "apply"]
        await tell(7)
        await tell(8)
        assert network.log[5:] == [Topic.NEIGHBOUR]
        assert stand.driver.stats.overflows == 0


async def test_a_notification_stream_that_breaks_is_opened_again_and_counts_as_overflow():
    async with Stand() as stand:
        stand.netlink._subscriptions[0].close()
        await settle()
        assert stand.network.log == ["full", Topic.OVERFLOW]
        await stand.clock.advance(0.2)
        stand.netlink.notify(Notification(topic=Topic.LINK))
        await settle()
        assert stand.network.log[-1] is Topic.LINK


async def test_a_failure_is_a_warning_once_and_its_end_is_told(caplog):
    caplog.set_level("INFO")

    network = FakeNetwork()
    failed = PartlyApplied({"peer 10.5.2.0/24": REFUSED}, Applied(changed=2))
    network.outcomes = [failed, failed, failed]
    async with Stand(network) as stand:
        assert "ENETUNREACH" in stand.driver.stats.failing["peer 10.5.2.0/24"]
        await stand.clock.advance(9.0)
        assert stand.driver.stats.failing == {}
        assert stand.driver.stats.changed == 6
        assert "ENETUNREACH" in stand.driver.stats.last_error
        assert stand.driver.report().failing == {}
    messages = [r.message for r in caplog.records]
    assert messages.count("not applied, will be retried") == 1
    assert messages.count("recovered") == 1


async def test_what_the_network_names_itself_is_told_once_with_its_begin():
    class Naming(FakeNetwork):
        def report(self) -> NetworkReport:
            return NetworkReport(backend="fake", failing={"flannel0": str(REFUSED)})

    network = Naming()
    network.outcomes = [REFUSED]
    async with Stand(network) as stand:
        told = stand.driver.report()
        assert told.failing == {"flannel0": str(REFUSED)}
        assert told.failing_since == {"flannel0": stand.driver.stats.failing_since["kernel"]}
        assert told.failing_count == 1


async def test_a_thousand_failures_are_a_handful_of_lines(caplog):
    network = FakeNetwork()
    network.outcomes = [ApplyError({f"peer {n}": REFUSED for n in range(1000)})]
    async with Stand(network) as stand:
        assert len(stand.driver.stats.failing) == 1000
    assert len(caplog.records) < 30


async def test_a_defect_is_counted_and_told_once_and_the_loop_goes_on(caplog):
    network = FakeNetwork()
    network.outcomes = [ZeroDivisionError("a defect")] * 2
    async with Stand(network) as stand:
        await stand.clock.advance(2.0)
        assert network.log == ["full", "full", "full"]
        assert stand.driver.stats.defects == 2
    assert [r.levelname for r in caplog.records] == ["ERROR"]


async def test_a_lease_that_the_network_cannot_take_holds_up_no_other(caplog):
    """It is told once, shown, handed over again with each full pass, and forgotten with its end."""

    class Choosy(FakeNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.taken: set[object] = set()
            self.refused = 0

        def update(self, events) -> None:
            for event in events:
                if isinstance(event, LeaseAdded) and event.lease == lease(3, "vxlan"):
                    self.refused += 1
                    raise RecursionError("too deep")
                self.taken.add(event.lease.key)

    network = Choosy()
    async with Stand(network) as stand:
        stand.driver.submit([LeaseAdded(lease(n, "vxlan")) for n in (2, 3, 4)])
        stand.driver.synced()
        await settle()
        assert {lease(n, "vxlan").key for n in (2, 4)} <= network.taken
        name = f"peer {lease(3, 'vxlan').key.describe()}"
        assert "too deep" in stand.driver.report().failing[name]
        await asyncio.wait_for(stand.driver.settled(), 1)
        seen = network.refused
        await stand.clock.advance(30)
        assert network.refused > seen + 2
        stand.driver.submit([LeaseRemoved(lease(3, "vxlan"))])
        await settle()
        assert lease(3, "vxlan").key in network.taken
        assert stand.driver.report().failing == {}
    assert [r.levelname for r in caplog.records].count("ERROR") == 1


async def test_what_was_repaired_adds_up():
    network = FakeNetwork()
    network.outcomes = [
        Applied(repaired={"route": 2}),
        PartlyApplied({"x": REFUSED}, Applied(repaired={"route": 1, "fdb": 1})),
    ]
    async with Stand(network) as stand:
        await stand.clock.advance(11.0)
        assert stand.driver.report().repaired == {"route": 3, "fdb": 1}


async def test_attributes_that_became_others_are_reported():
    async with Stand() as stand:
        assert stand.changed == []
        stand.network.attrs = replace(stand.network.attrs, backend_data="{}")
        await stand.clock.advance(10.0)
        assert stand.changed == [stand.network.attrs]
        await stand.clock.advance(10.0)
        assert len(stand.changed) == 1


async def test_a_rebase_waits_for_the_pass_and_is_followed_by_one():
    network = FakeNetwork()
    gate = asyncio.Event()
    network.outcomes = [gate.wait]
    async with Stand(network) as stand:
        rebase = asyncio.create_task(stand.driver.rebase(None))
        await settle()
        assert network.log == ["full"]
        gate.set()
        await settle()
        assert await rebase == network.attrs
        assert network.log == ["full", "rebase", "apply"]


async def test_it_can_be_cancelled_in_the_middle_of_a_pass():
    network = FakeNetwork()
    network.outcomes = [lambda: asyncio.Event().wait()]
    async with Stand(network):
        pass
    assert not network.busy
    assert len(asyncio.all_tasks()) == 1
