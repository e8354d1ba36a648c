"""Backend `udp`: overlay packets inside UDP datagrams, nothing added.

Theory of operation. The node's subnet gives the TUN device `flannel0` its address (the network
address of the subnet, /32, so that no connected route comes with it), and one route sends the whole
cluster network there. What the kernel routes into the device a *data path* wraps, as it is, into a
datagram to the owner of the destination's subnet; what arrives on the UDP port it unwraps into the
device. Peers are rows of the data path's table, not objects of the kernel.

| object | one per | known as ours by | order |
|---|---|---|---|
| TUN `flannel0`, its address, MTU, state | node | we, or the fd store, hold it open | 1 |
| UDP socket on the interface address | node | – | 2 |
| route to the cluster network | node | it leaves through the device | 3 |
| row of the peer table | peer | – | any time |

The engine keeps device, address and route; `network.py` keeps descriptors, data path and table.
A restart loses no packet. With data path `ebpf` the device is persistent and the programs go on
alone. With the others the service manager holds both descriptors meanwhile (`FdStore`): packets
wait in their queues, and the next daemon finds device and socket open.

When the device is deleted under us the engine misses it, opens it anew through us, and the data
path is started again with the same table. The type in a peer's lease is not looked at: like
upstream's, this backend sends to every lease, at its own port number.

It never touches `ip_forward` or `rp_filter`. It sets `accept_local` on its own device, without
which the kernel drops our ICMP errors as martians (upstream's never arrive, measured); but not
where every datagram is accepted, for then any sender could speak as the node itself. IPv6 is off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import BackendContext, BackendKind, Network
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.core.config import NetworkConfig
from pyflannel.core.fields import Problem, boolean, integer
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.core.kind import MAX_PORT, DevicePattern, Probed
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.settings import Range, Settings, setting
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Link, Route
from pyflannel.kernel.ownership import is_protected
from pyflannel.records import dataclass

BACKEND_TYPE: Final = "udp"
"""Of the config; a lease carries none."""


# What the operator may set.

_PORTS: Final = Range(1, MAX_PORT, f"a UDP port, 1 to {MAX_PORT}", "8285 is flannel's own")


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpSettings(Settings):
    """`Backend` of the network config."""

    port: int = setting(
        "Port",
        integer,
        default=8285,
        effect="UDP port of this node and of every peer; it is not part of the lease",
        within=_PORTS,
        together=True,
    )
    card_gro: bool = setting(
        "CardGRO",
        boolean,
        default=False,
        effect="whether TCP segments of peers are joined at the network card, as vxlan's are: by a "
        "FOU port beside the socket (data path `ebpf`, Linux 6.12, module `fou`)",
    )

    def tunnel_port(self) -> int:
        """As in `Settings`."""
        return self.port


# Whether it can work, and what it is called on the node.

OVERHEAD: Final = {Family.V4: 28}
"""Outer IPv4 header (20) and UDP header (8); the payload is the overlay packet itself."""
MINIMUM_MTU: Final = 68
"""RFC 791 §3.2: what every internet module must be able to forward."""
DEVICE: Final = "flannel0"
"""What upstream's template `flannel%d` gives on a node with one daemon."""


def overlay_mtu(underlay_mtu: int) -> int:
    """Bytes an overlay packet may have and still fit the underlay, once wrapped in UDP."""
    return underlay_mtu - OVERHEAD[Family.V4]


def suits(config: NetworkConfig, external: ExternalInterface | None) -> Iterable[Problem]:
    """The socket needs an address, and a packet room."""
    if external is None or not config.enable_ipv4:
        return
    if external.address is None:
        yield Problem.error("", f"interface {external.name} has no IPv4 address for udp")
    left = overlay_mtu(external.mtu)
    if left < MINIMUM_MTU:
        yield Problem.error(
            "",
            f"underlay MTU {external.mtu} leaves {left} bytes for the overlay, which is less than "
            f"the {MINIMUM_MTU} of RFC 791",
            "raise the MTU of the external interface",
        )


def device_names(config: NetworkConfig) -> Mapping[Family, str]:
    """The TUN."""
    return {Family.V4: DEVICE} if config.enable_ipv4 else {}


# What the lease carries.


def lease_attrs(underlay: ExternalInterface) -> LeaseAttrs:
    """Udp writes no type and no data, like upstream."""
    return LeaseAttrs(public_ip=underlay.public_ip)


# What must be in the kernel, as pure functions.


@dataclass(frozen=True, slots=True)
class UdpPlan:
    """The kernel objects of this node; peers need none."""

    underlay: str
    config: NetworkConfig
    own: SubnetKey
    network: IPv4Network
    subnet: IPv4Network
    device: Device

    @property
    def networks(self) -> Sequence[IPNetwork]:
        """The one network."""
        return (self.network,)

    @property
    def follows_routes(self) -> bool:
        """No: peers have no routes."""
        return False

    def devices(self, underlay: Link | None) -> Sequence[Device]:
        """The TUN; it does not depend on the underlay."""
        del underlay
        return (self.device,)

    def tables(self) -> Sequence[Table]:
        """IPv4 routes."""
        return (Table(Route, Family.V4),)

    def node_objects(self, view: View) -> Sequence[TableEntry]:
        """The one route of the overlay."""
        link = view.links.get(DEVICE)
        return () if link is None else (Route(dst=self.network, oif=link.index),)

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """None: peers are rows of the data path's table."""
        del lease, view
        return PeerObjects()

    def destinations(self, lease: Lease) -> Sequence[IPAddress]:
        """None."""
        del lease
        return ()

    def is_ours(self, thing: TableEntry, view: View, *, startup: bool) -> bool:
        """Routes through our device into the network, and strays."""
        link = view.links.get(DEVICE)
        if not isinstance(thing, Route) or thing.dst.version != 4 or is_protected(thing):
            return False
        if routes.is_device_route(thing, self.config, self.own, link):
            return True
        return startup and routes.is_stray(thing, self.config, self.own, view.underlay)

    def concerns(self, dst: IPNetwork) -> bool:
        """Whether a route is the overlay's."""
        return dst == self.network


class UdpBackend:
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """The public IP is all that a udp peer needs.

        Raises:
            DeviceUnavailable: another daemon keeps the device. The kernel would refuse it as well,
                but only after the programs of the data path were taken for an earlier run's.
        """
        del previous
        self._context.claim_device(DEVICE)
        return lease_attrs(self._context.underlay)

    async def attach(self, lease: Lease) -> Network:
        """Opens device and socket, configures the device, starts the data path.

        Raises:
            FlannelError: naming what is not available.
        """
        # Late: a list of all kinds does without the data paths.
        from pyflannel.backend.udp.network import UdpNetwork

        network = UdpNetwork(self._context, KIND, lease)
        try:
            await network.open()
        except BaseException:
            await network.detach()
            raise
        return network


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    lease_type="",
    summary="packets in plain datagrams, by the data paths of the daemon",
    settings=UdpSettings,
    families=(Family.V4,),
    overhead=OVERHEAD,
    probed=Probed.TUNNEL,
    route_per_peer=False,
    module="tun",
    devices=(
        DevicePattern(r"flannel\d+", "tun"),
        # Of the eBPF data path.
        DevicePattern(r"flannelgro0", "veth"),
        DevicePattern(r"flannelgro1", "veth", goes_along=True),
    ),
    device_names=device_names,
    suits=suits,
    create=UdpBackend,
)
