"""host-gw: no tunnel at all, a plain route to every peer's subnet via its underlay address.

It is the fastest way there is and works only among nodes that share a link: each must be able to be
the next hop of every other. A peer elsewhere is refused by the kernel ("network is unreachable");
that is reported once and tried again, it may be a matter of an address that is still missing.

| object | per | recognised after a restart by |
|---|---|---|
| route `<subnet> via <public IP> dev <external interface>` | peer and family | `routes.is_stray` |

No device, no address, MTU of the external interface. The routes stay when the daemon ends.

Source: upstream `pkg/backend/hostgw/`, `pkg/backend/route_network.go`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import BackendContext, BackendKind
from pyflannel.backend.engine import Engine
from pyflannel.backend.network import KernelNetwork, NodePlan, require_families
from pyflannel.backend.peers import sites
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.core.config import NetworkConfig
from pyflannel.core.fields import Problem
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.core.kind import Probed
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Link, Route
from pyflannel.records import dataclass

BACKEND_TYPE: Final = "host-gw"
OVERHEAD: Final = {Family.V4: 0, Family.V6: 0}


# Whether it can work.


def suits(config: NetworkConfig, external: ExternalInterface | None) -> Iterable[Problem]:
    """Peers use our public address as a next hop, so it must be the interface's own.

    Checked for IPv4 only, as upstream does: in IPv6 a second address of the same interface is
    common, and as good a next hop.
    """
    if external is None or not config.enable_ipv4 or external.public_ip == external.address:
        return
    yield Problem.error(
        "",
        "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is "
        f"not supported by host-gw backend (public {external.public_ip}, interface "
        f"{external.name} has {external.address})",
    )


# What must be in the kernel, as pure functions.


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGwPlan(NodePlan):
    """Desired state of host-gw; see `Plan`.

    Paths are not looked at: the kernel itself refuses a gateway that is not on the link.
    """

    @property
    def mtu(self) -> int:
        """As in `OverlayPlan`: nothing is added to a packet."""
        return self.external.mtu

    @property
    def networks(self) -> Sequence[IPNetwork]:
        """As in `Plan`."""
        return routes.networks(self.config)

    def devices(self, underlay: Link | None) -> Sequence[Device]:
        """As in `Plan`: none."""
        del underlay
        return ()

    def tables(self) -> Sequence[Table]:
        """As in `Plan`."""
        return tuple(Table(Route, family) for family in self.config.families)

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """As in `Plan`: one route for each family that both sides have."""
        found, problem = sites(lease, BACKEND_TYPE, self.config.families)
        if view.underlay is None:
            return PeerObjects(problem=problem)
        oif = view.underlay.index
        objects = (routes.peer_route(site.subnet, site.address, oif) for site in found)
        return PeerObjects(tuple(objects), problem)

    def is_ours(self, thing: TableEntry, view: View, *, startup: bool) -> bool:
        """As in `Plan`: strays, at start-up."""
        return (
            startup
            and isinstance(thing, Route)
            and routes.is_stray(thing, self.config, self.own, view.underlay)
        )

    def attrs(self, links: Mapping[str, Link]) -> LeaseAttrs:
        """As in `OverlayPlan`."""
        del links
        return LeaseAttrs(
            public_ip=self.external.public_ip,
            public_ipv6=self.external.public_ipv6,
            backend_type=BACKEND_TYPE,
        )


class HostGwBackend:
    """The host-gw backend; see `Backend` for the contract."""

    def __init__(self, context: BackendContext) -> None:
        self._plan = HostGwPlan(config=context.config, external=context.underlay)
        self._context = context

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`: nothing to make."""
        del previous
        return self._plan.attrs({})

    async def attach(self, lease: Lease) -> KernelNetwork:
        """As in `Backend`."""
        require_families(lease, self._plan.config.families)
        plan = replace(self._plan, own=lease.key)
        engine = Engine.of(self._context, plan)
        return KernelNetwork(KIND, engine, plan)


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    summary="plain routes via the peers' addresses; all nodes must share a link",
    overhead=OVERHEAD,
    probed=Probed.NODE,
    suits=suits,
    create=HostGwBackend,
)
