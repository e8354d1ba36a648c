"""ipip: IP packets in IP packets, 20 bytes of overhead, IPv4 only.

One device, `flannel.ipip`, with a local address and no remote one: the next hop of each route is
the outer destination. A peer's public address is not on the device, hence the `onlink` flag.

| object | per | recognised by | set |
|---|---|---|---|
| device `flannel.ipip`, kind ipip, local = interface address, remote any | node | name | 1 |
| address `<own subnet address>/32` on it | node | being on it, inside the network | 2 |
| route `<subnet> via <public IP> dev flannel.ipip onlink` | peer | its device | 3 |
| with DirectRouting, on the same link: `… dev <external> onlink` | peer | `is_stray` | 3 |

A device of that name of another kind is not ours to remove: that is an error. (`tunl0` appears when
the module is loaded; it is not ours either.) Everything stays when the daemon ends. The IPv6 part
of a dual-stack lease is ignored.

Source: upstream `pkg/backend/ipip/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import BackendContext
from pyflannel.backend.devices import SysctlWriter
from pyflannel.backend.engine import Engine
from pyflannel.backend.network import KernelNetwork, require_families
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.backend.registry import register
from pyflannel.core.backendconfig import IpipConfig, load_backend
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ConfigError
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import IpipAttrs, Link, LinkSpec, Route
from pyflannel.kernel.sysctl import try_write_sysctl

BACKEND_TYPE: Final = "ipip"
DEVICE: Final = "flannel.ipip"
OVERHEAD: Final = 20
"""An IPv4 header without options (RFC 2003)."""


def ipip_difference(link: Link, wanted: IpipAttrs) -> str:
    """Why an existing `flannel.ipip` cannot be used, empty if it can.

    Raises:
        ConfigError: it is no ipip device, so somebody else's.
    """
    if link.kind != "ipip" or link.ipip is None:
        raise ConfigError(
            f"{link.name} exists and is of kind {link.kind or 'unknown'}, not ipip; "
            f"remove it: ip link delete {link.name}"
        )
    if link.ipip.local != wanted.local:
        return f"local {link.ipip.local} instead of {wanted.local}"
    if link.ipip.remote is not None and not link.ipip.remote.is_unspecified:
        return f"remote {link.ipip.remote} instead of any"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpipPlan:
    """Desired state of ipip; see `Plan`."""

    config: NetworkConfig
    settings: IpipConfig
    external: ExternalInterface
    own: SubnetKey | None = None

    @property
    def underlay(self) -> str:
        """As in `Plan`."""
        return self.external.name

    @property
    def mtu(self) -> int:
        """As in `OverlayPlan`."""
        return self.external.mtu - OVERHEAD

    @property
    def networks(self) -> Sequence[IPNetwork]:
        """As in `Plan`."""
        return routes.networks(self.config, Family.V4)

    def devices(self, underlay: Link | None) -> Sequence[Device]:
        """As in `Plan`."""
        del underlay
        wanted = IpipAttrs(local=self.external.address)
        networks, addresses = _addresses(self.config, self.own)
        return (
            Device(
                name=DEVICE,
                create=LinkSpec(name=DEVICE, kind="ipip", mtu=self.mtu, ipip=wanted),
                mismatch=lambda link: ipip_difference(link, wanted),
                mtu=self.mtu,
                up=self.own is not None,
                addresses=addresses,
                networks=networks,
            ),
        )

    def tables(self) -> Sequence[Table]:
        """As in `Plan`."""
        return (Table(Route, Family.V4),)

    def node_objects(self, view: View) -> Sequence[TableEntry]:
        """As in `Plan`: none."""
        del view
        return ()

    def destinations(self, lease: Lease) -> Sequence[IPAddress]:
        """As in `Plan`: asked for with DirectRouting only."""
        address = routes.public_address(lease, Family.V4)
        return (address,) if self.settings.direct_routing and address is not None else ()

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """As in `Plan`."""
        problem = routes.type_problem(lease, BACKEND_TYPE)
        subnet = lease.subnet(Family.V4)
        if problem or subnet is None:
            return PeerObjects(problem=problem or "it has no IPv4 subnet")
        gateway = routes.public_address(lease, Family.V4)
        if gateway is None:
            return PeerObjects(problem="it publishes no IPv4 address")
        direct = routes.direct_link(view.paths.get(gateway)) is not None
        tunnel = view.links.get(DEVICE)
        link = view.underlay if direct and self.settings.direct_routing else tunnel
        if link is None:
            return PeerObjects()
        return PeerObjects((routes.peer_route(subnet, gateway, link.index, onlink=True),))

    def is_ours(self, thing: TableEntry, view: View, *, startup: bool) -> bool:
        """As in `Plan`."""
        if not isinstance(thing, Route):
            return False
        if routes.is_device_route(thing, self.config, self.own, view.links.get(DEVICE)):
            return True
        direct = self.settings.direct_routing
        return startup and routes.is_stray(
            thing, self.config, self.own, view.underlay, direct=direct
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

    def rebased(self, external: ExternalInterface, lease: Lease | None) -> IpipPlan:
        """As in `OverlayPlan`.

        Raises:
            ConfigError: the interface lost its IPv4 address, or its MTU is too small.
        """
        check(self.config, external)
        own = lease.key if lease is not None else self.own
        return replace(self, external=external, own=own)


def _addresses(
    config: NetworkConfig, own: SubnetKey | None
) -> tuple[tuple[IPNetwork, ...], tuple[IPv4Interface, ...]]:
    if own is None or own.v4 is None or config.network is None:
        return (), ()
    return (config.network,), (IPv4Interface((own.v4.network_address, 32)),)


def check(config: NetworkConfig, external: ExternalInterface) -> None:
    """Whether ipip can work at all here.

    Raises:
        ConfigError: no IPv4, or no room for an overlay packet.
    """
    if not config.enable_ipv4:
        raise ConfigError("the ipip backend carries IPv4 only, and EnableIPv4 is false")
    if external.address is None:
        raise ConfigError(f"the ipip backend needs an IPv4 address on {external.name}")
    if external.mtu <= OVERHEAD:
        raise ConfigError(
            f"MTU {external.mtu} of {external.name} leaves nothing after ipip's {OVERHEAD} bytes"
        )


@register(BACKEND_TYPE)
class IpipBackend:
    """The ipip backend; see `Backend` for the contract.

    Raises:
        ConfigError: wrong settings, or `check`.
    """

    def __init__(
        self, context: BackendContext, *, write_sysctl: SysctlWriter = try_write_sysctl
    ) -> None:
        check(context.config, context.underlay)
        self._plan = IpipPlan(
            config=context.config,
            settings=load_backend(IpipConfig, context.config.backend),
            external=context.underlay,
        )
        self._engine = Engine(
            context.netlink,
            self._plan,
            write_sysctl=write_sysctl,
            store_addresses=context.store_addresses,
        )

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`: nothing of the device is published, so it is made in `attach`."""
        del previous
        return self._plan.attrs({})

    async def attach(self, lease: Lease) -> KernelNetwork:
        """As in `Backend`.

        Raises:
            FlannelError: the device cannot be had.
        """
        require_families(lease, (Family.V4,))
        plan = replace(self._plan, own=lease.key)
        self._engine.follow(plan)
        await self._engine.ensure_devices()
        return KernelNetwork(BACKEND_TYPE, self._engine, plan)
