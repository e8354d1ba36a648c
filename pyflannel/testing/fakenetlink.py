"""A `Netlink` in memory, with the kernel's side effects, for tests without root.

What makes it worth having is what it does *besides* what it was asked to: a link that goes down
takes its routes and neighbours along, the last IPv4 address of a link its IPv4 routes, a changed
MAC flushes the neighbours, and IPv4 routes vanish without a notification. The contract suite
(`tests/contract/netlink/`) holds it and the real kernel to the same behaviour, so
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
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final, Self

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork, family_of
from pyflannel.kernel.base import (
    Address,
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
from pyflannel.kernel.ownership import RTPROT_STATIC, describe, is_near, is_protected
from pyflannel.records import dataclass
from pyflannel.testing.fakedevice import kernel_error
from pyflannel.testing.fakekernel import FakeKernel
from pyflannel.testing.fakeroutes import (
    REJECTING_TYPES,
    Entry,
    Hop,
    as_stored,
    network_of,
)

RTN_LOCAL: Final = 2
DEFAULT_KINDS: Final = frozenset(("vxlan", "ipip", "bridge", "dummy"))
_BATCH: Final = 64


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

    def __init__(
        self,
        near: Collection[IPNetwork] | None = None,
        neighbours_of: Collection[int] | None = None,
    ) -> None:
        self._near = near
        self._neighbours_of = neighbours_of
        self._pending: deque[Notification] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False

    def push(self, notification: Notification) -> None:
        """Called by the fake."""
        if (
            notification.topic is Topic.NEIGHBOUR
            and self._neighbours_of is not None
            and notification.index not in self._neighbours_of
        ):
            return
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

    def hear_neighbours_of(self, indexes: Collection[int]) -> None:
        """As in `Notifications`."""
        self._neighbours_of = indexes

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
        self._kernel = FakeKernel(kinds, self.notify)
        self._subscriptions: list[FakeSubscription] = []
        self._failures: list[_Failure] = []
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
        master: int = 0,
    ) -> Link:
        """Plugs in a network card (or what a test wants); like the kernel announces it."""
        return self._kernel.add_link(
            name,
            kind=kind,
            mtu=mtu,
            mac=mac,
            up=up,
            carrier=carrier,
            loopback=loopback,
            master=master,
        )

    def meddle(self, *operations: Operation) -> None:
        """Changes by another program: neither counted nor made to fail, but announced.

        Raises:
            KernelError: as the kernel would refuse it.
        """
        for operation in operations:
            self._kernel.carry_out(operation)

    def add_address(self, address: Address) -> None:
        """An address with all its properties, as DHCP or a router advertisement would bring it."""
        device = self._kernel.device(address.index)
        device.addresses.append(address)
        if device.link.up:
            self._kernel.connect(device, address)
        self._kernel.announce(
            Topic.ADDRESS, address.index, family=family_of(address.interface.ip), thing=address
        )

    def append_route(self, route: Route) -> None:
        """`ip route append`: one more under the same key, behind the others."""
        self._kernel.routes.add(Entry(as_stored(route)))
        self._kernel.announce_route(route)

    def add_multipath(self, dst: IPNetwork, hops: Sequence[Hop], *, metric: int = 0) -> None:
        """`ip route add dst nexthop … nexthop …`."""
        route = Route(dst=dst, metric=metric, hops=tuple(hop.gateway for hop in hops))
        entry = Entry(as_stored(route), tuple(hops))
        self._kernel.routes.add(entry)
        self._kernel.announce_route(entry.route)

    def learn(self, entry: FdbEntry) -> None:
        """A vxlan device learns where a MAC is; not listed, and in no one's way."""
        device = self._kernel.device(entry.index)
        if entry.mac not in device.fdb:
            device.learned[entry.mac] = entry
            self._kernel.announce(Topic.NEIGHBOUR, entry.index)

    def rename_link(self, index: int, name: str) -> None:
        """`ip link set dev … name …`."""
        device = self._kernel.device(index)
        device.link = replace(device.link, name=name)
        self._kernel.announce_link(device.link)

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

    def notifications(
        self,
        *,
        near: Collection[IPNetwork] | None = None,
        neighbours_of: Collection[int] | None = None,
    ) -> FakeSubscription:
        """Subscribed from now on."""
        subscription = FakeSubscription(near, neighbours_of)
        self._subscriptions = [s for s in self._subscriptions if not s.closed]
        self._subscriptions.append(subscription)
        return subscription

    async def links(self) -> list[Link]:
        """All links, in order of their index."""
        await self._called("links")
        return [self._kernel.devices[index].link for index in sorted(self._kernel.devices)]

    async def link(self, name: str) -> Link | None:
        """The link of this name, or `None`."""
        await self._called("link", name)
        return self._kernel.by_name(name)

    async def addresses(self, *, index: int | None = None) -> list[Address]:
        """Addresses of both families: IPv4 first, then IPv6, each by link."""
        await self._called("addresses", index)
        return [
            address
            for version in (4, 6)
            for device in self._kernel.devices.values()
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
            for entry in self._kernel.routes
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
        device = self._kernel.devices.get(index)
        if device is None:
            return []
        return [n for n in device.neighbours.values() if family_of(n.ip) is family]

    async def fdb(self, index: int) -> list[FdbEntry]:
        """FDB entries of one link that stay."""
        await self._called("fdb", index)
        device = self._kernel.devices.get(index)
        return [] if device is None else list(device.fdb.values())

    async def route_lookup(self, destination: IPAddress) -> Route | None:
        """Longest prefix, then lowest metric; own addresses first."""
        await self._called("route_lookup", destination)
        dst = network_of(destination, destination.max_prefixlen)
        if self._kernel.is_local(destination):
            return Route(dst=dst, oif=1, type=RTN_LOCAL, src=destination)
        entry = self._kernel.look_up(destination)
        if entry is None or entry.route.type in REJECTING_TYPES:
            return None
        gateway, oif = entry.route.gateway, entry.route.oif
        if entry.hops:
            gateway, oif = entry.hops[0]
        assert oif is not None  # noqa: S101  a route without one has been refused
        src = entry.route.src or self._kernel.source(oif, family_of(destination))
        return Route(dst=dst, gateway=gateway, oif=oif, src=src)

    async def create_link(self, spec: LinkSpec) -> Link:
        """Creates a link of one of the kinds that this kernel knows."""
        await self._called("create_link", spec)
        return self._kernel.create_link(spec)

    async def delete_link(self, index: int) -> None:
        """Deletes a link and all that hangs on it, vxlan devices over it included."""
        await self._called("delete_link", index)
        device = self._kernel.devices.get(index)
        if device is not None and device.link.loopback:
            raise KernelError("link delete", f"dev {index}", errno.EOPNOTSUPP)
        if device is not None:
            self._kernel.remove(device)

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
        self._kernel.set_link(index, mtu=mtu, mac=mac, up=up, txqlen=txqlen)

    async def tx_checksum(self, name: str) -> bool:
        """Whether a link takes packets without a checksum; a new one does."""
        await self._called("tx_checksum", name)
        return self._kernel.named(name).tx_checksum

    async def set_tx_checksum(self, name: str, *, on: bool) -> None:
        """Switches it; announced if it was another way."""
        await self._called("set_tx_checksum", name)
        device = self._kernel.named(name)
        if device.tx_checksum != on:
            device.tx_checksum = on
            self._kernel.announce_link(device.link)

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
                self._kernel.carry_out(operation)
            except KernelError as error:
                failures[position] = error
            else:
                self.applied.append(operation)
        return failures

    def _refuse_protected(self, operation: Operation) -> None:
        """Keeps us, and no one else, from replacing what is the kernel's or a routing daemon's."""
        route = operation.object
        if not isinstance(operation, Set) or not isinstance(route, Route):
            return
        for entry in self._kernel.routes.under(as_stored(route)):
            if is_protected(entry.route) and not is_protected(route):
                hint = f"{describe(entry.route)} is there and not ours to replace"
                raise kernel_error(
                    "route replace", str(route).removeprefix("route "), errno.EEXIST, hint
                )

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
                raise kernel_error(kind.replace("_", " "), str(subject), failure.errno)


def _kind(operation: Operation) -> str:
    return f"{operation.object.key[0]}_{'replace' if isinstance(operation, Set) else 'delete'}"
