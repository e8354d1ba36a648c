"""A node's probes of its peers: whom to ask, and what the answers add to its report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final, NoReturn

from pyflannel.aio.pace import paced
from pyflannel.aio.tasks import forever
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.kind import Kind, Probed
from pyflannel.core.lease import Lease, LeaseAdded, LeaseEvent, LeaseRemoved
from pyflannel.core.underlay import ExternalInterface
from pyflannel.logs import get_logger
from pyflannel.node.parts import Parts
from pyflannel.report.model import NetworkReport, ProbeReport

if TYPE_CHECKING:
    from pyflannel.probe.prober import PeerView, Prober
    from pyflannel.probe.targets import Target

log = get_logger(__name__)

SILENT_S: Final = 10.0
"""Between two looks at who is left out."""
TOLD_AT_ONCE: Final = 1_024
"""Peers; the loop goes on with other work in between."""


class Probing:
    """Probes while a node runs.

    The first probe leaves when the node is ready. The room `probe/` is imported then, so that it
    does not hold up the subnet.

    Args:
        parts: as the agent's.
        config: the network config in force.
        interval_s: between two probes of a peer; 0 for none.
        peers: the peers' leases, as they are now.
        network: the overlay, as it is now.
        underlay: the external interface, as it is now.
    """

    def __init__(
        self,
        parts: Parts,
        config: NetworkConfig,
        interval_s: float,
        peers: Callable[[], Mapping[SubnetKey, Lease]],
        network: Callable[[], NetworkReport],
        underlay: Callable[[], ExternalInterface],
    ) -> None:
        kind = parts.kinds.get(config.backend_type)
        self._families = _families(config, kind)
        self._probed = kind.probed if kind is not None else Probed.NOTHING
        self._overhead = kind.overhead if kind is not None else {}
        self._peers = peers
        self._network = network
        self._underlay = underlay
        self._clock = parts.clock
        self._silent: frozenset[str] = frozenset()
        self._open_echoes = parts.open_echoes
        self._interval_s = 0.0 if self._probed is Probed.NOTHING else interval_s
        self._prober: Prober | None = None
        self._open_knock = parts.open_knock if config.backend.minds_checksums() else None
        self._checksums = parts.checksums
        if config.backend.minds_checksums() and not (self._probes and self._open_knock):
            log.warning(
                "lost checksums are not looked for: peers are not probed",
                remedy="give a --probe-interval, or set TxChecksumOffload to true or false",
            )

    @property
    def _probes(self) -> bool:
        return self._interval_s > 0 and self._open_echoes is not None

    def changed(self, events: Iterable[LeaseEvent]) -> None:
        """Peers came, went or are other ones."""
        if self._prober is not None:
            gone = {each.lease.key: () for each in events if isinstance(each, LeaseRemoved)}
            there = [each.lease for each in events if isinstance(each, LeaseAdded)]
            self._prober.update({**gone, **self._targets(there)})

    async def run(self) -> NoReturn:
        """Probes until cancelled, or sleeps where nothing is to be probed."""
        if self._interval_s <= 0 or self._open_echoes is None:
            await asyncio.Event().wait()
            raise AssertionError("an endless wait ended")
        from pyflannel.probe.checksums import ChecksumProbe
        from pyflannel.probe.prober import Prober

        prober = Prober(self._interval_s, self._clock, self._open_echoes, self._mtu)
        self._prober = prober
        there = iter(list(self._peers()))
        while some := list(islice(there, TOLD_AT_ONCE)):
            peers = self._peers()  # one may have gone meanwhile
            prober.update(self._targets([peers[key] for key in some if key in peers]))
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            forever(group, "echoes", prober.run())
            forever(group, "left out", self._mind_silent(prober))
            if self._open_knock is not None:
                checksums = ChecksumProbe(
                    self._clock, self._open_knock, prober.answering, self._checksums
                )
                group.create_task(checksums.run(), name="checksums")
        raise AssertionError("an endless task ended")

    async def _mind_silent(self, prober: Prober) -> NoReturn:
        """What is not programmed is not asked: the question would leave by the default route."""
        while True:
            network = self._network()
            failing = [n.removeprefix("peer ") async for n in paced(network.failing)]
            silent = frozenset([*network.ignored, *failing])
            if silent != self._silent:
                names, self._silent = silent ^ self._silent, silent
                peers = list(self._peers().values())
                async for peer in paced(peers):
                    if peer.key.describe() in names:
                        prober.update(self._targets([peer]))
            await self._clock.sleep(SILENT_S)

    def _targets(self, leases: Sequence[Lease]) -> dict[SubnetKey, Sequence[Target]]:
        from pyflannel.probe.targets import targets

        return {
            lease.key: ()
            if self._silent and lease.key.describe() in self._silent
            else tuple(targets(lease, self._probed, self._families))
            for lease in leases
        }

    def _mtu(self, family: Family) -> int:
        # Of each family's own tunnel: what containers are told is one number for both.
        return self._underlay().mtu - self._overhead.get(family, 0)

    def report(self) -> ProbeReport:
        """The probes."""
        if self._prober is None:
            return ProbeReport(probed=self._probed.value, interval_s=self._interval_s)
        return replace(self._prober.report(), probed=self._probed.value)

    def view(self, key: SubnetKey) -> PeerView | None:
        """What is known of a peer; `None` while no peer is probed."""
        return self._prober.view(key) if self._prober is not None else None


def _families(config: NetworkConfig, kind: Kind | None) -> tuple[Family, ...]:
    return tuple(each for each in config.families if kind is not None and each in kind.families)
