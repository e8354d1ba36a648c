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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import BackendContext
from pyflannel.backend.engine import Engine
from pyflannel.backend.network import KernelNetwork, require_families
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.backend.registry import register
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ConfigError
from pyflannel.core.ip import IPAddress, IPNetwork, SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Link, Route

BACKEND_TYPE: Final = "host-gw"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGwPlan:
    """Desired state of host-gw; see `Plan`."""

    config: NetworkConfig
    external: ExternalInterface
    own: SubnetKey | None = None

    @property
    def underlay(self) -> str:
        """As in `Plan`."""
        return self.external.name

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

    def node_objects(self, view: View) -> Sequence[TableEntry]:
        """As in `Plan`: none."""
        del view
        return ()

    def destinations(self, lease: Lease) -> Sequence[IPAddress]:
        """As in `Plan`: the kernel itself refuses a gateway that is not on the link."""
        del lease
        return ()

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """As in `Plan`: one route for each family that both sides have."""
        problem = routes.type_problem(lease, BACKEND_TYPE)
        if problem:
            return PeerObjects(problem=problem)
        found: list[TableEntry] = []
        for family in self.config.families:
            subnet = lease.subnet(family)
            if subnet is None:
                continue
            gateway = routes.public_address(lease, family)
            if gateway is None:
                problem = f"it publishes no {family} address"
            elif view.underlay is not None:
                found.append(routes.peer_route(subnet, gateway, view.underlay.index))
        return PeerObjects(tuple(found), problem)

    def is_ours(self, thing: TableEntry, view: View, *, startup: bool) -> bool:
        """As in `Plan`: strays, at start-up."""
        return (
            startup
            and isinstance(thing, Route)
            and routes.is_stray(thing, self.config, self.own, view.underlay)
        )

    def concerns(self, dst: IPNetwork) -> bool:
        """As in `Plan`."""
        return routes.inside(dst, self.config, self.own)

    def attrs(self, links: Mapping[str, Link]) -> LeaseAttrs:
        """As in `OverlayPlan`."""
        del links
        return LeaseAttrs(
            public_ip=self.external.public_ip,
            public_ipv6=self.external.public_ipv6,
            backend_type=BACKEND_TYPE,
        )

    def rebased(self, external: ExternalInterface, lease: Lease | None) -> HostGwPlan:
        """As in `OverlayPlan`.

        Raises:
            ConfigError: the public address became another than the interface's.
        """
        check_no_nat(self.config, external)
        own = lease.key if lease is not None else self.own
        return replace(self, external=external, own=own)


def check_no_nat(config: NetworkConfig, external: ExternalInterface) -> None:
    """Peers use our public address as a next hop, so it must be the interface's own.

    Checked for IPv4 only, as upstream does: in IPv6 a second address of the same interface is
    common, and as good a next hop.

    Raises:
        ConfigError: with upstream's text.
    """
    if config.enable_ipv4 and external.public_ip != external.address:
        raise ConfigError(
            "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which "
            f"is not supported by host-gw backend (public {external.public_ip}, interface "
            f"{external.name} has {external.address})"
        )


@register(BACKEND_TYPE)
class HostGwBackend:
    """The host-gw backend; see `Backend` for the contract.

    Raises:
        ConfigError: the public IP is not the interface's.
    """

    def __init__(self, context: BackendContext) -> None:
        check_no_nat(context.config, context.underlay)
        self._plan = HostGwPlan(config=context.config, external=context.underlay)
        self._netlink = context.netlink
        self._store_addresses = context.store_addresses

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`: nothing to make."""
        del previous
        return self._plan.attrs({})

    async def attach(self, lease: Lease) -> KernelNetwork:
        """As in `Backend`."""
        require_families(lease, self._plan.config.families)
        plan = replace(self._plan, own=lease.key)
        engine = Engine(self._netlink, plan, store_addresses=self._store_addresses)
        return KernelNetwork(BACKEND_TYPE, engine, plan)
