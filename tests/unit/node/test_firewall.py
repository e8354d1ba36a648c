"""The traffic rules of a node: failures hold nothing up, and are tried again."""

from __future__ import annotations

import asyncio

from pyflannel.core.errors import KernelError
from pyflannel.core.rules import RuleSet
from pyflannel.node.firewall import RETRY_S, Firewall
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.traffic.base import RulesApplied
from tests.support.node import FakeFirewall

RULES = RuleSet(families=())


async def test_a_failure_is_reported_since_it_began_and_tried_again():
    clock, manager, other = FakeClock(), FakeFirewall(), FakeFirewall()
    firewall = Firewall(manager, other, RULES, clock)
    manager.failing = KernelError("iptables", "filter", 0, "not found")
    assert await firewall.ensure() is False
    began = clock.time()
    task = asyncio.create_task(firewall.keep())
    await clock.advance(RETRY_S * 2.5)
    report = firewall.report()
    assert "not found" in report.failing
    assert report.failing_since == began
    manager.failing = None
    await clock.advance(RETRY_S)
    assert firewall.report().failing == ""
    assert firewall.report().failing_since is None
    assert other.removed == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_restored_rules_are_counted():
    class Repairing(FakeFirewall):
        async def ensure(self, rules, *, previous=None):
            return RulesApplied(changed=True, repaired=True)

    firewall = Firewall(Repairing(), FakeFirewall(), RULES, FakeClock())
    await firewall.ensure()
    await firewall.ensure()
    assert firewall.report().repairs == 2
