"""A `Netlink` in memory, with the kernel's side effects, for tests without root.

What makes it worth having is what it does *besides* what it was asked to: a link that goes down
takes its routes and neighbours along, the last IPv4 address of a link its IPv4 routes, a changed
MAC flushes the neighbours, and IPv4 routes vanish without a notification. The contract suite
(`tests/contract/test_netlink_contract.py`) holds it and the real kernel to the same behaviour, so
whatever is modelled here was seen on Linux 6.18.

Not modelled: policy routing and other tables, peer addresses, duplicate address detection, ARP and
ND themselves (nothing is ever learned unless a test says so), MTUs below 1280 switching IPv6 off.

A test may make the next request fail (`fail_next`), change things behind everybody's back
(`meddle`, `append_route`, `add_multipath`, …), and look at what was asked (`calls`, `applied`).
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)
from typing import Final, NamedTuple, Self

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.core.ip import Family, IPAddress, IPNetwork, family_of
from pyflannel.kernel.base import (
    IPV6_DEFAULT_METRIC,
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
    VxlanAttrs,
)
from pyflannel.kernel.ownership import RTPROT_STATIC, describe, is_near, is_protected

RTN_LOCAL: Final = 2
RT_SCOPE_HOST: Final = 254
REJECTING_TYPES: Final = frozenset((6, 7, 8, 9))
IPV6_CONNECTED_METRIC: Final = 256
VXLAN_PORT: Final = 8472
"""What the kernel takes if no port is given."""
DEFAULT_KINDS: Final = frozenset(("vxlan", "ipip", "bridge", "dummy"))
_MISMATCH: Final = "Nexthop has invalid gateway or device mismatch"
_LINK_LOCAL: Final = IPv6Network("fe80::/64")
_BATCH: Final = 64
_NAME_LIMIT: Final = 15
_VNI_LIMIT: Final = 1 << 24
_MTU_RANGE: Final = range(68, 65536)


class Hop(NamedTuple):
    """One next hop of a route with several."""

    gateway: IPAddress
    oif: int


@dataclass(slots=True)
class _Device:
    """A link and what hangs on it."""

    link: Link
    carrier: bool = True
    addresses: list[Address] = field(default_factory=list)
    neighbours: dict[IPAddress, Neighbour] = field(default_factory=dict)
    fdb: dict[str, FdbEntry] = field(default_factory=dict)
    learned: dict[str, FdbEntry] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    """A route as it stands; those with several hops are reported without gateway and link."""

    route: Route
    hops: tuple[Hop, ...] = ()

    def goes_through(self, index: int) -> bool:
        return self.route.oif == index or any(hop.oif == index for hop in self.hops)


class _RouteTable:
    """The main table: by destination, those of one destination in the order of their arrival."""

    def __init__(self) -> None:
        self._by_dst: dict[IPNetwork, list[_Entry]] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()

    def __iter__(self) -> Iterator[_Entry]:
        return iter([entry for entries in self._by_dst.values() for entry in entries])

    def add(self, entry: _Entry) -> None:
        dst = entry.route.dst
        if dst not in self._by_dst:
            self._by_dst[dst] = []
            self._lengths[dst.version, dst.prefixlen] += 1
        self._by_dst[dst].append(entry)

    def remove(self, entry: _Entry) -> None:
        dst = entry.route.dst
        entries = [other for other in self._by_dst[dst] if other is not entry]
        if entries:
            self._by_dst[dst] = entries
        else:
            del self._by_dst[dst]
            self._lengths[dst.version, dst.prefixlen] -= 1

    def under(self, route: Route) -> list[_Entry]:
        """Those with this destination and metric."""
        entries = self._by_dst.get(route.dst, [])
        return [entry for entry in entries if entry.route.metric == route.metric]

    def covering(self, address: IPAddress) -> Iterator[_Entry]:
        """Those that lead to an address: longest prefix first, then lowest metric."""
        lengths = [n for (version, n), count in self._lengths.items() if count]
        for length in sorted(set(lengths), reverse=True):
            if length <= address.max_prefixlen:
                entries = self._by_dst.get(_network(address, length), [])
                yield from sorted(entries, key=lambda entry: _real_metric(entry.route))


@dataclass(slots=True)
class _Failure:
    """One failure that was asked for."""

    kind: str
    errno: int
    match: str | Callable[[object], bool]

    def concerns(self, kind: str, subject: object) -> bool:
        if kind != self.kind:
            return False
        if isinstance(self.match, str):
            return self.match in str(subject)
        return self.match(subject)


class FakeSubscription:
    """The fake's notifications; see `Notifications`."""

    def __init__(self, near: Collection[IPNetwork] | None = None) -> None:
        self._near = near
        self._pending: deque[Notification] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False

    def push(self, notification: Notification) -> None:
        """Called by the fake."""
        route = notification.object
        if (
            self._near is not None
            and isinstance(route, Route)
            and route.protocol > RTPROT_STATIC
            and route.dst.prefixlen > 0
            and not is_near(route if route.gateway else replace(route, hops=()), self._near)
        ):
            return
        self._pending.append(notification)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notification:
        while not self._pending:
            if self.closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._pending.popleft()

    async def aclose(self) -> None:
        """Unsubscribes."""
        self.close()

    def close(self) -> None:
        """Unsubscribes. May be called twice."""
        self.closed = True
        self._pending.clear()
        self._wake()


class FakeNetlink:
    """One network namespace: at first a loopback that is down, like a real new one.

    Args:
        kinds: of links that this kernel can create.
    """

    def __init__(self, *, kinds: Iterable[str] = DEFAULT_KINDS) -> None:
        self._kinds = frozenset(kinds)
        self._devices: dict[int, _Device] = {}
        self._routes = _RouteTable()
        self._subscriptions: list[FakeSubscription] = []
        self._failures: list[_Failure] = []
        self._next_index = 1
        self._closed = False
        self.calls: Counter[str] = Counter()
        """How often each method was called, and each kind of operation (`route_replace`) tried."""
        self.applied: list[Operation] = []
        """Operations that succeeded, in order; a test may clear it."""
        self.add_link("lo", mtu=65536, mac="00:00:00:00:00:00", up=False, loopback=True)

    def fail_next(
        self,
        kind: str,
        code: int,
        *,
        match: str | Callable[[object], bool] = "",
        times: int = 1,
    ) -> None:
        """Makes the next matching requests fail.

        Args:
            kind: a method (`links`, `create_link`, `route_lookup`, …) or an operation
                (`route_replace`, `route_delete`, and so on for `neighbour`, `fdb`, `address`).
            code: errno.
            match: a part of `str()` of the subject, or a function of the subject. It is the object
                of an operation, the spec, name, index or destination given to a method, else `""`.
            times: how many.
        """
        self._failures += [_Failure(kind, code, match) for _ in range(times)]

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
    ) -> Link:
        """Plugs in a network card (or what a test wants); like the kernel announces it."""
        index = self._next_index
        self._next_index += 1
        link = Link(
            index=index,
            name=name,
            kind=kind,
            mtu=mtu,
            mac=_default_mac(index) if mac is None else mac,
            loopback=loopback,
            txqlen=1000,
        )
        self._devices[index] = _Device(link, carrier=carrier)
        self._announce_link(link)
        if up:
            self._set_up(self._devices[index])
        return self._devices[index].link

    def meddle(self, *operations: Operation) -> None:
        """Somebody else's changes: neither counted nor made to fail, but announced.

        Raises:
            KernelError: as the kernel would refuse it.
        """
        for operation in operations:
            self._carry_out(operation)

    def add_address(self, address: Address) -> None:
        """An address with all its properties, as DHCP or a router advertisement would bring it."""
        device = self._device(address.index)
        device.addresses.append(address)
        if device.link.up:
            self._connect(device, address)
        self._announce(
            Topic.ADDRESS, address.index, family=family_of(address.interface.ip), thing=address
        )

    def append_route(self, route: Route) -> None:
        """`ip route append`: one more under the same key, behind the others."""
        self._routes.add(_Entry(_as_stored(route)))
        self._announce_route(route)

    def add_multipath(self, dst: IPNetwork, hops: Sequence[Hop], *, metric: int = 0) -> None:
        """`ip route add dst nexthop … nexthop …`."""
        route = Route(dst=dst, metric=metric, hops=tuple(hop.gateway for hop in hops))
        entry = _Entry(_as_stored(route), tuple(hops))
        self._routes.add(entry)
        self._announce_route(entry.route)

    def learn(self, entry: FdbEntry) -> None:
        """A vxlan device learns where a MAC is; not listed, and in the way of nobody."""
        device = self._device(entry.index)
        if entry.mac not in device.fdb:
            device.learned[entry.mac] = entry
            self._announce(Topic.NEIGHBOUR, entry.index)

    def rename_link(self, index: int, name: str) -> None:
        """`ip link set dev … name …`."""
        device = self._device(index)
        device.link = replace(device.link, name=name)
        self._announce_link(device.link)

    def overflow(self) -> None:
        """The notification sockets run over."""
        self.notify(Notification(topic=Topic.OVERFLOW))

    def notify(self, notification: Notification) -> None:
        """Sends any notification."""
        for subscription in self._subscriptions:
            subscription.push(notification)

    async def close(self) -> None:
        """Ends the subscriptions; every request fails from now on."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()

    def notifications(self, *, near: Collection[IPNetwork] | None = None) -> FakeSubscription:
        """Subscribed from now on."""
        subscription = FakeSubscription(near)
        self._subscriptions = [s for s in self._subscriptions if not s.closed]
        self._subscriptions.append(subscription)
        return subscription

    async def links(self) -> list[Link]:
        """All links, in order of their index."""
        await self._called("links")
        return [self._devices[index].link for index in sorted(self._devices)]

    async def link(self, name: str) -> Link | None:
        """The link of this name, or `None`."""
        await self._called("link", name)
        return self._by_name(name)

    async def addresses(self, *, index: int | None = None) -> list[Address]:
        """Addresses of both families: IPv4 first, then IPv6, each by link."""
        await self._called("addresses", index)
        return [
            address
            for version in (4, 6)
            for device in self._devices.values()
            if index in (None, device.link.index)
            for address in device.addresses
            if address.interface.version == version
        ]

    async def routes(
        self,
        family: Family,
        *,
        oif: int | None = None,
        protocols: Collection[int] = (),
        near: Collection[IPNetwork] = (),
    ) -> list[Route]:
        """Routes of the main table, by destination."""
        await self._called("routes", oif)
        if not protocols:
            self.calls["all routes"] += 1
        found = [
            entry.route
            for entry in self._routes
            if family_of(entry.route.dst) is family
            and oif in (None, entry.route.oif)
            and (not protocols or entry.route.protocol in protocols)
            and (not near or is_near(entry.route, near))
        ]
        return sorted(
            found, key=lambda route: (int(route.dst.network_address), route.dst.prefixlen)
        )

    async def neighbours(self, index: int, family: Family) -> list[Neighbour]:
        """Neighbours of one link."""
        await self._called("neighbours", index)
        device = self._devices.get(index)
        if device is None:
            return []
        return [n for n in device.neighbours.values() if family_of(n.ip) is family]

    async def fdb(self, index: int) -> list[FdbEntry]:
        """FDB entries of one link that stay."""
        await self._called("fdb", index)
        device = self._devices.get(index)
        return [] if device is None else list(device.fdb.values())

    async def route_lookup(self, destination: IPAddress) -> Route | None:
        """Longest prefix, then lowest metric; own addresses first."""
        await self._called("route_lookup", destination)
        dst = _network(destination, destination.max_prefixlen)
        if self._is_local(destination):
            return Route(dst=dst, oif=1, type=RTN_LOCAL, src=destination)
        entry = self._look_up(destination)
        if entry is None or entry.route.type in REJECTING_TYPES:
            return None
        gateway, oif = entry.route.gateway, entry.route.oif
        if entry.hops:
            gateway, oif = entry.hops[0]
        assert oif is not None  # noqa: S101  a route without one has been refused
        src = entry.route.src or self._source(oif, family_of(destination))
        return Route(dst=dst, gateway=gateway, oif=oif, src=src)

    async def create_link(self, spec: LinkSpec) -> Link:
        """Creates a link of one of the kinds that this kernel knows."""
        await self._called("create_link", spec)
        subject = f"{spec.name} type {spec.kind}"

        def refuse(code: int, hint: str = "") -> KernelError:
            unavailable = code in (errno.ENODEV, errno.EOPNOTSUPP)
            kind = DeviceUnavailable if unavailable else KernelError
            return kind("link add", subject, code, hint)

        if spec.kind not in self._kinds:
            raise refuse(errno.EOPNOTSUPP, f"this kernel has no {spec.kind} devices")
        if len(spec.name) > _NAME_LIMIT:
            raise refuse(errno.ERANGE)
        if self._by_name(spec.name) is not None:
            raise refuse(errno.EEXIST)
        if spec.mac is not None and int(spec.mac[:2], 16) & 1:
            raise refuse(errno.EADDRNOTAVAIL)
        if spec.mtu is not None and spec.mtu not in _MTU_RANGE:
            raise refuse(errno.EINVAL)
        mtu, vxlan = spec.mtu, spec.vxlan
        if vxlan is not None:
            if vxlan.vni >= _VNI_LIMIT:
                raise refuse(errno.ERANGE)
            if vxlan.link and vxlan.link not in self._devices:
                raise refuse(errno.ENODEV)
            vxlan = replace(vxlan, port=vxlan.port or VXLAN_PORT)
            if any(_collide(device.link.vxlan, vxlan) for device in self._devices.values()):
                raise refuse(errno.EEXIST, "A VXLAN device with the specified VNI already exists")
            if mtu is None and vxlan.link:
                overhead = 50 if vxlan.local is None or vxlan.local.version == 4 else 70
                mtu = self._devices[vxlan.link].link.mtu - overhead
        link = self.add_link(
            spec.name,
            kind=spec.kind,
            mtu=1500 if mtu is None else mtu,
            mac="" if spec.kind == "ipip" else spec.mac,
            up=False,
            carrier=spec.kind != "bridge",
        )
        device = self._devices[link.index]
        txqlen = link.txqlen if spec.txqlen is None else spec.txqlen
        device.link = replace(link, txqlen=txqlen, vxlan=vxlan, ipip=spec.ipip)
        return device.link

    async def delete_link(self, index: int) -> None:
        """Deletes a link and all that hangs on it, vxlan devices over it included."""
        await self._called("delete_link", index)
        device = self._devices.get(index)
        if device is not None and device.link.loopback:
            raise KernelError("link delete", f"dev {index}", errno.EOPNOTSUPP)
        if device is not None:
            self._remove(device)

    async def set_link(
        self,
        index: int,
        *,
        mtu: int | None = None,
        mac: str | None = None,
        up: bool | None = None,
        txqlen: int | None = None,
    ) -> None:
        """Changes the given attributes; with what that brings along."""
        await self._called("set_link", index)
        subject = f"dev {index}"
        device = self._devices.get(index)
        if device is None:
            raise DeviceUnavailable("link set", subject, errno.ENODEV, "the link is gone")
        if mac is not None and int(mac[:2], 16) & 1:
            raise KernelError("link set", subject, errno.EADDRNOTAVAIL)
        if mtu is not None and mtu not in _MTU_RANGE:
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
            self._announce_link(device.link)
        if up is not None and up != before.up:
            if up:
                self._set_up(device)
            else:
                self._set_down(device)

    async def apply(self, operations: Sequence[Operation]) -> dict[int, KernelError]:
        """Carries the operations out in order; yields between chunks."""
        await self._called("apply")
        failures: dict[int, KernelError] = {}
        for position, operation in enumerate(operations):
            if position % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)
            kind = _kind(operation)
            self.calls[kind] += 1
            try:
                self._fail_if_asked(kind, operation.object)
                self._refuse_protected(operation)
                self._carry_out(operation)
            except KernelError as error:
                failures[position] = error
            else:
                self.applied.append(operation)
        return failures

    def _refuse_protected(self, operation: Operation) -> None:
        """Keeps us, and nobody else, from replacing what is the kernel's or a routing daemon's."""
        route = operation.object
        if not isinstance(operation, Set) or not isinstance(route, Route):
            return
        for entry in self._routes.under(_as_stored(route)):
            if is_protected(entry.route) and not is_protected(route):
                hint = f"{describe(entry.route)} is there and not ours to replace"
                raise _error("route replace", str(route).removeprefix("route "), errno.EEXIST, hint)

    async def _called(self, method: str, subject: object = "") -> None:
        self.calls[method] += 1
        await asyncio.sleep(0)
        if self._closed:
            raise KernelError(method, "", errno.EBADF, "the netlink socket is closed")
        self._fail_if_asked(method, subject)

    def _fail_if_asked(self, kind: str, subject: object) -> None:
        for failure in self._failures:
            if failure.concerns(kind, subject):
                self._failures.remove(failure)
                raise _error(kind.replace("_", " "), str(subject), failure.errno)

    def _device(self, index: int) -> _Device:
        try:
            return self._devices[index]
        except KeyError:
            raise DeviceUnavailable("find", f"dev {index}", errno.ENODEV) from None

    def _by_name(self, name: str) -> Link | None:
        links = (device.link for device in self._devices.values())
        return next((link for link in links if link.name == name), None)

    def _carry_out(self, operation: Operation) -> None:
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
        standing = self._routes.under(_as_stored(route))
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
            self._routes.remove(entry)
        self._routes.add(_Entry(stored))
        if not unchanged or stored.dst.version == 6:
            self._announce_route(stored)

    def _checked(self, route: Route) -> Route:
        """The route as the kernel will report it, or its refusal."""

        def refuse(code: int, hint: str = "") -> KernelError:
            return _error("route replace", str(route).removeprefix("route "), code, hint)

        stored = _as_stored(route)
        if route.type in REJECTING_TYPES:
            return stored
        oif = route.oif
        if oif is not None and oif not in self._devices:
            raise refuse(errno.ENODEV)
        if oif is not None and not self._devices[oif].link.up:
            raise refuse(errno.ENETDOWN, "Nexthop device is not up")
        if route.gateway is None or route.onlink:
            if oif is None:
                raise refuse(errno.ENODEV)
            if route.onlink and not self._may_be_onlink(route, oif):
                raise refuse(errno.EINVAL, _MISMATCH)
        else:
            if self._is_local(route.gateway) and route.gateway.version == 6:
                raise refuse(errno.EINVAL, "Gateway can not be a local address")
            oif = self._link_towards(route.gateway, oif)
            if oif is None:
                code = errno.ENETUNREACH if route.dst.version == 4 else errno.EHOSTUNREACH
                raise refuse(code, "Nexthop has invalid gateway")
        if route.src is not None and not self._is_local(route.src):
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
        best = next(self._routes.covering(route.gateway), None)
        if best is None:
            return True
        other = best.route
        rank = (-other.dst.prefixlen, _real_metric(other))
        return (
            rank >= (-route.dst.prefixlen, _real_metric(route))
            or other.dst.prefixlen == 0
            or other.type in REJECTING_TYPES
            or any(entry.goes_through(oif) for entry in self._routes.under(other))
        )

    def _link_towards(self, gateway: IPAddress, oif: int | None) -> int | None:
        """The link on which a gateway is a direct neighbour."""
        entry = self._look_up(gateway, oif=oif)
        if entry is None or entry.route.gateway is not None or entry.hops:
            return None
        if gateway.version == 4 and entry.route.scope < RT_SCOPE_LINK:
            return None
        return entry.route.oif

    def _look_up(self, destination: IPAddress, *, oif: int | None = None) -> _Entry | None:
        for entry in self._routes.covering(destination):
            if oif is None or entry.goes_through(oif):
                return entry
        return None

    def _is_local(self, address: IPAddress | None) -> bool:
        return any(
            own.interface.ip == address for d in self._devices.values() for own in d.addresses
        )

    def _source(self, oif: int, family: Family) -> IPAddress | None:
        """Source address selection as far as it is needed: of the link, else of any."""
        others = [d for index, d in self._devices.items() if index != oif]
        for device in [self._devices[oif], *others]:
            for address in device.addresses:
                if (
                    family_of(address.interface.ip) is family
                    and address.scope == RT_SCOPE_UNIVERSE
                    and not address.deprecated
                ):
                    return address.interface.ip
        return None

    def _delete_route(self, route: Route) -> None:
        for entry in self._routes.under(_as_stored(route)):
            if _is_same(entry, route):
                self._drop_route(entry, announce=True)
                return

    def _drop_route(self, entry: _Entry, *, announce: bool) -> None:
        self._routes.remove(entry)
        if announce:
            self._announce_route(entry.route, deleted=True)

    def _set_address(self, address: Address) -> None:
        device = self._devices.get(address.index)
        if device is None:
            raise _error("address replace", str(address).removeprefix("address "), errno.ENODEV)
        interface = address.interface
        if interface.version == 6:
            scope = RT_SCOPE_LINK if interface.ip in _LINK_LOCAL else RT_SCOPE_UNIVERSE
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
            self._connect(device, address)
        self._announce(Topic.ADDRESS, address.index, family=family_of(interface.ip), thing=address)

    def _connect(self, device: _Device, address: Address) -> None:
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
        if not any(entry.route == route for entry in self._routes.under(route)):
            self._routes.add(_Entry(route))
            self._announce_route(route)

    @staticmethod
    def _is_secondary(device: _Device, address: Address) -> bool:
        """Whether another IPv4 address of the link was in this network before."""
        network = address.interface.network
        first = next(a for a in device.addresses if a.interface.network == network)
        return first != address

    def _delete_address(self, address: Address) -> None:
        device = self._devices.get(address.index)
        if device is not None:
            for standing in list(device.addresses):
                if standing.key == address.key and standing in device.addresses:
                    self._drop_address(device, standing)

    def _drop_address(self, device: _Device, address: Address) -> None:
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
            self._announce(Topic.ADDRESS, device.link.index, deleted=True, family=family, thing=one)
        rest = [a for a in device.addresses if family_of(a.interface.ip) is family]
        if all(a.interface.network != interface.network for a in rest):
            self._disconnect(device, interface.network, announce=family is Family.V6)
        if family is Family.V4:
            for entry in list(self._routes):
                src = entry.route.src
                if src in [a.interface.ip for a in gone] and not self._is_local(src):
                    self._drop_route(entry, announce=False)
            if not rest:
                self._drop_routes_through(device, Family.V4, announce=False)
                self._flush_neighbours(device, Family.V4)

    def _disconnect(self, device: _Device, network: IPNetwork, *, announce: bool) -> None:
        for entry in list(self._routes):
            route = entry.route
            if (route.dst, route.oif, route.protocol) == (
                network,
                device.link.index,
                RTPROT_KERNEL,
            ):
                self._drop_route(entry, announce=announce)

    def _set_neighbour(self, neighbour: Neighbour) -> None:
        device = self._devices.get(neighbour.index)
        if device is None:
            subject = str(neighbour).removeprefix("neighbour ")
            raise _error("neighbour replace", subject, errno.ENODEV)
        _check_mac("neighbour replace", neighbour.mac)
        if device.neighbours.get(neighbour.ip) != neighbour:
            device.neighbours[neighbour.ip] = neighbour
            family = family_of(neighbour.ip)
            self._announce(Topic.NEIGHBOUR, neighbour.index, family=family, thing=neighbour)

    def _delete_neighbour(self, neighbour: Neighbour) -> None:
        device = self._devices.get(neighbour.index)
        former = device.neighbours.pop(neighbour.ip, None) if device is not None else None
        if former is not None:
            family = family_of(neighbour.ip)
            # Taken down before it is told: the kernel reports it without what it was.
            thing = replace(former, mac="", state=NUD_FAILED)
            self._announce(
                Topic.NEIGHBOUR, neighbour.index, deleted=True, family=family, thing=thing
            )

    def _set_fdb(self, entry: FdbEntry) -> None:
        def refuse(code: int) -> KernelError:
            return _error("fdb replace", str(entry).removeprefix("fdb "), code)

        _check_mac("fdb replace", entry.mac)
        device = self._devices.get(entry.index)
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
            self._announce(Topic.NEIGHBOUR, entry.index, thing=entry)

    def _delete_fdb(self, entry: FdbEntry) -> None:
        device = self._devices.get(entry.index)
        if device is not None and device.fdb.get(entry.mac) == entry:
            del device.fdb[entry.mac]
            self._announce(Topic.NEIGHBOUR, entry.index, deleted=True, thing=entry)

    def _set_up(self, device: _Device) -> None:
        link = device.link = replace(device.link, up=True, running=device.carrier)
        self._announce_link(link)
        for address in device.addresses:
            self._connect(device, address)
        if link.loopback:
            for interface in (ip_interface("127.0.0.1/8"), ip_interface("::1/128")):
                self._set_address(
                    Address(index=link.index, interface=interface, scope=RT_SCOPE_HOST)
                )
        if device.carrier and link.mac and not link.loopback:
            link_local = IPv6Interface((_eui64(link.mac), 64))
            self._set_address(Address(index=link.index, interface=link_local))

    def _set_down(self, device: _Device) -> None:
        device.link = replace(device.link, up=False, running=False)
        self._announce_link(device.link)
        device.learned.clear()
        self._flush_neighbours(device, Family.V4)
        self._drop_routes_through(device, Family.V4, announce=False)
        self._drop_routes_through(device, Family.V6, announce=True)
        self._flush_neighbours(device, Family.V6)
        for address in list(device.addresses):
            if address.interface.version == 6:
                device.addresses.remove(address)
                index = device.link.index
                self._announce(Topic.ADDRESS, index, deleted=True, family=Family.V6, thing=address)

    def _drop_routes_through(self, device: _Device, family: Family, *, announce: bool) -> None:
        """Routes of which no next hop is left."""
        index = device.link.index
        for entry in list(self._routes):
            if family_of(entry.route.dst) is not family or not entry.goes_through(index):
                continue
            alive = [h for h in entry.hops if h.oif != index and self._devices[h.oif].link.up]
            if not alive:
                self._drop_route(entry, announce=announce)

    @staticmethod
    def _drop_hop(entry: _Entry, index: int) -> None:
        """Takes one link out of a route with several next hops that has others left."""
        entry.hops = tuple(hop for hop in entry.hops if hop.oif != index)
        entry.route = replace(entry.route, hops=tuple(hop.gateway for hop in entry.hops))
        if len(entry.hops) == 1 and entry.route.dst.version == 6:
            (hop,) = entry.hops
            entry.route = replace(entry.route, gateway=hop.gateway, oif=hop.oif, hops=())
            entry.hops = ()

    def _flush_neighbours(self, device: _Device, *families: Family) -> None:
        for neighbour in list(device.neighbours.values()):
            if family_of(neighbour.ip) in families:
                self._delete_neighbour(neighbour)

    def _remove(self, device: _Device) -> None:
        index = device.link.index
        for other in list(self._devices.values()):
            if other.link.vxlan is not None and other.link.vxlan.link == index:
                self._remove(other)
        for entry in list(device.fdb.values()):
            self._delete_fdb(entry)
        if device.link.up:
            self._set_down(device)
        for address in list(device.addresses):
            if address in device.addresses:
                self._drop_address(device, address)
        self._flush_neighbours(device, Family.V4, Family.V6)
        for route in self._routes:
            self._drop_hop(route, index)
        del self._devices[index]
        self._announce_link(device.link, deleted=True)

    def _announce_link(self, link: Link, *, deleted: bool = False) -> None:
        self.notify(
            Notification(topic=Topic.LINK, index=link.index, name=link.name, deleted=deleted)
        )

    def _announce_route(self, route: Route, *, deleted: bool = False) -> None:
        self.notify(
            Notification(
                topic=Topic.ROUTE,
                index=route.oif or 0,
                deleted=deleted,
                family=family_of(route.dst),
                dst=route.dst,
                object=route,
            )
        )

    def _announce(
        self,
        topic: Topic,
        index: int,
        *,
        deleted: bool = False,
        family: Family | None = None,
        thing: Address | Neighbour | FdbEntry | None = None,
    ) -> None:
        self.notify(
            Notification(topic=topic, index=index, deleted=deleted, family=family, object=thing)
        )


def _error(operation: str, subject: str, code: int, hint: str = "") -> KernelError:
    if code in (errno.EPERM, errno.EACCES):
        return NotPermitted(operation, subject, code)
    if code == errno.ENODEV:
        return DeviceUnavailable(operation, subject, code, hint or "the link is gone")
    return KernelError(operation, subject, code, hint)


def _check_mac(operation: str, mac: str) -> None:
    try:
        bytes.fromhex(mac.replace(":", ""))
    except ValueError as error:
        raise KernelError(operation, f"lladdr {mac}", errno.EINVAL, str(error)) from error


def _kind(operation: Operation) -> str:
    return f"{operation.object.key[0]}_{'replace' if isinstance(operation, Set) else 'delete'}"


def _as_stored(route: Route) -> Route:
    """A route as the kernel reports it."""
    if route.dst.version == 6:
        metric = 0 if route.metric == IPV6_DEFAULT_METRIC else route.metric
        route = replace(route, metric=metric, scope=RT_SCOPE_UNIVERSE)
    if route.type in REJECTING_TYPES:
        return replace(route, oif=None, gateway=None, onlink=False)
    return route


def _real_metric(route: Route) -> int:
    return route.metric or (IPV6_DEFAULT_METRIC if route.dst.version == 6 else 0)


def _is_same(entry: _Entry, wanted: Route) -> bool:
    """Whether this is the one that a delete is about; the keys agree."""
    found = entry.route
    if found.type != wanted.type or found.gateway != wanted.gateway:
        return False
    if is_protected(found) and found.protocol != wanted.protocol:
        return False
    return found.oif == wanted.oif or (
        wanted.oif is None and (wanted.gateway is not None or wanted.type in REJECTING_TYPES)
    )


def _fell_off_its_stepping_stone(route: Route, error: KernelError) -> bool:
    """Whether a route was in place for a moment without its gateway (see `kernel/batch.py`)."""
    return error.hint == _MISMATCH and route.gateway is not None and route.gateway in route.dst


def _collide(standing: VxlanAttrs | None, wanted: VxlanAttrs) -> bool:
    """Whether two vxlan devices would get the same packets."""

    def identity(vxlan: VxlanAttrs) -> tuple[int, int, int]:
        return (vxlan.vni, vxlan.port, 4 if vxlan.local is None else vxlan.local.version)

    return standing is not None and identity(standing) == identity(wanted)


def _default_mac(index: int) -> str:
    """Locally administered and unicast, like the kernel's random ones; here it can be foretold."""
    return f"06:00:00:00:{index >> 8 & 0xFF:02x}:{index & 0xFF:02x}"


def _eui64(mac: str) -> IPv6Address:
    """The link-local address that a MAC gives (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(_LINK_LOCAL.network_address.packed[:8] + identifier)


def _network(address: IPAddress, length: int) -> IPNetwork:
    if isinstance(address, IPv4Address):
        return IPv4Network((address, length), strict=False)
    return IPv6Network((address, length), strict=False)
