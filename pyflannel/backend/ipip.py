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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import BackendContext, BackendKind
from pyflannel.backend.engine import Engine
from pyflannel.backend.network import KernelNetwork, NodePlan, require_families
from pyflannel.backend.peers import public_address, sites
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ConfigError
from pyflannel.core.fields import Problem, boolean
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.core.kind import DevicePattern, Probed
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.settings import Settings, setting
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import IpipAttrs, Link, LinkSpec, Route
from pyflannel.records import dataclass

BACKEND_TYPE: Final = "ipip"


# What the operator may set.


@dataclass(frozen=True, slots=True, kw_only=True)
class IpipSettings(Settings):
    """`Backend` of the network config."""

    direct_routing: bool = setting(
        "DirectRouting",
        boolean,
        default=False,
        effect="plain routes instead of tunnels to peers on the same link",
    )


# Whether it can work, and what it is called on the node.

OVERHEAD: Final = {Family.V4: 20}
"""An IPv4 header without options (RFC 2003)."""
MIN_MTU: Final = 68
"""RFC 791 §3.2; the kernel makes no device with less (`ETH_MIN_MTU`)."""
DEVICE: Final = "flannel.ipip"


def suits(config: NetworkConfig, external: ExternalInterface | None) -> Iterable[Problem]:
    """A tunnel needs a source, and room for a packet."""
    if external is None or not config.enable_ipv4:
        return
    left = external.mtu - OVERHEAD[Family.V4]
    if external.address is None:
        yield Problem.error("", f"the ipip backend needs an IPv4 address on {external.name}")
    if left < MIN_MTU:
        room = f"{left} bytes" if left > 0 else "nothing"
        yield Problem.error(
            "",
            f"MTU {external.mtu} of {external.name} leaves {room} after ipip's "
            f"{OVERHEAD[Family.V4]} bytes, and IPv4 needs {MIN_MTU}",
        )


def device_names(config: NetworkConfig) -> Mapping[Family, str]:
    """The tunnel."""
    return {Family.V4: DEVICE} if config.enable_ipv4 else {}


# What must be in the kernel, as pure functions.


def ipip_difference(link: Link, wanted: IpipAttrs) -> str:
    """Why an existing `flannel.ipip` cannot be used, empty if it can.

    Raises:
        ConfigError: it is no ipip device, so it is another program's.
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
class IpipPlan(NodePlan):
    """Desired state of ipip; see `Plan`."""

    settings: IpipSettings

    @property
    def mtu(self) -> int:
        """As in `OverlayPlan`."""
        return self.external.mtu - OVERHEAD[Family.V4]

    @property
    def networks(self) -> Sequence[IPNetwork]:
        """As in `Plan`."""
        return routes.networks(self.config, Family.V4)

    @property
    def follows_routes(self) -> bool:
        """As in `Plan`."""
        return self.settings.direct_routing

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

    def destinations(self, lease: Lease) -> Sequence[IPAddress]:
        """As in `Plan`: asked for with DirectRouting only."""
        address = public_address(lease, Family.V4)
        return (address,) if self.settings.direct_routing and address is not None else ()

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """As in `Plan`."""
        found, problem = sites(lease, BACKEND_TYPE, (Family.V4,))
        objects: list[TableEntry] = []
        for site in found:
            direct = routes.direct_link(view.paths.get(site.address)) is not None
            tunnel = view.links.get(DEVICE)
            link = view.underlay if direct and self.settings.direct_routing else tunnel
            if link is not None:
                objects.append(
                    routes.peer_route(site.subnet, site.address, link.index, onlink=True)
                )
        return PeerObjects(tuple(objects), problem)

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

    def attrs(self, links: Mapping[str, Link]) -> LeaseAttrs:
        """As in `OverlayPlan`."""
        del links
        return LeaseAttrs(
            public_ip=self.external.public_ip,
            public_ipv6=self.external.public_ipv6,
            backend_type=BACKEND_TYPE,
        )


def _addresses(
    config: NetworkConfig, own: SubnetKey | None
) -> tuple[tuple[IPNetwork, ...], tuple[IPv4Interface, ...]]:
    if own is None or own.v4 is None or config.network is None:
        return (), ()
    return (config.network,), (IPv4Interface((own.v4.network_address, 32)),)


class IpipBackend:
    """The ipip backend; see `Backend` for the contract."""

    def __init__(self, context: BackendContext) -> None:
        self._plan = IpipPlan(
            config=context.config,
            settings=context.config.settings(IpipSettings),
            external=context.underlay,
        )
        self._engine = Engine.of(context, self._plan)

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`: nothing of the device is published, so it is made in `attach`."""
        del previous
        return self._plan.attrs({})

    async def attach(self, lease: Lease) -> KernelNetwork:
        """As in `Backend`.

        Raises:
            FlannelError: the device is not available.
        """
        require_families(lease, (Family.V4,))
        plan = replace(self._plan, own=lease.key)
        self._engine.follow(plan)
        await self._engine.ensure_devices()
        return KernelNetwork(KIND, self._engine, plan)


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    summary="IP in IP, by the kernel",
    settings=IpipSettings,
    families=(Family.V4,),
    overhead=OVERHEAD,
    probed=Probed.TUNNEL,
    module="ipip",
    devices=(DevicePattern(r"flannel\.ipip", "ipip"),),
    device_names=device_names,
    suits=suits,
    create=IpipBackend,
)
