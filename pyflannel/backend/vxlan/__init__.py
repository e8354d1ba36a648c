"""vxlan: Ethernet frames in UDP, carried by the kernel's own VXLAN device.

The device of this node is a *VTEP*: a MAC address and, by convention, the first address of our
subnet. A packet to a peer's container is routed via the peer's VTEP address, whose neighbour entry
gives the peer's VTEP MAC, whose FDB entry gives the peer's underlay address. Nothing is learned or
asked for on the wire: the lease of each peer carries its VTEP MAC.

| object, on `flannel.<VNI>` (IPv6: `flannel-v6.<VNI>`) | per | recognised by | set |
|---|---|---|---|
| device, with the attributes of `VxlanAttrs` | node | its name | 1 |
| address `<own subnet address>/32` | node | being on it, inside the network | 2 |
| neighbour `<peer subnet address>` → VTEP MAC, permanent | peer | its device | 3 |
| FDB entry VTEP MAC → public IP, permanent | peer | its device | 4 |
| route `<peer subnet> via <peer subnet address> onlink` | peer | its device | 5 |
| with DirectRouting, on the same link: only `<subnet> via <public IP>` | peer | `is_stray` | 3 |

The VTEP MAC is in our lease, and all peers program it, so it should not change without need. It is
taken from, in this order: the device that is there, the state file (only if the public address is
the one it was written with, so that a cloned disk does not give two nodes one MAC), what we
published before, chance. A MAC that is changed behind our back is put back; if the kernel does not
allow that, the new one is published.

An existing device that differs in what cannot be changed is created anew, with the same MAC;
MTU, MAC, queue length, checksum offload, address and state are corrected in place. Everything stays
when the daemon ends, so that packets flow during a restart. The checksum offload is left alone, or
kept off: by the config, or with "auto" once the probe of checksums has seen them lost. One that
"auto" finds off at the start stays so, for then nothing is lost any more that could be seen.

Source: upstream `pkg/backend/vxlan/`; RFC 7348; Linux `drivers/net/vxlan/vxlan_core.c`.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from ipaddress import ip_interface
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import Applied, BackendContext, BackendKind
from pyflannel.backend.engine import Engine
from pyflannel.backend.network import KernelNetwork, NodePlan, require_families
from pyflannel.backend.peers import Site, public_address, sites
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.backend.vxlan.macs import (
    MAC_FILE,
    MacFile,
    VxlanData,
    decode_data,
    derive_data,
    encode_data,
    random_mac,
)
from pyflannel.backend.vxlan.settings import (
    KERNEL_PORT,
    OVERHEAD,
    VxlanSettings,
    device_name,
    device_names,
    suits,
)
from pyflannel.core.errors import ConfigError, KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork
from pyflannel.core.kind import DevicePattern, Kind, Probed, StateFile
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import (
    NUD_PERMANENT,
    FdbEntry,
    Link,
    LinkSpec,
    Neighbour,
    Netlink,
    Route,
    VxlanAttrs,
)
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import NetworkReport

log = get_logger(__name__)

BACKEND_TYPE: Final = "vxlan"


FOUND_OFF: Final = "it was off at the start"


def vxlan_difference(link: Link, wanted: VxlanAttrs) -> str:
    """What makes an existing device unusable, empty if it can be kept.

    More than upstream compares: a device that learns although it should not, or listens on another
    port although the config names none, is not the one we were asked for.
    """
    there = link.vxlan
    if link.kind != "vxlan" or there is None:
        return f"kind {link.kind or 'unknown'} instead of vxlan"
    pairs: tuple[tuple[str, object, object], ...] = (
        ("VNI", there.vni, wanted.vni),
        ("underlying link", there.link, wanted.link),
        ("source address", there.local, wanted.local),
        ("group", there.group, wanted.group),
        ("port", there.port or KERNEL_PORT, wanted.port or KERNEL_PORT),
        ("learning", there.learning, wanted.learning),
        ("GBP", there.gbp, wanted.gbp),
        ("L2 miss", there.l2miss, wanted.l2miss),
    )
    return ", ".join(f"{what} {is_} instead of {be}" for what, is_, be in pairs if is_ != be)


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanPlan(NodePlan):
    """Desired state of vxlan; see `Plan`.

    Before there is a lease the devices exist, without address and down.
    """

    settings: VxlanSettings
    macs: Mapping[Family, str] = field(default_factory=dict)
    """The VTEP MAC of each enabled family."""
    checksums_lost: str = ""
    """With "auto": why the checksum offload is to be off; empty while it is left alone."""

    @property
    def mtu(self) -> int:
        """As in `OverlayPlan`: of the first family's device.

        With both families the IPv6 device has 20 bytes less; there the kernel itself tells senders
        (packet too big), and IPv4 keeps what upstream gives it.
        """
        return self._device_mtu(self.config.families[0], self.external.mtu)

    def name(self, family: Family) -> str:
        """The device of one family."""
        return device_name(family, self.settings.vni)

    def _device_mtu(self, family: Family, underlay_mtu: int) -> int:
        # More than the interface carries is refused by the kernel, whatever the config says.
        return min(self.settings.mtu or underlay_mtu, underlay_mtu) - OVERHEAD[family]

    @property
    def _offloads(self) -> bool:
        return bool(self.settings.tx_checksum_offload) and not self.checksums_lost

    def vxlan_attrs(self, family: Family, underlay: Link) -> VxlanAttrs:
        """The attributes of the device that are fixed when it is created.

        The source is the interface's address. (Upstream takes the public one, and behind a NAT
        sends with an address that the host does not have.)
        """
        return VxlanAttrs(
            vni=self.settings.vni,
            link=underlay.index,
            local=self.external.local(family),
            port=self.settings.port,
            learning=self.settings.learning,
            gbp=self.settings.gbp,
        )

    @property
    def networks(self) -> Sequence[IPNetwork]:
        """As in `Plan`."""
        return routes.networks(self.config)

    @property
    def follows_routes(self) -> bool:
        """As in `Plan`."""
        return self.settings.direct_routing

    def devices(self, underlay: Link | None) -> Sequence[Device]:
        """As in `Plan`.

        Without the underlay none can be created. One that is there is kept as it is: an interface
        that was only renamed goes on carrying its packets until we are told of its new name.
        """
        return tuple(
            self._device(family)
            if underlay is None
            else self._creatable(self._device(family), family, underlay)
            for family in self.config.families
        )

    def _creatable(self, device: Device, family: Family, underlay: Link) -> Device:
        wanted = self.vxlan_attrs(family, underlay)
        # The interface may have shrunk before we are told.
        mtu = self._device_mtu(family, min(self.external.mtu, underlay.mtu))
        spec = LinkSpec(
            name=device.name, kind="vxlan", mtu=mtu, mac=device.mac, txqlen=0, vxlan=wanted
        )
        return replace(
            device, create=spec, mtu=mtu, mismatch=lambda link: vxlan_difference(link, wanted)
        )

    def _device(self, family: Family) -> Device:
        name = self.name(family)
        own = self.own.subnet(family) if self.own is not None else None
        network = self.config.network_of(family)
        return Device(
            name=name,
            mac=self.macs.get(family),
            txqlen=0,
            # What the operator switched off by other means stays off.
            tx_checksum=None if self._offloads else False,
            up=self.own is not None,
            # As /32 (/128): no broadcast address and no connected route comes with it.
            addresses=(ip_interface((own.network_address, family.bits)),) if own else (),
            networks=(network,) if network is not None else (),
            # The overlay has no routers; nothing in it may give this node a default route.
            sysctls=((f"net/ipv6/conf/{name}/accept_ra", "0"),),
        )

    def tables(self) -> Sequence[Table]:
        """As in `Plan`."""
        return tuple(
            table
            for family in self.config.families
            for table in (
                Table(Route, family),
                Table(Neighbour, family, self.name(family)),
                Table(FdbEntry, None, self.name(family)),
            )
        )

    def destinations(self, lease: Lease) -> Sequence[IPAddress]:
        """As in `Plan`: asked for with DirectRouting only."""
        if not self.settings.direct_routing:
            return ()
        addresses = (public_address(lease, family) for family in self.config.families)
        return tuple(address for address in addresses if address is not None)

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """As in `Plan`: neighbour, FDB entry and route for each family that both sides have."""
        found, problem = sites(lease, BACKEND_TYPE, self.config.families)
        objects: list[TableEntry] = []
        for site in found:
            try:
                mac = decode_data(lease.attrs.data(site.family)).mac
            except ValueError as error:
                problem = str(error)
            else:
                objects += self._objects(site, mac, view)
        return PeerObjects(tuple(objects), problem)

    def _objects(self, site: Site, mac: str, view: View) -> tuple[TableEntry, ...]:
        direct = routes.direct_link(view.paths.get(site.address))
        if self.settings.direct_routing and direct is not None:
            return (routes.peer_route(site.subnet, site.address, direct),)
        link = view.links.get(self.name(site.family))
        if link is None:
            return ()
        vtep = site.subnet.network_address
        return (
            Neighbour(index=link.index, ip=vtep, mac=mac),
            FdbEntry(index=link.index, mac=mac, dst=site.address),
            routes.peer_route(site.subnet, vtep, link.index, onlink=True),
        )

    def is_ours(self, thing: TableEntry, view: View, *, startup: bool) -> bool:
        """As in `Plan`: what is on our devices is ours, but for what the kernel put there."""
        match thing:
            case Neighbour():
                network = self.config.network_of(Family(thing.ip.version))
                permanent = bool(thing.state & NUD_PERMANENT)
                return permanent and network is not None and thing.ip in network
            case FdbEntry():
                # Also if the device learns: what it learned ages, and is not listed. Each of ours
                # has a neighbour, which is set before it and deleted after it.
                return thing.mac not in view.strangers.get(thing.index, ())
            case Route():
                device = view.links.get(self.name(Family(thing.dst.version)))
                if routes.is_device_route(thing, self.config, self.own, device):
                    return True
                direct = self.settings.direct_routing
                return startup and routes.is_stray(
                    thing, self.config, self.own, view.underlay, direct=direct
                )

    @property
    def macs_by_device(self) -> Mapping[str, str]:
        """The MACs that the devices are to have."""
        return {self.name(family): mac for family, mac in self.macs.items()}

    def attrs(self, links: Mapping[str, Link]) -> LeaseAttrs:
        """As in `OverlayPlan`: with the MAC that the device really has."""
        data: dict[Family, str] = {}
        for family, mac in self.macs.items():
            link = links.get(self.name(family))
            real = link.mac if link is not None and link.mac else mac
            data[family] = encode_data(VxlanData(vni=self.settings.vni, mac=real))
        return LeaseAttrs(
            public_ip=self.external.public_ip,
            public_ipv6=self.external.public_ipv6,
            backend_type=BACKEND_TYPE,
            backend_data=data.get(Family.V4),
            backend_v6_data=data.get(Family.V6),
        )


class VxlanNetwork(KernelNetwork):
    """A kernel network that also keeps the state file, and hears where checksums are lost."""

    def __init__(
        self,
        kind: Kind,
        engine: Engine,
        plan: VxlanPlan,
        file: MacFile,
        checksums_lost: Callable[[], str],
    ) -> None:
        super().__init__(kind, engine, plan)
        self._vxlan = plan
        self._file = file
        self._checksums_lost = checksums_lost

    async def apply(self, *, full: bool) -> Applied:
        """As in `Network`."""
        plan = self._vxlan
        if full:
            self._file.keep(plan.external, plan.macs_by_device)
        if plan.settings.minds_checksums() and not plan.checksums_lost:
            lost = self._checksums_lost()
            if lost:
                log.warning("checksum offload switched off", reason=lost)
                self._plan = self._vxlan = replace(plan, checksums_lost=lost)
                self._engine.follow(self._vxlan)
        return await super().apply(full=full)

    def report(self) -> NetworkReport:
        """As in `Network`: with the reason for what became of the checksum offload."""
        report, plan = super().report(), self._vxlan
        if not plan.settings.minds_checksums():
            return report
        text = f"off: {plan.checksums_lost}" if plan.checksums_lost else "as it is: none seen lost"
        devices = {
            name: replace(device, tx_checksum=text) for name, device in report.devices.items()
        }
        return replace(report, devices=devices)

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """As in `Network`."""
        attrs = await super().rebase(underlay, lease)
        self._vxlan = self._vxlan.rebased(underlay, lease)
        return attrs


class VxlanBackend:
    """The vxlan backend; see `Backend` for the contract.

    Args:
        context: as for every backend.
        rng: source of a new MAC; by default the system's, because a MAC must not repeat.
    """

    def __init__(self, context: BackendContext, *, rng: random.Random | None = None) -> None:
        settings = context.config.settings(VxlanSettings)
        self._netlink: Netlink = context.netlink
        self._file = MacFile(context.state_dir)
        self._rng = rng if rng is not None else random.SystemRandom()
        self._plan = VxlanPlan(config=context.config, settings=settings, external=context.underlay)
        self._prescribed = context.prescribed
        self._checksums_lost = context.checksums_lost
        self._engine = Engine.of(context, self._plan)

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`: makes the devices, whose MACs the lease carries.

        Raises:
            FlannelError: a device is not available.
        """
        remembered = self._file.load(self._plan.external)
        macs = {
            family: await self._choose_mac(family, remembered, previous)
            for family in self._plan.config.families
        }
        off = self._plan.settings.minds_checksums() and await self._is_off()
        self._plan = replace(self._plan, macs=macs, checksums_lost=FOUND_OFF if off else "")
        self._engine.follow(self._plan)
        await self._ensure_devices()
        return self._plan.attrs(self._engine.links)

    async def attach(self, lease: Lease) -> VxlanNetwork:
        """As in `Backend`.

        Raises:
            FlannelError: a device cannot be made, or its MAC is not the published one and cannot be
                put back (udev and network managers are known to change it).
        """
        require_families(lease, self._plan.config.families)
        plan = replace(self._plan, own=lease.key)
        self._engine.follow(plan)
        await self._ensure_devices()
        return VxlanNetwork(KIND, self._engine, plan, self._file, self._checksums_lost)

    async def _is_off(self) -> bool:
        """Whether a former run, or the operator, has switched the checksum offload off."""
        for family in self._plan.config.families:
            name = self._plan.name(family)
            if await self._netlink.link(name) and not await self._netlink.tx_checksum(name):
                return True
        return False

    async def _ensure_devices(self) -> None:
        await self._engine.ensure_devices()
        links = self._engine.links
        for family, mac in self._plan.macs.items():
            link = links[self._plan.name(family)]
            if link.mac != mac:
                raise KernelError(
                    "link set address",
                    f"{link.name} {mac}",
                    errno.EBUSY,
                    f"something keeps changing it to {link.mac}",
                )
        self._file.keep(self._plan.external, self._plan.macs_by_device)

    async def _choose_mac(
        self, family: Family, remembered: Mapping[str, str], previous: LeaseAttrs | None
    ) -> str:
        """The MAC that peers most likely know already; see the module's description.

        Raises:
            ConfigError: one is prescribed that cannot be used.
        """
        name = self._plan.name(family)
        if self._prescribed is not None:
            try:
                return decode_data(self._prescribed.data(family)).mac
            except ValueError as error:
                raise ConfigError(f"this node's BackendData cannot be used: {error}") from None
        link = await self._netlink.link(name)
        if link is not None and link.kind == "vxlan" and link.mac:
            return link.mac
        if name in remembered:
            return remembered[name]
        if previous is not None and previous.backend_type == BACKEND_TYPE:
            try:
                return decode_data(previous.data(family)).mac
            except ValueError as error:
                log.debug("no VTEP MAC in the previous lease", reason=str(error))
        return random_mac(self._rng)


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    summary="VXLAN, by the kernel; works on any underlay",
    settings=VxlanSettings,
    overhead=OVERHEAD,
    probed=Probed.TUNNEL,
    module="vxlan",
    devices=(
        DevicePattern(r"flannel\.\d+", "vxlan"),
        DevicePattern(r"flannel-v6\.\d+", "vxlan"),
    ),
    device_names=device_names,
    derive_data=derive_data,
    state_files=(StateFile(MAC_FILE, frozenset({"public_ip", "macs"})),),
    suits=suits,
    create=VxlanBackend,
)
