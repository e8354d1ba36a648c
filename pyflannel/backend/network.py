"""`KernelNetwork`: the `Network` of every backend whose packets the kernel carries alone.

All that differs between those backends is in their plan; the rest is the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, Self

from pyflannel.backend import routes
from pyflannel.backend.base import Applied, require_fit
from pyflannel.backend.engine import Engine
from pyflannel.backend.plan import Plan, TableEntry, View
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import LeaseError
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.core.kind import Kind
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseEvent
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Link, Notification
from pyflannel.report.model import NetworkReport


class OverlayPlan(Plan, Protocol):
    """A plan that also knows what its node publishes."""

    @property
    def config(self) -> NetworkConfig:
        """The network config."""
        ...

    @property
    def mtu(self) -> int:
        """Bytes a container may send."""
        ...

    def attrs(self, links: Mapping[str, Link]) -> LeaseAttrs:
        """What the lease must carry while the devices are as given."""
        ...

    def rebased(self, external: ExternalInterface, lease: Lease | None) -> Self:
        """The plan for another external interface, which fits, and, if given, another lease."""
        ...


# The library's, for classes of other packages may derive from it.
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)  # noqa: TID251
class NodePlan:
    """What the plans of most backends answer alike; a backend's own derives from it.

    A question that `Plan` learns to ask gets its usual answer here, so that backends of other
    packages go on working.
    """

    config: NetworkConfig
    external: ExternalInterface
    own: SubnetKey | None = None
    """`None` before there is a lease."""

    @property
    def underlay(self) -> str:
        """As in `Plan`."""
        return self.external.name

    @property
    def follows_routes(self) -> bool:
        """As in `Plan`: no."""
        return False

    def node_objects(self, view: View) -> Sequence[TableEntry]:
        """As in `Plan`: none."""
        del view
        return ()

    def destinations(self, lease: Lease) -> Sequence[IPAddress]:
        """As in `Plan`: none."""
        del lease
        return ()

    def concerns(self, dst: IPNetwork) -> bool:
        """As in `Plan`: to a subnet of the network that is not ours."""
        return routes.inside(dst, self.config, self.own)

    def rebased(self, external: ExternalInterface, lease: Lease | None) -> Self:
        """As in `OverlayPlan`."""
        own = lease.key if lease is not None else self.own
        return replace(self, external=external, own=own)


class KernelNetwork:
    """A network kept by an engine; see `Network` for the contract."""

    def __init__(self, kind: Kind, engine: Engine, plan: OverlayPlan) -> None:
        self._kind = kind
        self._engine = engine
        self._plan = plan

    @property
    def mtu(self) -> int:
        """As in `Network`."""
        return self._plan.mtu

    @property
    def near(self) -> Sequence[IPNetwork] | None:
        """As in `Network`."""
        return self._engine.near

    @property
    def neighbours_of(self) -> frozenset[int]:
        """As in `Network`."""
        return self._engine.neighbours_of

    def update(self, events: Sequence[LeaseEvent]) -> None:
        """As in `Network`."""
        self._engine.update(events)

    def synced(self) -> None:
        """As in `Network`."""
        self._engine.synced()

    def notice(self, notification: Notification) -> bool:
        """As in `Network`."""
        return self._engine.notice(notification)

    async def apply(self, *, full: bool) -> Applied:
        """As in `Network`."""
        return await self._engine.apply(full=full)

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """As in `Network`.

        Raises:
            ConfigError: this kind of backend cannot work on that interface.
        """
        require_fit(self._kind, self._plan.config, underlay)
        self._plan = self._plan.rebased(underlay, lease)
        self._engine.follow(self._plan)
        return self.own_attrs()

    def own_attrs(self) -> LeaseAttrs:
        """As in `Network`."""
        return self._plan.attrs(self._engine.links)

    def report(self) -> NetworkReport:
        """As in `Network`."""
        return replace(self._engine.report(), backend=self._kind.name, mtu=self.mtu)

    def peer_counters(self, lease: Lease) -> Mapping[str, int] | None:
        """As in `Network`: nothing."""
        del lease
        return None

    async def detach(self) -> None:
        """Leaves device and routes, so that packets flow while the daemon is restarted."""


def require_families(lease: Lease, families: Sequence[Family]) -> None:
    """Checks that a lease has a subnet of every enabled family.

    Raises:
        LeaseError: it lacks one.
    """
    for family in families:
        if lease.subnet(family) is None:
            raise LeaseError(
                f"the lease {lease.key.describe()} has no {family} subnet, which the network "
                "config enables; delete its key and start again"
            )
