"""The state of one network namespace, with the side effects that Linux gives each change.

Synchronous and without a protocol: `testing.fakenetlink` puts the `Netlink` interface in front.
Modelled as seen on Linux 6.18; the contract suite holds it and the real kernel together.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv6Interface, ip_interface
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork, family_of
from pyflannel.kernel.base import (
    NUD_FAILED,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RTPROT_KERNEL,
    Address,
    Delete,
    FdbEntry,
    Link,
    LinkSpec,
    Neighbour,
    Notification,
    Operation,
    Route,
    Set,
    Topic,
)
from pyflannel.testing.fakedevice import (
    LINK_LOCAL,
    MTU_RANGE,
    NAME_LIMIT,
    VNI_LIMIT,
    VXLAN_PORT,
    Device,
    check_mac,
    collide,
    default_mac,
    eui64,
    kernel_error,
)
from pyflannel.testing.fakeroutes import (
    REJECTING_TYPES,
    Entry,
    RouteTable,
    as_stored,
    is_same,
    real_metric,
)

RT_SCOPE_HOST: Final = 254
IPV6_CONNECTED_METRIC: Final = 256
_MISMATCH: Final = "Nexthop has invalid gateway or device mismatch"


class FakeKernel:
    """Links, addresses, routes, neighbours and FDB entries of one network namespace.

    Args:
        kinds: of links that this kernel can create.
        notify: is told of each change, as the kernel tells it.
    """

    def __init__(self, kinds: Iterable[str], notify: Callable[[Notification], None]) -> None:
        self._kinds = frozenset(kinds)
        self._notify = notify
        self.devices: dict[int, Device] = {}
        self.routes = RouteTable()
        self._next_index = 1

    def add_link(
        self,
        name: str,
        *,
        kind: str = "",
        mtu: int = 1500,
        mac: str | None = None,
        up: bool = True,
        carrier: bool = True,
        loopback: bool = False,
        master: int = 0,
    ) -> Link:
        """Plugs in a network card (or what a test wants); like the kernel announces it."""
        index = self._next_index
        self._next_index += 1
        link = Link(
            index=index,
            name=name,
            kind=kind,
            mtu=mtu,
            mac=default_mac(index) if mac is None else mac,
            loopback=loopback,
            txqlen=1000,
            master=master,
        )
        self.devices[index] = Device(link, carrier=carrier)
        self.announce_link(link)
        if up:
            self._set_up(self.devices[index])
        return self.devices[index].link

    def create_link(self, spec: LinkSpec) -> Link:
        """A link of one of the kinds that this kernel knows, or its refusal."""
        subject = f"{spec.name} type {spec.kind}"

        def refuse(code: int, hint: str = "") -> KernelError:
            unavailable = code in (errno.ENODEV, errno.EOPNOTSUPP)
            kind = DeviceUnavailable if unavailable else KernelError
            return kind("link add", subject, code, hint)

        if spec.kind not in self._kinds:
            raise refuse(errno.EOPNOTSUPP, f"this kernel has no {spec.kind} devices")
        if len(spec.name) > NAME_LIMIT:
            raise refuse(errno.ERANGE)
        if self.by_name(spec.name) is not None:
            raise refuse(errno.EEXIST)
        if spec.mac is not None and int(spec.mac[:2], 16) & 1:
            raise refuse(errno.EADDRNOTAVAIL)
        if spec.mtu is not None and spec.mtu not in MTU_RANGE:
            raise refuse(errno.EINVAL)
        mtu, vxlan = spec.mtu, spec.vxlan
        if vxlan is not None:
            if vxlan.vni >= VNI_LIMIT:
                raise refuse(errno.ERANGE)
            if vxlan.link and vxlan.link not in self.devices:
                raise refuse(errno.ENODEV)
            vxlan = replace(vxlan, port=vxlan.port or VXLAN_PORT)
            if any(collide(device.link.vxlan, vxlan) for device in self.devices.values()):
                raise refuse(errno.EEXIST, "A VXLAN device with the specified VNI already exists")
            if mtu is None and vxlan.link:
                overhead = 50 if vxlan.local is None or vxlan.local.version == 4 else 70
                mtu = self.devices[vxlan.link].link.mtu - overhead
        link = self.add_link(
            spec.name,
            kind=spec.kind,
            mtu=1500 if mtu is None else mtu,
            mac="" if spec.kind == "ipip" else spec.mac,
            up=False,
            carrier=spec.kind != "bridge",
        )
        device = self.devices[link.index]
        txqlen = link.txqlen if spec.txqlen is None else spec.txqlen
        device.link = replace(link, txqlen=txqlen, vxlan=vxlan, ipip=spec.ipip)
        return device.link

    def set_link(
        self,
        index: int,
        *,
        mtu: int | None = None,
        mac: str | None = None,
        up: bool | None = None,
        txqlen: int | None = None,
    ) -> None:
        """Changes the given attributes; with what that brings along."""
        subject = f"dev {index}"
        device = self.devices.get(index)
        if device is None:
            raise DeviceUnavailable("link set", subject, errno.ENODEV, "the link is gone")
        if mac is not None and int(mac[:2], 16) & 1:
            raise KernelError("link set", subject, errno.EADDRNOTAVAIL)
        if mtu is not None and mtu not in MTU_RANGE:
            raise KernelError("link set", subject, errno.EINVAL)
        before = device.link
        if mac is not None:  # also if it is the one that it had
            device.link = replace(device.link, mac=mac)
            self._flush_neighbours(device, Family.V4, Family.V6)
        if mtu is not None:
            device.link = replace(device.link, mtu=mtu)
        if txqlen is not None:
            device.link = replace(device.link, txqlen=txqlen)
        if device.link != before:
            self.announce_link(device.link)
        if up is not None and up != before.up:
            if up:
                self._set_up(device)
            else:
                self._set_down(device)

    def device(self, index: int) -> Device:
        """The device of this index; `DeviceUnavailable` without."""
        try:
            return self.devices[index]
        except KeyError:
            raise DeviceUnavailable("find", f"dev {index}", errno.ENODEV) from None

    def named(self, name: str) -> Device:
        """The device of this name; `DeviceUnavailable` without."""
        link = self.by_name(name)
        if link is None:
            raise DeviceUnavailable("find", name, errno.ENODEV)
        return self.devices[link.index]

    def by_name(self, name: str) -> Link | None:
        """The link of this name."""
        links = (device.link for device in self.devices.values())
        return next((link for link in links if link.name == name), None)

    def carry_out(self, operation: Operation) -> None:
        """One operation, with all that it brings along, or its refusal."""
        match operation:
            case Set(Route() as route):
                self._set_route(route)
            case Set(Address() as address):
                self._set_address(address)
            case Set(Neighbour() as neighbour):
                self._set_neighbour(neighbour)
            case Set(FdbEntry() as entry):
                self._set_fdb(entry)
            case Delete(Route() as route):
                self._delete_route(route)
            case Delete(Address() as address):
                self._delete_address(address)
            case Delete(Neighbour() as neighbour):
                self._delete_neighbour(neighbour)
            case Delete(FdbEntry() as entry):
                self._delete_fdb(entry)

    def _set_route(self, route: Route) -> None:
        standing = self.routes.under(as_stored(route))
        try:
            stored = self._checked(route)
        except KernelError as error:
            # What is in the way is cleared before the kernel says no.
            cleared = standing if _fell_off_its_stepping_stone(route, error) else standing[1:]
            for entry in cleared:
                self._drop_route(entry, announce=True)
            raise
        unchanged = [entry.route for entry in standing] == [stored] and not standing[0].hops
        for entry in standing:
            self.routes.remove(entry)
        self.routes.add(Entry(stored))
        if not unchanged or stored.dst.version == 6:
            self.announce_route(stored)

    def _checked(self, route: Route) -> Route:
        """The route as the kernel will report it, or its refusal."""

        def refuse(code: int, hint: str = "") -> KernelError:
            return kernel_error("route replace", str(route).removeprefix("route "), code, hint)

        stored = as_stored(route)
        if route.type in REJECTING_TYPES:
            return stored
        oif = route.oif
        if oif is not None and oif not in self.devices:
            raise refuse(errno.ENODEV)
        if oif is not None and not self.devices[oif].link.up:
            raise refuse(errno.ENETDOWN, "Nexthop device is not up")
        if route.gateway is None or route.onlink:
            if oif is None:
                raise refuse(errno.ENODEV)
            if route.onlink and not self._may_be_onlink(route, oif):
                raise refuse(errno.EINVAL, _MISMATCH)
        else:
            if self.is_local(route.gateway) and route.gateway.version == 6:
                raise refuse(errno.EINVAL, "Gateway can not be a local address")
            oif = self._link_towards(route.gateway, oif)
            if oif is None:
                code = errno.ENETUNREACH if route.dst.version == 4 else errno.EHOSTUNREACH
                raise refuse(code, "Nexthop has invalid gateway")
        if route.src is not None and not self.is_local(route.src):
            raise refuse(errno.EINVAL, "Invalid prefsrc address")
        return replace(stored, oif=oif)

    def _may_be_onlink(self, route: Route, oif: int) -> bool:
        """Whether the kernel believes that the gateway is on the link.

        IPv6 does not if the best route to it leads through another link and is not the default
        route; unless the new route itself, of which the stepping stone is put down first, will be
        the best one. (Modelled for gateways that lie in the destination, which those of a vxlan
        device do.)
        """
        if route.dst.version == 4 or route.gateway is None or route.gateway not in route.dst:
            return True
        best = next(self.routes.covering(route.gateway), None)
        if best is None:
            return True
        other = best.route
        rank = (-other.dst.prefixlen, real_metric(other))
        return (
            rank >= (-route.dst.prefixlen, real_metric(route))
            or other.dst.prefixlen == 0
            or other.type in REJECTING_TYPES
            or any(entry.goes_through(oif) for entry in self.routes.under(other))
        )

    def _link_towards(self, gateway: IPAddress, oif: int | None) -> int | None:
        """The link on which a gateway is a direct neighbour."""
        entry = self.look_up(gateway, oif=oif)
        if entry is None or entry.route.gateway is not None or entry.hops:
            return None
        if gateway.version == 4 and entry.route.scope < RT_SCOPE_LINK:
            return None
        return entry.route.oif

    def look_up(self, destination: IPAddress, *, oif: int | None = None) -> Entry | None:
        """The route that a packet to this destination takes."""
        for entry in self.routes.covering(destination):
            if oif is None or entry.goes_through(oif):
                return entry
        return None

    def is_local(self, address: IPAddress | None) -> bool:
        """Whether a link has this address."""
        return any(
            own.interface.ip == address for d in self.devices.values() for own in d.addresses
        )

    def source(self, oif: int, family: Family) -> IPAddress | None:
        """Source address selection as far as it is needed: of the link, else of any."""
        others = [d for index, d in self.devices.items() if index != oif]
        for device in [self.devices[oif], *others]:
            for address in device.addresses:
                if (
                    family_of(address.interface.ip) is family
                    and address.scope == RT_SCOPE_UNIVERSE
                    and not address.deprecated
                ):
                    return address.interface.ip
        return None

    def _delete_route(self, route: Route) -> None:
        for entry in self.routes.under(as_stored(route)):
            if is_same(entry, route):
                self._drop_route(entry, announce=True)
                return

    def _drop_route(self, entry: Entry, *, announce: bool) -> None:
        self.routes.remove(entry)
        if announce:
            self.announce_route(entry.route, deleted=True)

    def _set_address(self, address: Address) -> None:
        device = self.devices.get(address.index)
        if device is None:
            raise kernel_error(
                "address replace", str(address).removeprefix("address "), errno.ENODEV
            )
        interface = address.interface
        if interface.version == 6:
            scope = RT_SCOPE_LINK if interface.ip in LINK_LOCAL else RT_SCOPE_UNIVERSE
            scope = RT_SCOPE_HOST if interface.ip.is_loopback else scope
            address = replace(address, scope=scope)
        address = replace(address, permanent=True, temporary=False, deprecated=False)
        for standing in list(device.addresses):
            if standing.interface.ip != interface.ip:
                continue
            if interface.version == 4 and standing.interface != interface:
                continue  # IPv4 tells addresses apart by their prefix length, too
            if standing == address:
                return
            self._drop_address(device, standing)
        device.addresses.append(address)
        if device.link.up:
            self.connect(device, address)
        self.announce(Topic.ADDRESS, address.index, family=family_of(interface.ip), thing=address)

    def connect(self, device: Device, address: Address) -> None:
        """The route that comes with an address."""
        if device.link.loopback:
            return
        dst: IPNetwork
        interface = address.interface
        if isinstance(interface, IPv6Interface):
            dst = interface.network
            route = Route(
                dst=dst,
                oif=device.link.index,
                protocol=RTPROT_KERNEL,
                metric=IPV6_CONNECTED_METRIC,
            )
        elif interface.network.prefixlen < 32 and not self._is_secondary(device, address):
            dst = interface.network
            route = Route(
                dst=dst,
                oif=device.link.index,
                protocol=RTPROT_KERNEL,
                scope=RT_SCOPE_LINK,
                src=interface.ip,
            )
        else:
            return
        if not any(entry.route == route for entry in self.routes.under(route)):
            self.routes.add(Entry(route))
            self.announce_route(route)

    @staticmethod
    def _is_secondary(device: Device, address: Address) -> bool:
        """Whether another IPv4 address of the link was in this network before."""
        network = address.interface.network
        first = next(a for a in device.addresses if a.interface.network == network)
        return first != address

    def _delete_address(self, address: Address) -> None:
        device = self.devices.get(address.index)
        if device is not None:
            for standing in list(device.addresses):
                if standing.key == address.key and standing in device.addresses:
                    self._drop_address(device, standing)

    def _drop_address(self, device: Device, address: Address) -> None:
        interface = address.interface
        family = family_of(interface.ip)
        gone = [address]
        if family is Family.V4 and interface.network.prefixlen < 32:
            # Without net.ipv4.conf.*.promote_secondaries the secondary ones go with the first.
            alike = [a for a in device.addresses if a.interface.network == interface.network]
            if alike[0] == address:
                gone = alike
        for one in gone:
            device.addresses.remove(one)
            self.announce(Topic.ADDRESS, device.link.index, deleted=True, family=family, thing=one)
        rest = [a for a in device.addresses if family_of(a.interface.ip) is family]
        if all(a.interface.network != interface.network for a in rest):
            self._disconnect(device, interface.network, announce=family is Family.V6)
        if family is Family.V4:
            for entry in list(self.routes):
                src = entry.route.src
                if src in [a.interface.ip for a in gone] and not self.is_local(src):
                    self._drop_route(entry, announce=False)
            if not rest:
                self._drop_routes_through(device, Family.V4, announce=False)
                self._flush_neighbours(device, Family.V4)

    def _disconnect(self, device: Device, network: IPNetwork, *, announce: bool) -> None:
        for entry in list(self.routes):
            route = entry.route
            if (route.dst, route.oif, route.protocol) == (
                network,
                device.link.index,
                RTPROT_KERNEL,
            ):
                self._drop_route(entry, announce=announce)

    def _set_neighbour(self, neighbour: Neighbour) -> None:
        device = self.devices.get(neighbour.index)
        if device is None:
            subject = str(neighbour).removeprefix("neighbour ")
            raise kernel_error("neighbour replace", subject, errno.ENODEV)
        check_mac("neighbour replace", neighbour.mac)
        if device.neighbours.get(neighbour.ip) != neighbour:
            device.neighbours[neighbour.ip] = neighbour
            family = family_of(neighbour.ip)
            self.announce(Topic.NEIGHBOUR, neighbour.index, family=family, thing=neighbour)

    def _delete_neighbour(self, neighbour: Neighbour) -> None:
        device = self.devices.get(neighbour.index)
        former = device.neighbours.pop(neighbour.ip, None) if device is not None else None
        if former is not None:
            family = family_of(neighbour.ip)
            # Taken down before it is told: the kernel reports it without what it was.
            thing = replace(former, mac="", state=NUD_FAILED)
            self.announce(
                Topic.NEIGHBOUR, neighbour.index, deleted=True, family=family, thing=thing
            )

    def _set_fdb(self, entry: FdbEntry) -> None:
        def refuse(code: int) -> KernelError:
            return kernel_error("fdb replace", str(entry).removeprefix("fdb "), code)

        check_mac("fdb replace", entry.mac)
        device = self.devices.get(entry.index)
        if device is None:
            raise refuse(errno.ENODEV)
        vxlan = device.link.vxlan
        if vxlan is None:
            raise refuse(errno.EOPNOTSUPP)
        if (4 if vxlan.local is None else vxlan.local.version) != entry.dst.version:
            raise refuse(errno.EAFNOSUPPORT)
        if int(entry.mac[:2], 16) & 1 or entry.mac == "00:00:00:00:00:00":
            raise refuse(errno.EOPNOTSUPP)
        device.learned.pop(entry.mac, None)
        if device.fdb.get(entry.mac) != entry:
            device.fdb[entry.mac] = entry
            self.announce(Topic.NEIGHBOUR, entry.index, thing=entry)

    def _delete_fdb(self, entry: FdbEntry) -> None:
        device = self.devices.get(entry.index)
        if device is not None and device.fdb.get(entry.mac) == entry:
            del device.fdb[entry.mac]
            self.announce(Topic.NEIGHBOUR, entry.index, deleted=True, thing=entry)

    def _set_up(self, device: Device) -> None:
        link = device.link = replace(device.link, up=True, running=device.carrier)
        self.announce_link(link)
        for address in device.addresses:
            self.connect(device, address)
        if link.loopback:
            for interface in (ip_interface("127.0.0.1/8"), ip_interface("::1/128")):
                self._set_address(
                    Address(index=link.index, interface=interface, scope=RT_SCOPE_HOST)
                )
        if device.carrier and link.mac and not link.loopback:
            link_local = IPv6Interface((eui64(link.mac), 64))
            self._set_address(Address(index=link.index, interface=link_local))

    def _set_down(self, device: Device) -> None:
        device.link = replace(device.link, up=False, running=False)
        self.announce_link(device.link)
        device.learned.clear()
        self._flush_neighbours(device, Family.V4)
        self._drop_routes_through(device, Family.V4, announce=False)
        self._drop_routes_through(device, Family.V6, announce=True)
        self._flush_neighbours(device, Family.V6)
        for address in list(device.addresses):
            if address.interface.version == 6:
                device.addresses.remove(address)
                index = device.link.index
                self.announce(Topic.ADDRESS, index, deleted=True, family=Family.V6, thing=address)

    def _drop_routes_through(self, device: Device, family: Family, *, announce: bool) -> None:
        """Routes of which no next hop is left."""
        index = device.link.index
        for entry in list(self.routes):
            if family_of(entry.route.dst) is not family or not entry.goes_through(index):
                continue
            alive = [h for h in entry.hops if h.oif != index and self.devices[h.oif].link.up]
            if not alive:
                self._drop_route(entry, announce=announce)

    @staticmethod
    def _drop_hop(entry: Entry, index: int) -> None:
        """Takes one link out of a route with several next hops that has others left."""
        entry.hops = tuple(hop for hop in entry.hops if hop.oif != index)
        entry.route = replace(entry.route, hops=tuple(hop.gateway for hop in entry.hops))
        if len(entry.hops) == 1 and entry.route.dst.version == 6:
            (hop,) = entry.hops
            entry.route = replace(entry.route, gateway=hop.gateway, oif=hop.oif, hops=())
            entry.hops = ()

    def _flush_neighbours(self, device: Device, *families: Family) -> None:
        for neighbour in list(device.neighbours.values()):
            if family_of(neighbour.ip) in families:
                self._delete_neighbour(neighbour)

    def remove(self, device: Device) -> None:
        """A device goes, with all that hangs on it."""
        index = device.link.index
        for other in list(self.devices.values()):
            if other.link.vxlan is not None and other.link.vxlan.link == index:
                self.remove(other)
        for entry in list(device.fdb.values()):
            self._delete_fdb(entry)
        if device.link.up:
            self._set_down(device)
        for address in list(device.addresses):
            if address in device.addresses:
                self._drop_address(device, address)
        self._flush_neighbours(device, Family.V4, Family.V6)
        for route in self.routes:
            self._drop_hop(route, index)
        del self.devices[index]
        self.announce_link(device.link, deleted=True)

    def announce_link(self, link: Link, *, deleted: bool = False) -> None:
        """Tells of a link."""
        self._notify(
            Notification(topic=Topic.LINK, index=link.index, name=link.name, deleted=deleted)
        )

    def announce_route(self, route: Route, *, deleted: bool = False) -> None:
        """Tells of a route."""
        self._notify(
            Notification(
                topic=Topic.ROUTE,
                index=route.oif or 0,
                deleted=deleted,
                family=family_of(route.dst),
                dst=route.dst,
                object=route,
            )
        )

    def announce(
        self,
        topic: Topic,
        index: int,
        *,
        deleted: bool = False,
        family: Family | None = None,
        thing: Address | Neighbour | FdbEntry | None = None,
    ) -> None:
        """Tells of an address, a neighbour or an FDB entry."""
        self._notify(
            Notification(topic=topic, index=index, deleted=deleted, family=family, object=thing)
        )


def _fell_off_its_stepping_stone(route: Route, error: KernelError) -> bool:
    """Whether a route was in place for a moment without its gateway (see `kernel/batch.py`)."""
    return error.hint == _MISMATCH and route.gateway is not None and route.gateway in route.dst
