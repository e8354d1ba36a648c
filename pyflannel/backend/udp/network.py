"""The attached node of backend udp: descriptors, data path, peer table."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

from pyflannel.backend.base import Applied, BackendContext, PartlyApplied, require_fit
from pyflannel.backend.engine import Engine
from pyflannel.backend.plan import Device
from pyflannel.backend.udp import DEVICE, UdpPlan, UdpSettings, lease_attrs, overlay_mtu
from pyflannel.core.errors import ConfigError, DatapathError
from pyflannel.core.ip import IPNetwork, SubnetKey
from pyflannel.core.kind import Kind
from pyflannel.core.lease import Lease, LeaseAdded, LeaseAttrs, LeaseEvent
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.underlay import ExternalInterface
from pyflannel.datapath.base import LONGEST_IN_KERNEL, DatapathConfig, Link
from pyflannel.datapath.runner import Runner
from pyflannel.kernel.base import Notification, Topic
from pyflannel.kernel.tun import TunDevice, adopt_tun, open_tun
from pyflannel.kernel.udp import IP_PMTUDISC_PROBE, adopt_udp, has_ethernet_header, open_udp
from pyflannel.logs import get_logger
from pyflannel.report.model import DatapathReport, NetworkReport

log = get_logger(__name__)

SOCKET: Final = "udp"
"""The socket's name in the fd store; the TUN has the device's."""
BPFFS: Final = "/sys/fs/bpf"
"""Where systemd mounts the BPF file system."""
QUEUE_PACKETS: Final = 500
"""What the kernel gives a TUN (`TUN_READQ_SIZE` of drivers/net/tun.c), and upstream leaves."""


class UdpNetwork:
    """The attached node: descriptors, data path, peer table; see `Network` for the contract."""

    def __init__(self, context: BackendContext, kind: Kind, lease: Lease) -> None:
        self._context = context
        self._kind = kind
        self._port = context.config.settings(UdpSettings).port
        self._card_gro = context.config.settings(UdpSettings).card_gro
        self._underlay = context.underlay
        self._lease = lease
        self._peers: dict[SubnetKey, Peer] = {}
        self._table = PeerTable()
        self._table_changed = False
        self._synced = False
        self._runner = Runner(context.datapath)
        self._tun: TunDevice | None = None
        self._adopted = False
        self._socket: socket.socket | None = None
        self._engine = Engine.of(context, self._plan())
        self._worried = False

    @property
    def mtu(self) -> int:
        """Bytes a container may send."""
        return overlay_mtu(self._underlay.mtu)

    async def open(self) -> None:
        """Everything a packet needs; called once, by `attach`.

        Raises:
            FlannelError: naming what is not available.
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
        chosen = self._runner.chosen
        if not self._synced and (self._adopted or (chosen is not None and chosen.meanwhile)):
            return True  # what waits, or passes by another release's table, would find an empty one
        self._context.held()
        try:
            await self._ensure_datapath()
        except DatapathError as error:
            if not self._runner.pass_over(error):
                raise
            await self._give_up_tun()
            return False
        return True

    @property
    def near(self) -> Sequence[IPNetwork] | None:
        """As in `Network`."""
        return self._engine.near

    @property
    def neighbours_of(self) -> frozenset[int]:
        """As in `Network`."""
        return self._engine.neighbours_of

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
        if notification.topic in (Topic.LINK, Topic.OVERFLOW):
            self._worried |= self._runner.minds(notification.name)
        return self._engine.notice(notification) or self._worried

    async def apply(self, *, full: bool) -> Applied:
        """Table, device, address, route, and a data path that runs.

        Raises:
            ApplyError: naming what failed.
        """
        changed = 0
        if self._table_changed:
            self._table_changed = False
            self._table = PeerTable(self._peers.values())
            self._runner.replace_table(self._table)
            changed = 1
        failure = self._runner.failure()
        if failure is not None:
            log.warning("data path stopped, starting it again", reason=failure)
        look = (full or changed) and self._synced
        if failure is not None or (look and self._runner.leave_slow()):
            self._runner.stop()
            await self._give_up_tun()
            full = True
        partly: PartlyApplied | None = None
        try:
            applied = await self._engine.apply(full=full)
        except PartlyApplied as error:
            # What cannot be set now, and perhaps never, is no reason to move no packets.
            partly, applied = error, error.applied
        repaired = dict(applied.repaired)
        if not self._runner.running:
            while not await self._bring_up():
                pass
            if self._runner.restarts:
                repaired["datapath"] = 1
        elif full or self._worried:
            self._worried = False
            repaired |= dict.fromkeys(self._runner.repair(), 1)
        if self._synced:
            await self._runner.complete()
        applied = Applied(changed=applied.changed + changed, repaired=repaired)
        if partly is not None:
            raise PartlyApplied(partly.failures, applied)
        return applied

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """Another underlay or another subnet: socket, device and data path are made to fit.

        Raises:
            ConfigError: it cannot work there.
        """
        require_fit(self._kind, self._context.config, underlay)
        same = underlay == self._underlay and lease in (None, self._lease)
        moved = underlay.address != self._underlay.address
        self._underlay = underlay
        if lease is not None:
            self._lease = lease
        if not same:
            self._runner.stop()
            if moved:
                self._close_socket()
            if self._link() != self._runner.link:
                await self._give_up_tun()  # so that the data path is chosen anew
            self._engine.follow(self._plan())
        return lease_attrs(underlay)

    def own_attrs(self) -> LeaseAttrs:
        """Only the public IP."""
        return lease_attrs(self._underlay)

    def report(self) -> NetworkReport:
        """Device, data path with its offloads and counters, peers."""
        return replace(
            self._engine.report(),
            backend=self._kind.name,
            port=self._port,
            peers=len(self._table),
            mtu=self.mtu,
            datapath=DatapathReport(
                name=self._runner.name,
                why=self._runner.why,
                offloads=self._offloads(),
                counters=self._runner.counters(),
                restarts=self._runner.restarts,
            ),
        )

    def _offloads(self) -> Mapping[str, str]:
        found = self._runner.offloads()
        if self._card_gro and "card_gro" not in found and self._runner.running:
            return {**found, "card_gro": "off (data path ebpf alone has it)"}
        return found

    def peer_counters(self, lease: Lease) -> Mapping[str, int] | None:
        """As in `Network`: what the data path counted, by the peer's public IP."""
        address = lease.attrs.public_ip
        return self._runner.peer_counters(address) if address is not None else None

    async def detach(self) -> None:
        """Stops the data path and lets the device go, as upstream; with it address and route."""
        self._runner.stop()
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
                # What is accepted from any sender, the kernel must not take for the node's own.
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
        self._runner.stop()
        await self._give_up_tun()
        await self._open_tun()

    async def _open_tun(self) -> None:
        capabilities = self._runner.choose(self._link())
        if not capabilities.outlives_daemon:
            _remove_programs()
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

    def _link(self) -> Link:
        return Link(
            ethernet=has_ethernet_header(self._underlay.name),
            long=self._underlay.mtu > LONGEST_IN_KERNEL,
        )

    async def _give_up_tun(self) -> None:
        """Closes it, so that it can be opened anew."""
        self._close_tun()
        chosen = self._runner.chosen
        if chosen is not None and not chosen.outlives_daemon:
            await self._delete_tun()

    async def _delete_tun(self) -> None:
        """For the fd store holds it open, and would for a moment after it was told to forget it."""
        self._context.fd_store.forget(DEVICE)
        for link in await self._context.netlink.links():
            if link.name == DEVICE and link.kind == "tun":
                await self._context.netlink.delete_link(link.index)

    def _ensure_socket(self) -> None:
        """Opens it if it is missing; a FOU port that an earlier run has left goes, or is kept."""
        beside_fou = self._socket is None and self._keeps_fou_port()
        kept = self._context.fd_store.take(SOCKET)
        if kept is not None:
            self._socket = adopt_udp(
                kept, self._local(), self._port, mtu_discover=IP_PMTUDISC_PROBE
            )
        if self._socket is None:
            self._socket = open_udp(
                self._local(),
                self._port,
                mtu_discover=IP_PMTUDISC_PROBE,
                beside_fou=beside_fou,
            )

    def _keeps_fou_port(self) -> bool:
        """Whether a killed daemon has left the FOU port that this one wants; others of ours go."""
        from pyflannel.datapath.ebpf import cardgro, cardplan

        chosen = self._runner.chosen
        keep = None
        if self._card_gro and chosen is not None and chosen.name == "ebpf":
            with contextlib.suppress(OSError):  # the interface is gone
                index = socket.if_nametoindex(self._underlay.name)
                keep = cardplan.wanted_port(self._local(), self._port, index)
        return cardgro.keep_only(keep)

    async def _ensure_datapath(self) -> None:
        """Starts the data path if it is missing; TUN and socket are there."""
        if self._runner.running:
            return
        assert self._runner.chosen is not None  # noqa: S101
        assert self._tun is not None  # noqa: S101
        assert self._socket is not None  # noqa: S101
        if self._runner.chosen.outlives_daemon:
            self._context.fd_store.forget(SOCKET)
        else:
            self._context.fd_store.keep(SOCKET, self._socket.fileno())
        config = self._datapath_config(self._tun, self._socket)
        await self._runner.start(config, self._table if self._synced else None)

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
            any_port=self._context.accept_any_port,
            card_gro=self._card_gro,
            vnet_hdr=tun.vnet_hdr,
        )

    def _local(self) -> IPv4Address:
        if self._underlay.address is None:
            raise ConfigError(f"interface {self._underlay.name} has no IPv4 address for udp")
        return self._underlay.address

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _close_tun(self) -> None:
        if self._tun is not None:
            self._tun.close()
            self._tun = None


def _remove_programs() -> None:
    """Detaches programs that an earlier run with the eBPF data path has left forwarding."""
    from pyflannel.datapath.ebpf import remove_leftovers

    if remove_leftovers(BPFFS):
        log.info("removed what the eBPF data path had left behind")
