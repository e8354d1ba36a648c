"""Keeps the masquerade and forward rules of this node, through one of the two traffic managers.

The rules are made before `subnet.env` is written, as upstream does, so that no container starts
without them. Afterwards they are looked at again whenever the manager notices a change, or every
`--iptables-resync` seconds where it cannot tell. Failing rules never stop the packets: they are
reported, shown in `status`, and tried again.
"""

from __future__ import annotations

import asyncio
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core.errors import FlannelError
from pyflannel.core.rules import RuleSet
from pyflannel.logs import get_logger
from pyflannel.node.trouble import Trouble
from pyflannel.report.model import RulesReport
from pyflannel.traffic.base import TrafficManager

log = get_logger(__name__)

RETRY_S: Final = 5.0
"""After a failure, upstream's resync period."""


class Firewall:
    """One task's worth of rules."""

    def __init__(
        self, manager: TrafficManager, other: TrafficManager, rules: RuleSet, clock: Clock
    ) -> None:
        self._manager = manager
        self._other = other
        self._rules = rules
        self._clock = clock
        self._lock = asyncio.Lock()
        self._trouble = Trouble(clock)
        self._networks = rules.networks
        self.repairs = 0
        """How often rules were restored that another program had removed."""

    def report(self) -> RulesReport:
        """What fails, and how often rules were restored."""
        trouble = self._trouble
        return RulesReport(repairs=self.repairs, failing=trouble.text, failing_since=trouble.since)

    async def ensure(self, *, previous: RuleSet | None = None) -> bool:
        """Makes the rules so; `False` after a failure, which has been reported."""
        if previous is not None:
            self._networks |= previous.networks
        async with self._lock:
            try:
                applied = await self._manager.ensure(self._rules, previous=previous)
            except FlannelError as error:
                if self._trouble.set(str(error)):
                    log.error(f"traffic rules not in place, retrying: {error}")
                return False
        if self._trouble.set(""):
            log.info("traffic rules are in place again")
        if applied.repaired:
            self.repairs += 1
            log.warning("traffic rules were removed by another program, restored them")
        return True

    async def replace(self, rules: RuleSet) -> None:
        """Puts other rules in the place of the present ones (the subnet changed)."""
        previous, self._rules = self._rules, rules
        self._networks |= rules.networks
        await self.ensure(previous=previous)

    async def keep(self) -> None:
        """Cleans up after earlier runs with other options, then watches. Runs until cancelled."""
        try:
            await self._other.remove(ours=self._networks)
            async with self._lock:
                await self._manager.remove(but=self._rules, ours=self._networks)
        except FlannelError as error:
            log.debug("rules of an earlier run not removed", error=error)
        while True:
            if self._trouble:
                await self._clock.sleep(RETRY_S)
            else:
                await self._manager.changed()
            await self.ensure()
