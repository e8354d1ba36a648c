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

The engine keeps device, address and route; this module keeps descriptors, data path and table.
A restart loses no packet. With data path `ebpf` the device is persistent and the programs go on
alone. With the others the service manager holds both descriptors meanwhile (`FdStore`): packets
wait in their queues, and the next daemon finds device and socket open.

When the device is deleted under us the engine misses it, opens it anew through us, and the data
path is started again with the same table. The type in a peer's lease is not looked at: like
upstream's, this backend sends to every lease, at its own port number.

It never touches `ip_forward` or `rp_filter`. It sets `accept_local` on its own device, without
which the kernel drops our ICMP errors as martians (upstream's never arrive, measured); but not
where every datagram is accepted, for then anybody could speak as the node itself. IPv6 is off.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import Applied, BackendContext, BackendKind, Network, require_fit
from pyflannel.backend.engine import Engine
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ConfigError, DatapathError
from pyflannel.core.fields import Problem, integer
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.core.kind import MAX_PORT, DevicePattern, Range, Settings, setting
from pyflannel.core.lease import Lease, LeaseAdded, LeaseAttrs, LeaseEvent
from pyflannel.core.lpm import Peer, RouteTable
from pyflannel.core.underlay import ExternalInterface
from pyflannel.datapath import select
from pyflannel.datapath.base import Datapath, DatapathConfig
from pyflannel.kernel.base import Link, Notification, Route, Topic
from pyflannel.kernel.ownership import is_protected
from pyflannel.kernel.tun import TunDevice, adopt_tun, open_tun
from pyflannel.kernel.udp import IP_PMTUDISC_DO, adopt_udp, open_udp
from pyflannel.logs import get_logger
from pyflannel.report.model import DatapathReport, NetworkReport

log = get_logger(__name__)

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
    )


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


# What must be in the kernel.

SOCKET: Final = "udp"
"""The socket's name in the fd store; the TUN has the device's."""
BPFFS: Final = "/sys/fs/bpf"
"""Where systemd mounts the BPF file system."""
QUEUE_PACKETS: Final = 500
"""What the kernel gives a TUN (`TUN_READQ_SIZE` of drivers/net/tun.c), and upstream leaves."""


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
        """Routes through our device towards another cluster network (a former one), and strays."""
        link = view.links.get(DEVICE)
        if not isinstance(thing, Route) or thing.dst.version != 4 or is_protected(thing):
            return False
        if link is not None and thing.oif == link.index:
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
        """The public IP is all that a udp peer needs."""
        del previous
        return _attrs(self._context.underlay)

    async def attach(self, lease: Lease) -> Network:
        """Opens device and socket, configures the device, starts the data path.

        Raises:
            FlannelError: naming what cannot be had.
        """
        network = UdpNetwork(self._context, lease)
        try:
            await network.open()
        except BaseException:
            await network.detach()
            raise
        return network


class UdpNetwork:
    """The attached node: descriptors, data path, peer table."""

    def __init__(self, context: BackendContext, lease: Lease) -> None:
        self._context = context
        self._port = context.config.settings(UdpSettings).port
        self._underlay = context.underlay
        self._lease = lease
        self._peers: dict[SubnetKey, Peer] = {}
        self._table = RouteTable()
        self._table_changed = False
        self._synced = False
        self._choice: select.Choice | None = None
        self._failed: dict[str, str] = {}
        self._tun: TunDevice | None = None
        self._adopted = False
        self._socket: socket.socket | None = None
        self._datapath: Datapath | None = None
        self._engine = Engine.of(context, self._plan())
        self._starts = 0
        self._worried = False

    @property
    def mtu(self) -> int:
        """Bytes a container may send."""
        return overlay_mtu(self._underlay.mtu)

    async def open(self) -> None:
        """Everything a packet needs; called once, by `attach`.

        Raises:
            FlannelError: naming what cannot be had.
        """
        while not await self._bring_up():
            pass
        await self._engine.apply(full=True)

    async def _bring_up(self) -> bool:
        """One try with the best data path that has not failed yet; `False` to try the next."""
        if self._tun is None:
            await self._open_tun()
            await self._engine.ensure_devices()
        self._ensure_socket()
        if self._adopted and not self._synced:
            return True  # what waits in the queues would find an empty table
        try:
            self._ensure_datapath()
        except DatapathError as error:
            name = self._chosen_name()
            if self._context.datapath != select.AUTO or name == "python":
                raise
            log.warning("data path cannot start, taking another", datapath=name, error=error)
            self._failed[name] = str(error)
            await self._give_up_tun()
            return False
        return True

    def update(self, events: Sequence[LeaseEvent]) -> None:
        """Takes lease events into the peer table."""
        for event in events:
            lease = event.lease
            if isinstance(event, LeaseAdded) and lease.key.v4 and lease.attrs.public_ip:
                peer = Peer(lease.key.v4, lease.attrs.public_ip)
                self._table_changed |= self._peers.get(lease.key) != peer
                self._peers[lease.key] = peer
            else:
                self._table_changed |= self._peers.pop(lease.key, None) is not None

    def synced(self) -> None:
        """Leftovers may go now: routes on our device, and peers that a data path has kept."""
        self._engine.synced()
        self._synced = True
        self._table_changed = True

    def notice(self, notification: Notification) -> bool:
        """Whether the engine, or the data path, has something to look at."""
        path = self._datapath
        if path is not None and notification.topic in (Topic.LINK, Topic.OVERFLOW):
            self._worried |= notification.name in ("", *path.capabilities.devices)
        return self._engine.notice(notification) or self._worried

    async def apply(self, *, full: bool) -> Applied:
        """Table, device, address, route, and a data path that runs.

        Raises:
            ApplyError: naming what failed.
        """
        changed = 0
        if self._table_changed:
            self._table_changed = False
            self._table = RouteTable(self._peers.values())
            if self._datapath is not None:
                self._datapath.replace_table(self._table)
            changed = 1
        failure = self._datapath.failure() if self._datapath is not None else None
        if failure is not None:
            log.warning("data path stopped, starting it again", reason=failure)
            self._stop_datapath()
            await self._give_up_tun()
            full = True
        applied = await self._engine.apply(full=full)
        repaired = dict(applied.repaired)
        if self._datapath is None:
            while not await self._bring_up():
                pass
            if self._starts > 1:
                repaired["datapath"] = 1
        elif full or self._worried:
            self._worried = False
            repaired |= dict.fromkeys(self._datapath.repair(), 1)
        return Applied(changed=applied.changed + changed, repaired=repaired)

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """Another underlay or another subnet: socket, device and data path are made to fit.

        Raises:
            ConfigError: it cannot work there.
        """
        require_fit(KIND, self._context.config, underlay)
        same = underlay == self._underlay and lease in (None, self._lease)
        moved = underlay.address != self._underlay.address
        self._underlay = underlay
        if lease is not None:
            self._lease = lease
        if not same:
            self._stop_datapath()
            if moved:
                self._close_socket()
            self._engine.follow(self._plan())
        return _attrs(underlay)

    def own_attrs(self) -> LeaseAttrs:
        """Only the public IP."""
        return _attrs(self._underlay)

    def report(self) -> NetworkReport:
        """Device, data path with its offloads and counters, peers."""
        path = self._datapath
        return replace(
            self._engine.report(),
            backend=BACKEND_TYPE,
            port=self._port,
            peers=len(self._table),
            mtu=self.mtu,
            datapath=DatapathReport(
                name=path.capabilities.name if path is not None else None,
                why=self._choice.reason if self._choice is not None else "",
                offloads=dict(path.capabilities.offloads) if path is not None else {},
                counters=path.counters() if path is not None else {},
                restarts=max(0, self._starts - 1),
            ),
        )

    async def detach(self) -> None:
        """Stops the data path and lets the device go, as upstream; with it address and route."""
        self._stop_datapath()
        self._close_socket()
        self._close_tun()

    def _plan(self) -> UdpPlan:
        network, subnet = self._context.config.network, self._lease.key.v4
        if network is None or subnet is None:
            raise ConfigError(f"lease {self._lease.key.describe()} has no IPv4 subnet for udp")
        device = Device(
            name=DEVICE,
            open=self._reopen_tun,
            mtu=overlay_mtu(self._underlay.mtu),
            txqlen=QUEUE_PACKETS,
            addresses=(IPv4Interface((subnet.network_address, 32)),),
            networks=(network,),
            sysctls=(
                # What is accepted from everybody, the kernel must not take for the node's own.
                (
                    f"net/ipv4/conf/{DEVICE}/accept_local",
                    "0" if self._context.accept_any else "1",
                ),
                # Else the kernel sends router solicitations into it, which no peer wants.
                (f"net/ipv6/conf/{DEVICE}/disable_ipv6", "1"),
            ),
        )
        config, own = self._context.config, self._lease.key
        return UdpPlan(self._underlay.name, config, own, network, subnet, device)

    # Descriptors and data path

    async def _reopen_tun(self) -> None:
        """Called by the engine when the device is gone: the old descriptor is dead as well."""
        self._stop_datapath()
        await self._give_up_tun()
        await self._open_tun()

    async def _open_tun(self) -> None:
        choice = self._choose()
        capabilities = choice.factory.capabilities
        if not capabilities.outlives_daemon and os.access(f"{BPFFS}/pyflannel", os.F_OK):
            _remove_pinned()
        store = self._context.fd_store
        kept = store.take(DEVICE)
        if kept is not None:
            self._tun = adopt_tun(kept, DEVICE, vnet_hdr=capabilities.wants_vnet_hdr)
            self._adopted = self._tun is not None
            if self._tun is None:
                await self._delete_tun()
        if self._tun is None:
            self._tun = open_tun(DEVICE, vnet_hdr=capabilities.wants_vnet_hdr)
        self._tun.set_persistent(capabilities.outlives_daemon)
        if capabilities.outlives_daemon:
            store.forget(DEVICE)
        else:
            store.keep(DEVICE, self._tun.fd)

    async def _give_up_tun(self) -> None:
        """Closes it, so that it can be opened anew."""
        self._close_tun()
        if self._choice is not None and not self._choice.factory.capabilities.outlives_daemon:
            await self._delete_tun()

    async def _delete_tun(self) -> None:
        """For the fd store holds it open, and would for a moment after it was told to forget it."""
        self._context.fd_store.forget(DEVICE)
        for link in await self._context.netlink.links():
            if link.name == DEVICE and link.kind == "tun":
                await self._context.netlink.delete_link(link.index)

    def _choose(self) -> select.Choice:
        choice = select.create(self._context.datapath, failed=self._failed)
        if self._choice is None or choice.reason != self._choice.reason:
            log.info(
                "data path chosen", datapath=choice.factory.capabilities.name, why=choice.reason
            )
        self._choice = choice
        return choice

    def _chosen_name(self) -> str:
        return self._choice.factory.capabilities.name if self._choice is not None else ""

    def _ensure_socket(self) -> None:
        """Opens it if it is missing."""
        kept = self._context.fd_store.take(SOCKET)
        if kept is not None:
            self._socket = adopt_udp(kept, self._local(), self._port)
        if self._socket is None:
            self._socket = open_udp(self._local(), self._port, mtu_discover=IP_PMTUDISC_DO)

    def _ensure_datapath(self) -> None:
        """Starts the data path if it is missing; TUN and socket are there."""
        if self._datapath is not None:
            return
        assert self._choice is not None  # noqa: S101
        assert self._tun is not None  # noqa: S101
        assert self._socket is not None  # noqa: S101
        if self._choice.factory.capabilities.outlives_daemon:
            self._context.fd_store.forget(SOCKET)
        else:
            self._context.fd_store.keep(SOCKET, self._socket.fileno())
        path = self._choice.factory(self._datapath_config(self._tun, self._socket))
        try:
            if self._synced:  # before its first packet
                path.replace_table(self._table)
            path.start()
            if self._synced:  # and where the table is in the kernel, as soon as it is there
                path.replace_table(self._table)
        except DatapathError:
            path.stop()
            raise
        self._datapath = path
        self._starts += 1

    def _datapath_config(self, tun: TunDevice, sock: socket.socket) -> DatapathConfig:
        plan = self._plan()
        return DatapathConfig(
            tun_fd=tun.fd,
            udp_fd=sock.fileno(),
            tun_name=DEVICE,
            tun_address=plan.subnet.network_address,
            network=plan.network,
            mtu=self.mtu,
            port=self._port,
            underlay_name=self._underlay.name,
            underlay_address=self._local(),
            pin_dir=BPFFS,
            accept_any=self._context.accept_any,
            vnet_hdr=tun.vnet_hdr,
        )

    def _local(self) -> IPv4Address:
        if self._underlay.address is None:
            raise ConfigError(f"interface {self._underlay.name} has no IPv4 address for udp")
        return self._underlay.address

    def _stop_datapath(self) -> None:
        if self._datapath is not None:
            self._datapath.stop()
            self._datapath = None

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _close_tun(self) -> None:
        if self._tun is not None:
            self._tun.close()
            self._tun = None


def _remove_pinned() -> None:
    """Detaches programs that an earlier run with the eBPF data path has left forwarding."""
    from pyflannel.datapath.ebpf import remove_leftovers

    if remove_leftovers(BPFFS):
        log.info("removed what the eBPF data path had left behind")


def _attrs(underlay: ExternalInterface) -> LeaseAttrs:
    """Udp writes no type and no data, like upstream."""
    return LeaseAttrs(public_ip=underlay.public_ip)


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    lease_type="",
    summary="packets in plain datagrams, by the data paths of the daemon",
    settings=UdpSettings,
    families=(Family.V4,),
    overhead=OVERHEAD,
    route_per_peer=False,
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
