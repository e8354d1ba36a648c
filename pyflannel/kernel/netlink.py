"""The real `Netlink`: this network namespace's links, addresses, routes, neighbours and FDBs.

`channel.py` moves datagrams. The format of what is in them is known to a module for each kind of
object: `routes.py`, `neighbours.py`, `addresses.py`, `links.py`; `pyroute.py` knows that of new
links and look-ups. `batch.py` knows what must be sent so that the kernel does what `Set` and
`Delete` promise. This module puts them together and gives errors their meaning.

A batch that touches routes or addresses is preceded by a dump of what may stand under their keys (a
few microseconds an entry; only what the batch names is decoded). Of routes the kernel is asked for
those of a few protocols: on a router the rest may be a hundred thousand. Others may
change the table in between; an EEXIST that comes from that is tried once more.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Final, TypeVar

from pyflannel.aio.pace import drained, let_go, paced
from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.core.ip import Family, IPAddress, IPNetwork, family_of
from pyflannel.kernel import ethtool, links, pyroute, rtnl
from pyflannel.kernel.addresses import decode_address, dump_addresses
from pyflannel.kernel.base import (
    NUD_NOARP,
    Address,
    Delete,
    FdbEntry,
    Link,
    LinkSpec,
    Neighbour,
    Operation,
    Route,
    Set,
)
from pyflannel.kernel.batch import (
    ABSENT,
    Batch,
    FoundAddress,
    FoundRoute,
    stone_of,
    wants_stepping_stone,
)
from pyflannel.kernel.channel import Channel, Subscription
from pyflannel.kernel.neighbours import decode_fdb, decode_neighbour, dump_fdb, dump_neighbours
from pyflannel.kernel.ownership import LISTED, is_near
from pyflannel.kernel.routes import (
    RouteKey,
    decode_route,
    dump_routes,
    key_of,
    key_of_body,
    leading_bytes,
    protocol_of_body,
)
from pyflannel.kernel.rtnl import Answer, Message, Request
from pyflannel.kernel.udp import find_holder

_UNREACHABLE: Final = frozenset(
    (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENETDOWN)
)
"""How a route look-up says that there is no way. EACCES is a route of type `prohibit`, EINVAL one
of type `blackhole`; looking up needs no permission."""

_NAME_LIMIT: Final = 15
"""IFNAMSIZ less the terminating zero; no link has a longer name."""

_FEW: Final = 8
"""Routes that are looked for in the undecoded messages, a hundred times faster."""

T = TypeVar("T")

VXLAN_PORT: Final = 8472
"""What the kernel takes where no port is given (drivers/net/vxlan, `VXLAN_PORT` in Linux)."""


def _error(operation: str, subject: str, answer: Answer) -> KernelError:
    """The exception for an answer; the kernel's own words become the hint."""
    code = answer.errno
    if code == errno.EPERM or code == errno.EACCES:
        return NotPermitted(operation, subject, code)
    if code == errno.ENODEV:
        return DeviceUnavailable(operation, subject, code, answer.text or "the link is gone")
    return KernelError(operation, subject, code, answer.text)


class KernelNetlink:
    """Netlink of the network namespace in which it is first used; the contract is `Netlink`'s."""

    def __init__(self) -> None:
        self._channel = Channel()
        self._subscriptions: list[Subscription] = []

    async def close(self) -> None:
        """Releases the sockets and ends the subscriptions. May be called twice."""
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
        await self._channel.close()

    def notifications(
        self,
        *,
        near: Collection[IPNetwork] | None = None,
        neighbours_of: Collection[int] | None = None,
    ) -> Subscription:
        """Kernel notifications, subscribed from now on."""
        subscription = Subscription(near, neighbours_of)
        self._subscriptions = [s for s in self._subscriptions if s.is_open]
        self._subscriptions.append(subscription)
        return subscription

    async def links(self) -> list[Link]:
        """All links, in order of their index."""
        messages = await self._dump("link list", links.dump_links())
        found = await _decode(messages, rtnl.RTM_NEWLINK, links.decode_link)
        return sorted(found, key=lambda link: link.index)

    async def link(self, name: str) -> Link | None:
        """The link of this name, or `None`."""
        if not 0 < len(name.encode()) <= _NAME_LIMIT:
            return None
        answer, messages = await self._channel.get("link show", links.get_link(name))
        if answer.errno == errno.ENODEV:
            return None
        if answer.errno:
            raise _error("link show", name, answer)
        return links.decode_link(messages[0].body)

    async def addresses(self, *, index: int | None = None) -> list[Address]:
        """Addresses of both families, of one link or of all; in the kernel's order."""
        messages = await self._dump("address list", dump_addresses(index))
        found = await _decode(messages, rtnl.RTM_NEWADDR, decode_address)
        return [address for address in found if index is None or address.index == index]

    async def routes(
        self,
        family: Family,
        *,
        oif: int | None = None,
        protocols: Collection[int] = (),
        near: Collection[IPNetwork] = (),
    ) -> list[Route]:
        """Routes of the main table, all or some."""
        messages = await self._dump_routes(family, oif, protocols)
        if near:
            leads = [leading_bytes(network) for network in near]
            messages = [m async for m in drained(messages) if any(lead in m.body for lead in leads)]
        found = await _decode(messages, rtnl.RTM_NEWROUTE, decode_route)
        return [
            route
            async for route in drained(found)
            if family_of(route.dst) is family
            and (oif is None or route.oif == oif)
            and (not near or is_near(route, near))
        ]

    async def _dump_routes(
        self, family: Family, oif: int | None = None, protocols: Collection[int] = ()
    ) -> list[Message]:
        """Route messages of some protocols, or of all. Old kernels give more: it is sorted out."""
        messages: list[Message] = []
        for protocol in protocols or (0,):
            request = dump_routes(family, oif, protocol)
            messages += [
                message
                async for message in drained(await self._dump("route list", request))
                if not protocol or protocol_of_body(message.body) == protocol
            ]
        return messages

    async def neighbours(self, index: int, family: Family) -> list[Neighbour]:
        """Neighbours of one link in any state (permanent and learned)."""
        messages = await self._dump("neighbour list", dump_neighbours(family, index))
        found = await _decode(messages, rtnl.RTM_NEWNEIGH, decode_neighbour)
        return [
            n
            async for n in drained(found)
            if n.index == index and family_of(n.ip) is family and n.state != NUD_NOARP
        ]

    async def fdb(self, index: int) -> list[FdbEntry]:
        """FDB entries of one vxlan link which have a destination and stay."""
        messages = await self._dump("fdb list", dump_fdb(index))
        found = await _decode(messages, rtnl.RTM_NEWNEIGH, decode_fdb)
        return [entry async for entry in drained(found) if entry.index == index]

    async def _dump(self, operation: str, request: Request) -> list[Message]:
        """A listing. That of a link or table which is not there is empty."""
        answer, messages = await self._channel.dump(operation, request)
        if answer.errno in ABSENT:
            return []
        if answer.errno:
            raise _error(operation, "", answer)
        return messages

    async def route_lookup(self, destination: IPAddress) -> Route | None:
        """The route the kernel would take; `None` if the destination is unreachable."""
        request = pyroute.look_up_route(destination)
        answer, messages = await self._channel.get("route get", request)
        if answer.errno in _UNREACHABLE:
            return None
        if answer.errno:
            raise _error("route get", str(destination), answer)
        return pyroute.decode_looked_up_route(messages[0].body, destination)

    async def create_link(self, spec: LinkSpec) -> Link:
        """Creates a link, exclusively, and reads it back."""
        subject = f"{spec.name} type {spec.kind}"
        (answer,) = await self._channel.transact("link add", [links.create_link(spec)])
        if answer.errno == errno.EOPNOTSUPP:
            hint = f"this kernel has no {spec.kind} devices; try: modprobe {spec.kind}"
            raise DeviceUnavailable("link add", subject, answer.errno, hint)
        if answer.errno:
            raise _error("link add", subject, answer)
        link = await self.link(spec.name)
        if link is None:
            hint = "it was created, and deleted or renamed at once by another program"
            raise DeviceUnavailable("link add", subject, errno.ENODEV, hint)
        return link

    async def delete_link(self, index: int) -> None:
        """Deletes a link; one that is not there counts as deleted."""
        (answer,) = await self._channel.transact("link delete", [links.delete_link(index)])
        if answer.errno and answer.errno not in ABSENT:
            raise _error("link delete", f"dev {index}", answer)

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
        request = links.change_link(index, mtu=mtu, mac=mac, up=up, txqlen=txqlen)
        (answer,) = await self._channel.transact("link set", [request])
        if answer.errno == errno.EADDRINUSE and up:
            raise await self._port_taken(index)
        if answer.errno:
            given = {"mtu": mtu, "address": mac, "up": up, "txqueuelen": txqlen}
            what = " ".join(f"{name} {value}" for name, value in given.items() if value is not None)
            raise _error("link set", f"dev {index} {what}".rstrip(), answer)

    async def _port_taken(self, index: int) -> KernelError:
        """Why a vxlan device cannot go up: its port is taken.

        Vxlan devices of one kind share a port; one with external control, or with GBP, does not.
        """
        links = {link.index: link for link in await self.links()}
        mine = links.get(index)
        if mine is None or mine.vxlan is None:
            return KernelError("link set", f"dev {index} up", errno.EADDRINUSE)
        port = mine.vxlan.port or VXLAN_PORT
        others = [
            f"vxlan device {link.name}"
            for link in links.values()
            if link.index != index and link.up and link.vxlan is not None
            if (link.vxlan.port or VXLAN_PORT) == port
        ]
        holder = others[0] if others else find_holder(IPv4Address(0), port) or "another socket"
        hint = (
            f"UDP port {port} is taken by {holder}; take that away, or set another Port in Backend"
            " of the network config, for all nodes"
        )
        return KernelError("link set", f"{mine.name} up", errno.EADDRINUSE, hint)

    async def tx_checksum(self, name: str) -> bool:
        """Whether a link takes packets without a checksum."""
        return ethtool.offload(name, ethtool.ETHTOOL_STXCSUM)

    async def set_tx_checksum(self, name: str, *, on: bool) -> None:
        """Switches it."""
        ethtool.set_offload(name, ethtool.ETHTOOL_STXCSUM, on=on)

    async def apply(self, operations: Sequence[Operation]) -> dict[int, KernelError]:
        """Carries the operations out in order; one that fails does not stop the rest."""
        numbered = {n: operation async for n, operation in paced(enumerate(operations))}
        failures = await self._apply(numbered)
        # Two refusals are worth another look: another program was faster between our dump and our
        # request (EEXIST), or an IPv6 gateway needs a stepping stone. What came after it in the
        # batch about the same object is done again as well, so that the last word stays the last.
        stones = {
            p
            async for p, error in paced(failures.items())
            if wants_stepping_stone(numbered[p], error)
        }
        retried: dict[object, int] = {}
        for position in sorted(failures):
            if position in stones or failures[position].errno == errno.EEXIST:
                retried.setdefault(numbered[position].object.key, position)
        if not retried:
            return failures
        again = {
            position: operation
            async for position, operation in paced(numbered.items())
            if position >= retried.get(operation.object.key, len(numbered))
        }
        for position in again:
            failures.pop(position, None)
        failures |= await self._apply(again, stones, thorough=True)
        stones_left = {
            position: Delete(stone_of(route))
            for position in stones & failures.keys()
            if isinstance(route := numbered[position].object, Route)
        }
        if stones_left:
            await self._apply(stones_left)
        return failures

    async def _apply(
        self,
        operations: Mapping[int, Operation],
        stones: Collection[int] = (),
        *,
        thorough: bool = False,
    ) -> dict[int, KernelError]:
        routes = await self._find_routes(operations.values(), thorough=thorough)
        if not thorough and await _replaces_any(operations.values(), routes):
            # Replacing takes the first under the key. Whose that is, the picked ones do not tell.
            await let_go(routes)
            routes = await self._find_routes(operations.values(), thorough=True)
        batch = Batch(routes, await self._find_addresses(operations.values()))
        failures: dict[int, KernelError] = {}
        async for position, operation in paced(operations.items()):
            try:
                batch.add(position, operation, stepping_stone=position in stones)
            except (ValueError, struct.error) as error:  # a MAC or number that cannot be packed
                answer = Answer(errno.EINVAL, str(error))
                failures[position] = _operation_error(operation, answer)
        requests = [step.request async for step in paced(batch.steps)]
        answers = await self._channel.transact("apply", requests)
        failures |= batch.failures
        async for (position, _, tolerated), answer in paced(zip(batch.steps, answers, strict=True)):
            if answer.errno and answer.errno not in tolerated and position not in failures:
                failures[position] = _operation_error(operations[position], answer)
        await let_go(requests, answers, batch.steps, routes)
        return failures

    async def _find_routes(
        self, operations: Iterable[Operation], *, thorough: bool
    ) -> dict[RouteKey, list[FoundRoute]]:
        """What the kernel holds under the keys of the routes of a batch.

        Args:
            operations: the batch.
            thorough: routes of any protocol. Otherwise of those that flannel, administrators and
                the kernel use, and of the objects themselves: enough for creating, which is
                exclusive, and for deleting, which names the protocol.
        """
        found: dict[RouteKey, list[FoundRoute]] = {}
        families: set[Family] = set()
        protocols = set() if thorough else set(LISTED)
        async for operation in paced(operations):
            item = operation.object
            if isinstance(item, Route):
                found[key_of(item)] = []
                families.add(family_of(item.dst))
                if not thorough:
                    protocols.add(item.protocol)
        # One changed lease should not cost the decoding of all: a prefix stands in its message.
        few = len(found) <= _FEW and all(key.length for key in found)
        prefixes = [key.dst for key in found] if few else [b""]
        for family in families:
            messages = await self._dump_routes(family, protocols=sorted(protocols - {0}))
            async for message in drained(messages):
                body = message.body
                if not any(prefix in body for prefix in prefixes):
                    continue
                key = key_of_body(body)
                if key is not None and key in found:
                    route = decode_route(message.body)
                    if route is not None:
                        found[key].append(FoundRoute(route, message.body))
        return found

    async def _find_addresses(self, operations: Iterable[Operation]) -> list[FoundAddress]:
        """All addresses of the links of the addresses of a batch."""
        items = [operation.object async for operation in paced(operations)]
        indexes = {item.index for item in items if isinstance(item, Address)}
        if not indexes:
            return []
        only = next(iter(indexes)) if len(indexes) == 1 else None
        messages = await self._dump("address list", dump_addresses(only))
        return [
            FoundAddress(address, message.body)
            for message in messages
            if (address := decode_address(message.body)) is not None and address.index in indexes
        ]


async def _replaces_any(
    operations: Iterable[Operation], found: Mapping[RouteKey, list[FoundRoute]]
) -> bool:
    """Whether one of the routes that are to be set has something under its key."""
    replaces = False
    async for operation in paced(operations):
        route = operation.object
        if isinstance(operation, Set) and isinstance(route, Route):
            replaces = replaces or bool(found[key_of(route)])
    return replaces


def _operation_error(operation: Operation, answer: Answer) -> KernelError:
    verb = "replace" if isinstance(operation, Set) else "delete"
    kind, _, subject = str(operation.object).partition(" ")
    return _error(f"{kind} {verb}", subject, answer)


async def _decode(
    messages: list[Message], kind: int, decode: Callable[[bytes], T | None]
) -> list[T]:
    """The records in a dump, which is used up."""
    records: list[T] = []
    async for message in drained(messages):
        if message.kind == kind:
            record = decode(message.body)
            if record is not None:
                records.append(record)
    return records
