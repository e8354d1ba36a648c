"""What the rest of pyflannel knows of the kernel's network tables: records, and one protocol.

The records are values in the kernel's own terms (link, address, route, neighbour, FDB entry). The
`Netlink` protocol reads them and makes them so; it never decides. Two implementations exist: the
real one (`kernel/netlink.py`) and a fake (`testing/fakenetlink.py`) that one contract suite holds
to the same behaviour.

Conventions that every implementation keeps:

* *Set is replace.* `Set(x)` makes the kernel hold exactly `x` under `x.key`, whatever stood there.
  If it is refused, what stood there may be gone. With one exception: a route of the kernel or of a
  routing daemon (`ownership.is_protected`) is neither replaced nor deleted, nor is anything put
  beside it under its key (`EEXIST`, naming it); and where no route stands, the creation is
  exclusive, so that one which comes in between is found as well.
* *Delete is exact.* A route is deleted if type, gateway and link agree as well (no link said beside
  a gateway: any link), an FDB entry if its destination, port, VNI and link do. A neighbour or an
  address is what its key says, so that is all which counts. (The one case in which Linux can delete
  a route only by deleting a foreign one first, which stands before it under its key, is refused
  with `ENOTUNIQ`.)
* *Deleting what is not there succeeds.* `ESRCH`, `ENOENT`, `EADDRNOTAVAIL`, `ENODEV`, `ENXIO` on
  delete mean "already so".
* *Listing a link that is not there gives nothing*, like listing one without entries.
* Batches go out in order, many messages a system call, and every single answer is checked.
* Listings are complete or raise: an interrupted dump (`NLM_F_DUMP_INTR`) is repeated inside.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import field
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import Protocol

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork
from pyflannel.records import dataclass

RT_TABLE_MAIN = 254
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RTN_UNICAST = 1
RTN_BLACKHOLE = 6
NUD_STALE = 0x04
NUD_FAILED = 0x20
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
"""Values of linux/rtnetlink.h and linux/neighbour.h."""
IPV6_DEFAULT_METRIC = 1024
"""IP6_RT_PRIO_USER: what the kernel makes of a metric of 0 in an IPv6 route."""

IPInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanAttrs:
    """The IFLA_VXLAN_* attributes that we set or compare."""

    vni: int
    link: int = 0
    """ifindex of the underlay device (IFLA_VXLAN_LINK), 0 if none."""
    local: IPAddress | None = None
    """Tunnel source (IFLA_VXLAN_LOCAL or LOCAL6)."""
    group: IPAddress | None = None
    """Default remote or multicast group; we never set it, and one that is there is a difference."""
    port: int = 0
    """UDP destination port in host order; 0 = do not send, the kernel takes 8472."""
    learning: bool = False
    gbp: bool = False
    l2miss: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IpipAttrs:
    """The IFLA_IPTUN_* attributes that we set or compare."""

    local: IPv4Address | None = None
    remote: IPv4Address | None = None
    link: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """A link to create."""

    name: str
    kind: str
    """IFLA_INFO_KIND: `vxlan`, `ipip`, …"""
    mtu: int | None = None
    mac: str | None = None
    """Lower-case `aa:bb:…`, or `None` to let the kernel choose."""
    txqlen: int | None = None
    vxlan: VxlanAttrs | None = None
    ipip: IpipAttrs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link as the kernel reports it."""

    index: int
    name: str
    kind: str = ""
    """IFLA_INFO_KIND, empty for physical devices and loopback."""
    mtu: int = 0
    mac: str = ""
    """Lower-case `aa:bb:…`; empty for devices without a link-layer address (TUN, ipip)."""
    up: bool = False
    """IFF_UP: administratively up."""
    running: bool = False
    """IFF_RUNNING: operational (carrier)."""
    loopback: bool = False
    txqlen: int = 0
    master: int = field(default=0, compare=False)
    """ifindex of the bridge or bond that it is a port of; 0 for none. Not compared: what the
    overlay keeps does not depend on it."""
    parent: int = field(default=0, compare=False)
    """ifindex of the link of this network namespace that it stands on (IFLA_LINK: of a macvlan or
    vlan the lower one, of a veth the other end); 0 for none. Not compared, as `master`."""
    vxlan: VxlanAttrs | None = None
    ipip: IpipAttrs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address on a link.

    Those that are set are permanent and usable at once (IPv6: without duplicate address detection);
    `permanent`, `temporary` and `deprecated` are for reading.
    """

    index: int
    """ifindex of the link."""
    interface: IPInterface
    """Address with its prefix length (IFA_LOCAL, or IFA_ADDRESS for IPv6)."""
    scope: int = RT_SCOPE_UNIVERSE
    """ifa_scope; in IPv6 the kernel derives it from the address, whatever is set."""
    permanent: bool = True
    """IFA_F_PERMANENT: configured by hand, not by DHCP or router advertisement."""
    temporary: bool = False
    """IFA_F_TEMPORARY: an IPv6 privacy address."""
    deprecated: bool = False
    """IFA_F_DEPRECATED: not to be used for new connections."""

    @property
    def key(self) -> tuple[object, ...]:
        """What the kernel tells two addresses apart by."""
        return ("address", self.index, self.interface)

    def __str__(self) -> str:
        return f"address {self.interface} dev {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of the main table, for all types of service."""

    dst: IPNetwork
    gateway: IPAddress | None = None
    oif: int | None = None
    """ifindex of the outgoing link; `None` = not said (on set), several next hops (on read)."""
    onlink: bool = False
    """RTNH_F_ONLINK: the gateway is taken to be on the link whatever the addresses say."""
    scope: int = RT_SCOPE_UNIVERSE
    """rtm_scope; meaningless in IPv6, where the kernel always reports universe."""
    protocol: int = RTPROT_BOOT
    """rtm_protocol; flannel's are `boot`, what plain `ip route add` uses."""
    type: int = RTN_UNICAST
    metric: int = 0
    """RTA_PRIORITY; IPv6 turns 0 into 1024, which implementations report as 0 again."""
    src: IPAddress | None = None
    """Preferred source address."""
    altered: bool = False
    """On read: it has what we never give a route, metrics (an MTU), an encapsulation, or a next hop
    object in the place of its own; so it equals none of ours."""
    hops: tuple[IPAddress, ...] = ()
    """On read: gateways of a route with several next hops."""

    @property
    def next_hops(self) -> tuple[IPAddress, ...]:
        """All gateways, one or several."""
        return self.hops if self.gateway is None else (self.gateway,)

    @property
    def key(self) -> tuple[object, ...]:
        """What the kernel tells two routes apart by (those with a tos are not listed)."""
        return ("route", self.dst, self.metric)

    def __str__(self) -> str:
        kind = "blackhole " if self.type == RTN_BLACKHOLE else ""
        text = f"route {kind}{self.dst}"
        if self.gateway is not None:
            text += f" via {self.gateway}"
        if self.oif is not None:
            text += f" dev {self.oif}"
        return text + (" onlink" if self.onlink else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An entry of the ARP or ND table: overlay IP → inner MAC."""

    index: int
    ip: IPAddress
    mac: str
    """Lower-case `aa:bb:…`; empty on read while it is not known."""
    state: int = NUD_PERMANENT

    @property
    def key(self) -> tuple[object, ...]:
        """What the kernel tells two neighbours apart by."""
        return ("neighbour", self.index, self.ip)

    def __str__(self) -> str:
        return f"neighbour {self.ip} lladdr {self.mac} dev {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FdbEntry:
    """A forwarding-database entry of a vxlan device: inner MAC → underlay IP.

    The MAC is a unicast one: group addresses have lists of destinations, and the kernel refuses to
    replace those (`EOPNOTSUPP`).
    """

    index: int
    mac: str
    """Lower-case `aa:bb:…`."""
    dst: IPAddress
    port: int = 0
    """UDP port of the destination in host order; 0 = the device's own, as with all of ours."""
    vni: int = 0
    """VNI that the destination is told; 0 = the device's own."""
    via: int = 0
    """ifindex through which the destination is reached; 0 = as the device's own packets."""

    @property
    def key(self) -> tuple[object, ...]:
        """What the kernel tells two entries apart by; replacing a MAC's entry changes its `dst`."""
        return ("fdb", self.index, self.mac)

    def __str__(self) -> str:
        return f"fdb {self.mac} dst {self.dst} dev {self.index}"


KernelObject = Address | Route | Neighbour | FdbEntry


@dataclass(frozen=True, slots=True)
class Set:
    """Make the kernel hold this object, replacing what stands under its key."""

    object: KernelObject


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove exactly this object; if it is not there, all is well."""

    object: KernelObject


Operation = Set | Delete


class Topic(enum.Enum):
    """What a kernel notification is about."""

    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    NEIGHBOUR = "neighbour"
    OVERFLOW = "overflow"
    """The notification socket overflowed (ENOBUFS): anything may have happened, compare all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """Something changed in the kernel. Hints only: read back before acting."""

    topic: Topic
    index: int = 0
    """ifindex it is about, 0 if unknown."""
    name: str = ""
    """Link name, for `Topic.LINK`."""
    deleted: bool = False
    family: Family | None = None
    """Family of the address, route or neighbour; `None` for links and FDB entries."""
    dst: IPNetwork | None = None
    """Destination of the route, for `Topic.ROUTE`."""
    object: Address | Route | Neighbour | FdbEntry | None = None
    """What stands now, or stood, in the words of a listing; `None` for links, and what a listing
    would not show."""


class Notifications(Protocol):
    """An asynchronous iterator for one consumer; ends when it, or its `Netlink`, is closed."""

    def __aiter__(self) -> AsyncIterator[Notification]: ...

    async def __anext__(self) -> Notification: ...

    def hear_neighbours_of(self, indexes: Collection[int]) -> None:
        """From now on only the neighbours and FDB entries of these links are told."""
        ...

    async def aclose(self) -> None:
        """Unsubscribes. May be called twice, and while an item is awaited."""
        ...


class Netlink(Protocol):
    """Reads and writes one network namespace's tables.

    Bound to the network namespace of the process, and to one event loop. All methods may be called
    concurrently; each raises `KernelError` (or its subclasses) and nothing else but
    `asyncio.CancelledError`.
    """

    async def links(self) -> list[Link]:
        """All links, in order of their index."""
        ...

    async def link(self, name: str) -> Link | None:
        """The link of this name, or `None`."""
        ...

    async def addresses(self, *, index: int | None = None) -> list[Address]:
        """Addresses of both families, of one link or of all; in the kernel's order."""
        ...

    async def routes(
        self,
        family: Family,
        *,
        oif: int | None = None,
        protocols: Collection[int] = (),
        near: Collection[IPNetwork] = (),
    ) -> list[Route]:
        """Routes of the main table; a router may have a hundred thousand of them.

        Args:
            family: of the destinations.
            oif: of one outgoing link; of all without it.
            protocols: of these protocols only, of all if empty. The kernel picks them out, so the
                others cost nothing. (0 is no protocol that it can pick.)
            near: only those that lead into one of these prefixes, or have a next hop there; all if
                empty. The others are read and thrown away, which costs a microsecond each.
        """
        ...

    async def neighbours(self, index: int, family: Family) -> list[Neighbour]:
        """Neighbours of one link, permanent and learned, but for the kernel's own (`noarp`)."""
        ...

    async def fdb(self, index: int) -> list[FdbEntry]:
        """FDB entries of one vxlan link which have a destination and stay; learned ones age."""
        ...

    async def route_lookup(self, destination: IPAddress) -> Route | None:
        """The route the kernel would take, as `ip route get` says; `None` if unreachable.

        `oif`, `gateway` and `src` are filled in; `dst` is the looked-up address itself.
        """
        ...

    async def create_link(self, spec: LinkSpec) -> Link:
        """Creates a link, exclusively (`EEXIST` is a `KernelError`), and reads it back."""
        ...

    async def delete_link(self, index: int) -> None:
        """Deletes a link; one that is not there counts as deleted."""
        ...

    async def set_link(
        self,
        index: int,
        *,
        mtu: int | None = None,
        mac: str | None = None,
        up: bool | None = None,
        txqlen: int | None = None,
    ) -> None:
        """Changes the given attributes and leaves the others."""
        ...

    async def tx_checksum(self, name: str) -> bool:
        """Whether a link takes packets whose checksum is not computed yet.

        That is ethtool's `tx-checksumming`; a vxlan link has `tx-checksum-ip-generic` of it.
        """
        ...

    async def set_tx_checksum(self, name: str, *, on: bool) -> None:
        """Switches it.

        Where it is off the kernel computes checksums, and cuts large segments, before it hands
        packets over.
        """
        ...

    async def apply(self, operations: Sequence[Operation]) -> dict[int, KernelError]:
        """Carries the operations out in order; one that fails does not stop the rest.

        Yields to the event loop between chunks.

        Returns:
            The failures by position in `operations`; empty when all went well.
        """
        ...

    def notifications(
        self,
        *,
        near: Collection[IPNetwork] | None = None,
        neighbours_of: Collection[int] | None = None,
    ) -> Notifications:
        """Kernel notifications of links, addresses, routes and neighbours (FDB included).

        Subscribed when this returns, own changes included. Left out is what is of no use here:
        cached routes, other tables, and neighbours that the kernel makes for itself (`noarp`).

        Args:
            near: of routing daemons' routes (`ownership.is_protected`, but the kernel's) only those
                are told that lead everywhere, or into one of these prefixes, or have their gateway
                there. The kernel drops the others, which on a router are thousands a second.
            neighbours_of: indexes of the links whose neighbours and FDB entries are told; `None`
                for all. Of the others, which change whenever a pod or a node asks for a MAC, the
                kernel tells nothing.
        """
        ...

    async def close(self) -> None:
        """Releases the sockets. May be called twice."""
        ...
