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
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Final, Self

from pyflannel.backend import routes
from pyflannel.backend.base import Applied, BackendContext, BackendKind
from pyflannel.backend.engine import Engine
from pyflannel.backend.network import KernelNetwork, NodePlan, require_families
from pyflannel.backend.peers import Site, public_address, sites
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ConfigError, FlannelError, KernelError
from pyflannel.core.fields import Mismatch, Problem, boolean, integer
from pyflannel.core.ip import Family, IPAddress, IPNetwork
from pyflannel.core.kind import (
    MAX_DEVICE_NAME,
    MAX_PORT,
    DevicePattern,
    Kind,
    Probed,
    Range,
    Settings,
    StateFile,
    setting,
)
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.underlay import ExternalInterface
from pyflannel.gocompat.json import JsonError, JsonObject, JsonValue, loads_go
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
from pyflannel.kernel.files import (
    FileMissing,
    FileUnreadable,
    read_text_if_exists,
    write_atomically,
)
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import NetworkReport

log = get_logger(__name__)

BACKEND_TYPE: Final = "vxlan"


# What the operator may set.

OVERHEAD: Final = {Family.V4: 50, Family.V6: 70}
"""Outer IP (20 or 40) + UDP (8) + VXLAN (8) + inner Ethernet (14). Upstream takes 50 for both; with
an IPv6 underlay its full-size packets do not fit, and the kernel refuses such an MTU."""
MIN_MTU: Final = {Family.V4: 68, Family.V6: 1280}
"""RFC 791 §3.2, RFC 8200 §5. The kernel keeps a family off devices with less."""
MAX_DEVICE_MTU: Final = 65535
"""`ETH_MAX_MTU`: the kernel refuses more."""
USUAL_LARGEST_MTU: Final = 9216
"""Jumbo frames as switches are commonly set for; larger is more likely a slip of the fingers."""
MAX_VNI: Final = 0xFFFFFF
"""24 bits (RFC 7348 §5); the kernel answers ERANGE to more."""
KERNEL_PORT: Final = 8472
"""What the kernel takes when no port is given (its module parameter `udp_port`)."""

_FOLLOW: Final = "leave it out to follow the interface"
_VNIS: Final = Range(0, MAX_VNI, f"24 bits, 0 to {MAX_VNI}", "1 is flannel's own")
_PORTS: Final = Range(
    None, MAX_PORT, f"a UDP port, 1 to {MAX_PORT}", f"0 means the kernel's own, {KERNEL_PORT}"
)
_LEAST_MTU: Final = MIN_MTU[Family.V4] + OVERHEAD[Family.V4]
_MOST_MTU: Final = MAX_DEVICE_MTU + OVERHEAD[Family.V4]
_MTUS: Final = Range(
    _LEAST_MTU, _MOST_MTU, f"the MTU of the underlay, {_LEAST_MTU} to {_MOST_MTU}", _FOLLOW, also=0
)


AUTO: Final = "auto"
LEFT_ALONE: Final[bool | str] = True


def boolean_or_auto(value: JsonValue) -> bool | str:
    """`true`, `false` or `"auto"`.

    Raises:
        Mismatch: it is something else.
    """
    if value == AUTO:
        return AUTO
    try:
        return boolean(value)
    except Mismatch as mismatch:
        raise Mismatch(f'true, false or "{AUTO}"', mismatch.remedy) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanSettings(Settings):
    """`Backend` of the network config."""

    vni: int = setting(
        "VNI",
        integer,
        default=1,
        effect="VXLAN network id; also the number in the device's name",
        within=_VNIS,
        together=True,
    )
    port: int = setting(
        "Port",
        integer,
        default=0,
        effect=f"UDP port of all nodes; 0 leaves it to the kernel, which takes {KERNEL_PORT}",
        within=_PORTS,
        together=True,
    )
    mtu: int = setting(
        "MTU",
        integer,
        default=0,
        effect="MTU of the underlay to assume, overhead not yet taken off; 0 is the interface's",
        within=_MTUS,
    )
    gbp: bool = setting(
        "GBP", boolean, default=False, effect="the group based policy extension of the device"
    )
    learning: bool = setting(
        "Learning", boolean, default=False, effect="the kernel learns FDB entries from packets"
    )
    direct_routing: bool = setting(
        "DirectRouting",
        boolean,
        default=False,
        effect="plain routes instead of tunnels to peers on the same link",
    )
    tx_checksum_offload: bool | str = setting(
        "TxChecksumOffload",
        boolean_or_auto,
        default=LEFT_ALONE,
        effect="`false` has the kernel compute checksums of TCP and UDP before the tunnel: slower, "
        'and right where they are lost in it; `"auto"` does so when a probe sees them lost; `true` '
        "leaves the device as it is",
    )

    def tunnel_port(self) -> int:
        """As in `Settings`."""
        return self.port or KERNEL_PORT

    def minds_checksums(self) -> bool:
        """As in `Settings`."""
        return self.tx_checksum_offload == AUTO

    def problems(self) -> Iterable[Problem]:
        """As in `Settings`: what is unlikely to be meant."""
        if self.port < 0:
            text = f"Port is {self.port}: taken as 0, the kernel's own port {KERNEL_PORT}"
            yield Problem.warning("Backend.Port", text, "leave it out")
        if USUAL_LARGEST_MTU < self.mtu <= _MOST_MTU:
            text = f"MTU is {self.mtu}, more than jumbo frames ({USUAL_LARGEST_MTU})"
            yield Problem.warning("Backend.MTU", text, _FOLLOW)

    def settled(self) -> Self:
        """As in `Settings`: upstream hands a port to the kernel only if it is above 0."""
        return replace(self, port=max(self.port, 0))


# Whether it can work, and what it is called on the node.

DEVICES: Final = {Family.V4: "flannel", Family.V6: "flannel-v6"}
"""What the names of the devices start with; a dot and the VNI follow."""
MAC_FILE: Final = "vtep-mac.json"
FOUND_OFF: Final = "it was off at the start"


def device_name(family: Family, vni: int) -> str:
    """`flannel.1`, for IPv6 `flannel-v6.1`."""
    return f"{DEVICES[family]}.{vni}"


def device_names(config: NetworkConfig) -> Mapping[Family, str]:
    """The VTEPs."""
    vni = config.settings(VxlanSettings).vni
    return {family: device_name(family, vni) for family in config.families}


def suits(config: NetworkConfig, external: ExternalInterface | None) -> Iterator[Problem]:
    """A device needs a name, a tunnel a source, and each family room for a packet of its own."""
    settings = config.settings(VxlanSettings)
    for family in config.families:
        device = device_name(family, settings.vni)
        if len(device) > MAX_DEVICE_NAME:
            largest = 10 ** (MAX_DEVICE_NAME - len(DEVICES[family]) - 1) - 1
            yield Problem.error(
                "Backend.VNI",
                f"VNI is {settings.vni}, expected at most {largest}: the device {device} would "
                f"have a name of more than {MAX_DEVICE_NAME} characters",
                "1 is flannel's own",
            )
        least = MIN_MTU[family] + OVERHEAD[family]
        if 0 < settings.mtu < least:
            rfc = "RFC 791 §3.2" if family is Family.V4 else "RFC 8200 §5"
            text = f"MTU is {settings.mtu}, expected at least {least} for {family} ({rfc})"
            yield Problem.error("Backend.MTU", text, _FOLLOW)
        if external is None:
            continue
        if external.local(family) is None:
            text = (
                f"{external.name} has no {family} address, which vxlan needs as its tunnel source"
            )
            yield Problem.error("", text)
        if external.mtu < least:
            left = external.mtu - OVERHEAD[family]
            yield Problem.error(
                "",
                f"MTU {external.mtu} leaves {left} bytes after vxlan's {OVERHEAD[family]}, and "
                f"{family} needs {MIN_MTU[family]}",
            )
    if external is not None and settings.mtu > external.mtu:
        yield Problem.warning(
            "Backend.MTU",
            f"MTU is {settings.mtu}, more than {external.name} carries: its {external.mtu} counts",
            _FOLLOW,
        )


# What the lease carries.


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanData:
    """`BackendData` of a vxlan lease."""

    mac: str
    """VTEP MAC, lower case with colons."""
    vni: int | None = None
    """Missing in the leases of old peers; not compared with ours, as upstream does not."""


def encode_data(data: VxlanData) -> str:
    """The JSON text, byte for byte as upstream writes it."""
    return f'{{"VNI":{data.vni or 0},"VtepMAC":"{data.mac}"}}'


def decode_data(text: str | None) -> VxlanData:
    """Reads `BackendData` of a peer, with Go's leniency about the keys' case.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    if not text:
        raise ValueError("it publishes no VTEP MAC")
    try:
        value = loads_go(text)
    except JsonError as error:
        raise ValueError(f"its backend data is not JSON: {error}") from None
    if not isinstance(value, JsonObject):
        raise ValueError(f"its backend data is not an object: {text[:80]}")  # noqa: TRY004
    mac, vni = value.find("VtepMAC"), value.find("VNI")
    if not isinstance(mac, str):
        raise ValueError(f"its backend data has no VtepMAC: {text[:80]}")  # noqa: TRY004
    return VxlanData(mac=parse_mac(mac), vni=vni if isinstance(vni, int) else None)


_MAC: Final = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}", re.ASCII)
_CISCO_MAC: Final = re.compile(r"[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}", re.ASCII)


def parse_mac(text: str) -> str:
    """A unicast Ethernet address in the spelling we use; reads those that Go's `ParseMAC` does.

    Raises:
        ValueError: it is none, or a multicast address, or zero.
    """
    lower = text.lower()
    if not _MAC.fullmatch(lower) and not _CISCO_MAC.fullmatch(lower):
        raise ValueError(f"its VTEP MAC {text!r} is not an Ethernet address")
    raw = bytes.fromhex(re.sub(r"[:.-]", "", lower))
    if raw[0] & 1 or not any(raw):
        raise ValueError(f"its VTEP MAC {text!r} is not a unicast address")
    return raw.hex(":")


def derive_data(settings: VxlanSettings, family: Family, subnet: IPNetwork) -> str:
    """The data of a lease whose node publishes nothing: the VTEP MAC follows from the subnet.

    Every node computes the same one, so nothing has to be exchanged. Of the 46 bits that are free
    in a locally administered unicast address all come from a hash of VNI and subnet: among 10,000
    nodes two share one with a probability of less than one in a million.
    """
    seed = f"pyflannel vtep {settings.vni} {family.value} {subnet}".encode()
    raw = bytearray(hashlib.sha256(seed).digest()[:6])
    raw[0] = raw[0] & 0xFC | 0x02
    return encode_data(VxlanData(vni=settings.vni, mac=raw.hex(":")))


def random_mac(rng: random.Random) -> str:
    """A locally administered unicast address (second-lowest bit of the first byte set, lowest not).

    Chosen before the device exists, so that udev's MAC policy takes it for the operator's wish and
    leaves it alone.
    """
    raw = bytearray(rng.randbytes(6))
    raw[0] = raw[0] & 0xFE | 0x02
    return raw.hex(":")


# What must be in the kernel, as pure functions.


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
            # The overlay has no routers; nobody in it may give this node a default route.
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


class MacFile:
    """The VTEP MACs of this node, kept over a reboot: `<state-dir>/vtep-mac.json`.

    Losing it costs the peers an update of one FDB and neighbour entry, so no failure is fatal.
    """

    def __init__(self, state_dir: str) -> None:
        self._path = Path(state_dir) / MAC_FILE
        self._written: dict[str, object] = {}
        self._failing = False

    def load(self, external: ExternalInterface) -> dict[str, str]:
        """MACs by device name, as written by this node at this address; else nothing."""
        try:
            found = read_text_if_exists(self._path, own=True)
            if isinstance(found, FileMissing):
                return {}
            if isinstance(found, FileUnreadable):
                raise ValueError(found.reason)  # noqa: TRY004, TRY301
            content = json.loads(found.text)
            if content["public_ip"] != _where(external):
                return {}
            return {name: parse_mac(mac) for name, mac in content["macs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning(
                "file of VTEP MACs unreadable, going on without",
                path=str(self._path),
                reason=str(error),
            )
            return {}

    def keep(self, external: ExternalInterface, macs: Mapping[str, str]) -> None:
        """Writes if anything has changed, or could not be written; to be called now and then."""
        content: dict[str, object] = {"public_ip": _where(external), "macs": dict(macs)}
        if content == self._written:
            return
        if self._written or self.load(external) != macs:
            try:
                write_atomically(self._path, json.dumps(content).encode() + b"\n", private=True)
            except FlannelError as error:
                if not self._failing:
                    log.warning("VTEP MAC not remembered over a reboot", reason=str(error))
                self._failing = True
                return
        if self._failing:
            log.info("VTEP MAC is remembered over a reboot again", path=str(self._path))
        self._written, self._failing = content, False


def _where(external: ExternalInterface) -> str:
    return str(external.public_ip or external.public_ipv6)


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
            FlannelError: a device cannot be had.
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
            FlannelError: a device cannot be had, or its MAC is not the published one and cannot be
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
