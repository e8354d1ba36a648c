"""alloc: a subnet for this node and nothing else; another program carries the packets.

No device, no route, nothing per peer. The lease carries no backend type, as upstream's.

Source: upstream `pkg/backend/alloc/alloc.go`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyflannel.backend.base import Applied, BackendContext, BackendKind
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseEvent
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Notification
from pyflannel.report.model import NetworkReport

BACKEND_TYPE: Final = "alloc"
OVERHEAD: Final = {Family.V4: 0, Family.V6: 0}


def attrs(external: ExternalInterface) -> LeaseAttrs:
    """What an alloc node publishes: where it is."""
    return LeaseAttrs(public_ip=external.public_ip, public_ipv6=external.public_ipv6)


class AllocNetwork:
    """A network that carries nothing; see `Network` for the contract."""

    def __init__(self, external: ExternalInterface) -> None:
        self._external = external

    @property
    def mtu(self) -> int:
        """As in `Network`: the external interface's."""
        return self._external.mtu

    @property
    def near(self) -> Sequence[IPNetwork] | None:
        """As in `Network`."""
        return ()

    @property
    def neighbours_of(self) -> frozenset[int]:
        """As in `Network`."""
        return frozenset()

    def update(self, events: Sequence[LeaseEvent]) -> None:
        """As in `Network`: peers are none of our business."""

    def synced(self) -> None:
        """As in `Network`."""

    def notice(self, notification: Notification) -> bool:
        """As in `Network`: nothing concerns us."""
        del notification
        return False

    async def apply(self, *, full: bool) -> Applied:
        """As in `Network`."""
        del full
        return Applied()

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """As in `Network`."""
        del lease
        self._external = underlay
        return self.own_attrs()

    def own_attrs(self) -> LeaseAttrs:
        """As in `Network`."""
        return attrs(self._external)

    def report(self) -> NetworkReport:
        """As in `Network`."""
        return NetworkReport(backend=BACKEND_TYPE, mtu=self.mtu, underlay=self._external.name)

    def peer_counters(self, lease: Lease) -> Mapping[str, int] | None:
        """As in `Network`: nothing."""
        del lease
        return None

    async def detach(self) -> None:
        """As in `Network`."""


class AllocBackend:
    """The alloc backend; see `Backend` for the contract."""

    def __init__(self, context: BackendContext) -> None:
        self._external = context.underlay

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`."""
        del previous
        return attrs(self._external)

    async def attach(self, lease: Lease) -> AllocNetwork:
        """As in `Backend`."""
        del lease
        return AllocNetwork(self._external)


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    lease_type="",
    summary="a subnet and nothing else; another program carries the packets",
    overhead=OVERHEAD,
    moves_packets=False,
    route_per_peer=False,
    create=AllocBackend,
)
