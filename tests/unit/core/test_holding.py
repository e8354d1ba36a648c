"""Taking a lease, keeping it, taking it back: every answer in every situation.

The model is a cluster of three nodes with one machine each, and a store of two subnets that answers
them truly, refuses them, does not answer, or carries a request out and loses the answer. Meanwhile
keys are deleted and taken over by strangers, etcd leases end, and time passes; each node does what
its machine says when it says so. What must hold is checked after every step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyflannel.core.holding import (
    CHECK_S,
    LONGEST_WAIT_S,
    STALE_S,
    Answer,
    Belief,
    Do,
    Holding,
)

DAY = 86400
HOUR = 3600.0
NODES = ("a", "b", "c")
SUBNETS = (1, 2)
STRANGER = "stranger"
TTL_S, MARGIN_S = 900, 200
"""In the model: fifteen checks long instead of 1,440, to meet more ends in less time."""
LATENCY_S = 0.002
"""What each request takes; so the end of a lease must not be counted from the answer."""

FAULTS = ("yes", "refuse", "silent", "lose the answer", "refuse writes", "refuse reads")


def machine(now=0.0, *, margin_s=HOUR):
    return Holding(now, margin_s=margin_s, rng=random.Random(1))


@dataclass
class Key:
    owner: str
    lease: int


@dataclass
class ModelStore:
    """Subnets, each with its owner and the etcd lease that it hangs on."""

    now: float = 0.0
    keys: dict[int, Key] = field(default_factory=dict)
    ends: dict[int, float] = field(default_factory=dict)
    granted: int = 0

    def pass_time(self, now: float) -> None:
        self.now = now
        for lease in [lease for lease, end in self.ends.items() if end <= now]:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        self.ends.pop(lease, None)
        self.keys = {subnet: key for subnet, key in self.keys.items() if key.lease != lease}

    def grant(self) -> int:
        self.granted += 1
        self.ends[self.granted] = self.now + TTL_S
        return self.granted


class Failed(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(answer.value)


class ModelNode:
    """A node: the machine, and what carries its steps out over the store."""

    def __init__(self, name: str, store: ModelStore) -> None:
        self.name = name
        self.store = store
        self.holding = Holding(store.now, margin_s=MARGIN_S, rng=random.Random(name))
        self.fault = "yes"
        self.subnet: int | None = None
        self.lease = 0
        self.acts: list[float] = []
        self.last_true = float("-inf")
        """When the key was last ours in the store, which the node cannot know."""

    def owns(self) -> bool:
        key = self.store.keys.get(self.subnet)
        return key is not None and key.owner == self.name

    def request(self, *, write: bool) -> bool:
        """Goes to the store; `True` if the answer will be lost after it was carried out."""
        refused = {"refuse", "refuse writes" if write else "refuse reads"}
        if self.fault in refused:
            raise Failed(Answer.REFUSED)
        if self.fault == "silent":
            raise Failed(Answer.UNREACHABLE)
        return self.fault == "lose the answer"

    def act(self, now: float) -> None:
        step = self.holding.step()
        assert step.at <= now
        self.acts.append(now)
        try:
            {
                Do.ATTEMPT: self.attempt,
                Do.LOOK: self.look,
                Do.RENEW: self.renew,
                Do.PUBLISH: self.publish,
            }[step.do](now)
        except Failed as failed:
            self.holding.failed(now + LATENCY_S, step.do, failed.answer)

    def attempt(self, now: float) -> None:
        lost = self.request(write=True)
        keys = self.store.keys
        mine = [subnet for subnet, key in keys.items() if key.owner == self.name]
        free = [subnet for subnet in SUBNETS if subnet not in keys]
        if mine:
            self.subnet, self.lease = mine[0], keys[mine[0]].lease
            self.store.ends[self.lease] = now + TTL_S
        elif free:
            self.subnet = self.subnet if self.subnet in free else free[0]
            self.lease = self.store.grant()
            keys[self.subnet] = Key(self.name, self.lease)
        else:
            raise Failed(Answer.FULL)
        if lost:
            raise Failed(Answer.UNREACHABLE)
        self.holding.won(now, TTL_S)

    def look(self, now: float) -> None:
        if self.request(write=False):
            raise Failed(Answer.UNREACHABLE)
        if self.owns():
            self.holding.shown(now)
        else:
            self.holding.lost(now, "it is not ours")

    def renew(self, now: float) -> None:
        lost = self.request(write=True)
        if self.lease not in self.store.ends:
            raise Failed(Answer.LEASE_ENDED)
        self.store.ends[self.lease] = now + TTL_S
        if lost:
            raise Failed(Answer.UNREACHABLE)
        self.holding.renewed(now, TTL_S)

    def publish(self, now: float) -> None:
        lost = self.request(write=True)
        if not self.owns():
            raise Failed(Answer.RACED)
        if lost:
            raise Failed(Answer.UNREACHABLE)
        self.holding.published()


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = ModelStore()
        self.nodes = {name: ModelNode(name, self.store) for name in NODES}
        self.run(0.0)

    def run(self, seconds: float) -> None:
        """Time passes; what is due is done in its order."""
        end = self.store.now + seconds
        for _ in range(100_000):
            node = min(self.nodes.values(), key=lambda node: node.holding.step().at)
            at = max(node.holding.step().at, self.store.now)
            if at > end:
                break
            self.store.pass_time(at)
            node.act(at)
            self.check()
        else:
            pytest.fail("the machines ask without a pause")
        self.store.pass_time(end)
        self.check()

    # What happens

    @rule(seconds=st.sampled_from([0.1, 1, 30, 61, 600, 1000]))
    def time_passes(self, seconds):
        self.run(seconds)

    @rule(name=st.sampled_from(NODES), fault=st.sampled_from(FAULTS))
    def a_node_is_answered_otherwise(self, name, fault):
        self.nodes[name].fault = fault

    @rule(subnet=st.sampled_from(SUBNETS))
    def a_key_is_deleted(self, subnet):
        self.store.keys.pop(subnet, None)

    @rule(subnet=st.sampled_from(SUBNETS))
    def a_stranger_takes_a_key_over(self, subnet):
        self.store.keys[subnet] = Key(STRANGER, self.store.grant())

    @rule(name=st.sampled_from(NODES))
    def an_etcd_lease_is_revoked(self, name):
        self.store.revoke(self.nodes[name].lease)

    @rule(name=st.sampled_from(NODES))
    def the_watch_tells_of_a_change(self, name):
        node = self.nodes[name]
        if node.holding.has:
            node.holding.doubt(self.store.now, "news")
        else:
            node.holding.wake(self.store.now)

    @rule(name=st.sampled_from(NODES))
    def the_attributes_change(self, name):
        self.nodes[name].holding.want(self.store.now)

    @rule()
    def everything_is_well_again(self):
        """All answer the truth and a stranger's subnets are free: bounded time is enough."""
        for node in self.nodes.values():
            node.fault = "yes"
        self.store.keys = {s: k for s, k in self.store.keys.items() if k.owner != STRANGER}
        self.run(CHECK_S + 3 * LONGEST_WAIT_S)
        holders = [node for node in self.nodes.values() if node.holding.has]
        assert len(holders) == len(SUBNETS)
        assert {node.subnet for node in holders} == set(SUBNETS)
        for node in holders:
            assert node.owns()
            assert node.holding.belief(self.store.now) is Belief.HELD

    # What must hold

    def check(self) -> None:
        now = self.store.now
        claims: dict[int, list[ModelNode]] = {}
        for node in self.nodes.values():
            if node.owns():
                node.last_true = now
            belief = node.holding.belief(now)
            if belief is Belief.HELD:
                assert now - node.last_true <= STALE_S, f"{node.name} claims what it has not"
                assert node.holding.end is None or now < node.holding.end
                claims.setdefault(node.subnet, []).append(node)
        for rivals in claims.values():
            owners = [node for node in rivals if not node.owns()]
            assert all(now - node.last_true <= STALE_S for node in owners)

    @invariant()
    def nobody_asks_without_a_pause(self):
        for node in self.nodes.values():
            recent = [at for at in node.acts if at > self.store.now - 1]
            assert len(recent) <= 60, f"{node.name} asked {len(recent)} times within a second"
            node.acts = recent

    @invariant()
    def there_is_a_next_step(self):
        for node in self.nodes.values():
            step = node.holding.step()
            assert step.at - self.store.now <= CHECK_S + LONGEST_WAIT_S
            assert step.why


Cluster.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestModel = Cluster.TestCase


class TestMachine:
    def test_it_begins_with_an_attempt(self):
        step = machine(5.0).step()
        assert (step.do, step.at) == (Do.ATTEMPT, 5.0)
        assert machine().belief(0.0) is Belief.NOT_HELD

    def test_a_lease_is_checked_each_minute_and_renewed_a_margin_before_its_end(self):
        holding = machine()
        holding.won(0.0, DAY)
        now, renewals, looks = 0.0, 0, 0
        while now < 2 * DAY:
            step = holding.step()
            now = step.at
            if step.do is Do.RENEW:
                renewals += 1
                holding.renewed(now, DAY)
            else:
                looks += 1
                holding.shown(now)
        assert renewals == 2
        assert 2 * DAY / CHECK_S <= looks <= 2 * DAY / (0.9 * CHECK_S) + 3

    def test_a_renewal_alone_confirms_nothing(self):
        holding = machine()
        holding.won(0.0, DAY)
        holding.renewed(STALE_S + 1, DAY)
        assert holding.belief(STALE_S + 1) is Belief.UNCONFIRMED
        assert holding.step().do is Do.LOOK
        assert holding.step().at <= STALE_S + 1

    def test_at_the_end_by_its_own_clock_it_is_not_held(self):
        """Looking and renewing go on: the store may have kept it."""
        holding = machine()
        holding.won(0.0, 600)
        holding.shown(599.0)
        assert holding.belief(599.9) is Belief.HELD
        assert holding.belief(600.0) is Belief.NOT_HELD
        assert holding.step().do in (Do.LOOK, Do.RENEW)

    def test_the_end_is_counted_from_the_sending(self):
        holding = machine()
        holding.won(100.0, DAY)
        assert holding.end == 100.0 + DAY

    def test_a_reservation_has_no_end_and_is_checked_all_the_same(self):
        holding = machine()
        holding.won(0.0, None)
        assert holding.end is None
        assert holding.step().do is Do.LOOK
        assert holding.belief(10.0) is Belief.HELD

    @pytest.mark.parametrize("answer", list(Answer))
    @pytest.mark.parametrize("do", list(Do))
    def test_after_every_answer_to_everything_there_is_a_next_step(self, do, answer):
        """A thousand times over, never without a pause in the long run and never far away."""
        holding = machine()
        if do is not Do.ATTEMPT:
            holding.won(0.0, DAY)
            holding.want(0.0)
        now = 0.0
        for _ in range(1000):
            holding.failed(now, do, answer)
            step = holding.step()
            assert step.at <= now + max(CHECK_S, LONGEST_WAIT_S)
            now = max(now, step.at) + LATENCY_S

    def test_refusals_are_retried_soon_and_without_end(self):
        """When the role is given back, the node comes within ten seconds."""
        holding = machine()
        holding.won(0.0, DAY)
        holding.lost(10.0, "deleted")
        now = 10.0
        for _ in range(200):
            holding.failed(now, Do.ATTEMPT, Answer.REFUSED)
            assert now < holding.step().at <= now + 10.0
            now = holding.step().at

    def test_news_end_a_wait_within_a_second_and_spread(self):
        times = set()
        for seed in range(100):
            holding = Holding(0.0, margin_s=HOUR, rng=random.Random(seed))
            for _ in range(10):
                holding.failed(0.0, Do.ATTEMPT, Answer.FULL)
            holding.wake(1.0)
            assert 1.0 <= holding.step().at <= 2.0
            times.add(round(holding.step().at, 1))
        assert len(times) > 8

    def test_doubts_do_not_hurry_a_look_that_is_refused(self):
        holding = machine()
        holding.won(0.0, DAY)
        for _ in range(10):
            holding.failed(0.0, Do.LOOK, Answer.REFUSED)
        at = holding.step().at
        holding.doubt(0.1, "news")
        assert holding.step().at == at

    def test_a_failing_look_does_not_keep_the_lease_from_being_renewed(self):
        """A role may lack read and the renewal needs none."""
        holding = machine()
        holding.won(0.0, DAY)
        now = 0.0
        for _ in range(100_000):
            step = holding.step()
            now = step.at
            if step.do is Do.RENEW:
                break
            holding.failed(now, Do.LOOK, Answer.REFUSED)
        assert now == pytest.approx(DAY - HOUR, abs=1)
