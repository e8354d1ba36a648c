"""From operations to messages: what has to be sent so that *set* replaces and *delete* is exact.

*Set is replace* is a promise that the kernel's own NLM_F_REPLACE keeps in the plain case only. What
it does in the others (seen on Linux 6.18; the sources back to 4.19 read the same):

* Routes: several can stand under one key (`ip route append`). Replace changes the first and leaves
  the rest; if the wanted one is among the rest it fails with EEXIST.
* IPv6 addresses: replacing `fd00::1/64` by `fd00::1/128` succeeds and changes nothing.
* IPv4 addresses: the scope stays what it was, and `10.5.1.0 peer 10.7.0.1/32` is another address
  than `10.5.1.0/32`, though it looks alike.
* IPv6 routes with an onlink gateway: refused (EINVAL) if the best route to the gateway leads
  through another link, even if that is the route to be replaced.
* Neighbours, and FDB entries of unicast MACs: replace does replace.

And *delete exactly this* is not what RTM_DELROUTE does: no gateway in the request means any
gateway, a metric of 0 any metric, and a route with several next hops is taken for its first one.

Nor does replace ask whose the route is that it replaces: `172.17.0.0/16 dev docker0 proto kernel`
becomes `dev flannel0`. Where a protected route stands (`ownership.py`), nothing is done and the
operation fails with EEXIST; where none stands, the creation is exclusive.

So a batch starts from what the kernel holds under the keys concerned. What is in the way is deleted
with precisely the attributes that the kernel reported it with, as `ip route flush` does; what is
not there is not deleted at all. It follows its own effects: a later operation of the batch
sees what an earlier one will have done. Pure: the caller reads the kernel and sends the steps.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Final, NamedTuple

from pyflannel.core.errors import KernelError
from pyflannel.kernel import ownership
from pyflannel.kernel.addresses import delete_found_address, is_point_to_point
from pyflannel.kernel.base import RTN_UNICAST, Address, Delete, Operation, Route, Set
from pyflannel.kernel.objects import delete_request, set_request
from pyflannel.kernel.routes import RouteKey, create_request, delete_found_route, key_of
from pyflannel.kernel.rtnl import Request

ABSENT: Final = frozenset(
    (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)
)
"""What the kernel answers when told to delete what is not there. ESRCH: routes. ENOENT: neighbours,
FDB entries, a table that nothing was ever put in. EADDRNOTAVAIL: addresses. ENODEV, ENXIO: the link
itself is gone."""

_NONE: Final = frozenset[int]()


class Step(NamedTuple):
    """One message of an operation."""

    position: int
    """Of the operation in the batch."""
    request: Request
    tolerated: frozenset[int]
    """Errors that are as good as success."""


class FoundRoute(NamedTuple):
    """A route in the kernel, and how the kernel told us of it."""

    route: Route
    body: bytes


class FoundAddress(NamedTuple):
    """An address in the kernel, and how the kernel told us of it."""

    address: Address
    body: bytes


class Batch:
    """The steps of one batch.

    Args:
        routes: what stands under the key of each route in the batch, in the kernel's order. Keys
            that are missing count as empty.
        addresses: all addresses of the links whose addresses are in the batch.
    """

    def __init__(
        self, routes: dict[RouteKey, list[FoundRoute]], addresses: list[FoundAddress]
    ) -> None:
        self._routes = routes
        self._addresses = addresses
        self.steps: list[Step] = []
        self.failures: dict[int, KernelError] = {}
        """Operations that cannot be carried out without harm, by position; they have no steps."""

    def add(self, position: int, operation: Operation, *, stepping_stone: bool = False) -> None:
        """Appends the steps of one operation.

        Args:
            position: of the operation in the batch.
            operation: what to do.
            stepping_stone: set an onlink route without its gateway first. With that the gateway has
                a route through the right link, and the destination is never without one.
        """
        item = operation.object
        if isinstance(operation, Delete):
            if isinstance(item, Route):
                self._delete_route(position, item)
            elif isinstance(item, Address):
                self._delete_address(position, item)
            else:
                self._step(position, delete_request(item), ABSENT)
        else:
            if isinstance(item, Route):
                self._set_route(position, item, stepping_stone=stepping_stone)
                return
            if isinstance(item, Address):
                self._make_room_for_address(position, item)
            self._step(position, set_request(item))

    def _set_route(self, position: int, route: Route, *, stepping_stone: bool) -> None:
        standing = self._routes.get(key_of(route), [])
        for found in standing:
            if ownership.is_protected(found.route) and not ownership.is_protected(route):
                hint = f"{ownership.describe(found.route)} is there and not ours to replace"
                self._fail(position, "replace", route, errno.EEXIST, hint)
                return
        first = stone_of(route) if stepping_stone else route
        request = set_request(first) if standing else create_request(first)
        self._make_room_for_route(position, route)
        self._step(position, request)
        if stepping_stone:
            self._step(position, set_request(route))

    def _fail(self, position: int, verb: str, route: Route, code: int, hint: str) -> None:
        kind, _, subject = str(route).partition(" ")
        self.failures[position] = KernelError(f"{kind} {verb}", subject, code, hint)

    def _step(self, position: int, request: Request, tolerated: frozenset[int] = _NONE) -> None:
        self.steps.append(Step(position, request, tolerated))

    def _make_room_for_route(self, position: int, route: Route) -> None:
        """Leaves one route under the key, which the replace that follows will change.

        The first one in the kernel's order is the one in force, so until then nothing changes for
        the packets. (Should the kernel take another one than we mean, there is one less all the
        same, and what is left gets replaced.)
        """
        key = key_of(route)
        for found in self._routes.get(key, [])[1:]:
            self._step(position, delete_found_route(found.body), ABSENT)
        self._routes[key] = [FoundRoute(route, set_request(route).body)]

    def _delete_route(self, position: int, route: Route) -> None:
        standing = self._routes.get(key_of(route), [])
        for place, found in enumerate(standing):
            if not _is_same_route(found.route, route):
                continue
            for other in standing[:place]:
                if _would_be_taken_for(other.route, found.route):
                    hint = f"the kernel would delete another one instead: {other.route}"
                    self._fail(position, "delete", route, errno.ENOTUNIQ, hint)
                    return
            if found.route.oif is None and route.oif is not None:
                # Set in this batch, without a link: only the kernel knows which one it took.
                self._step(position, delete_request(route), ABSENT)
            else:
                self._step(position, delete_found_route(found.body), ABSENT)
            del standing[place]
            return

    def _make_room_for_address(self, position: int, address: Address) -> None:
        for found in list(self._addresses):
            if _is_in_the_way(found, address):
                self._delete_found_address(position, found)
        self._addresses.append(FoundAddress(address, set_request(address).body))

    def _delete_address(self, position: int, address: Address) -> None:
        for found in list(self._addresses):
            if found.address.key == address.key:
                self._delete_found_address(position, found)

    def _delete_found_address(self, position: int, found: FoundAddress) -> None:
        self._step(position, delete_found_address(found.body), ABSENT)
        self._addresses.remove(found)


def stone_of(route: Route) -> Route:
    """The stepping stone of an onlink route."""
    return replace(route, gateway=None, onlink=False)


def wants_stepping_stone(operation: Operation, error: KernelError) -> bool:
    """Whether a refused operation may succeed with a stepping stone."""
    route = operation.object
    return (
        isinstance(operation, Set)
        and isinstance(route, Route)
        and error.errno == errno.EINVAL
        and route.onlink
        and route.gateway is not None
        and route.dst.version == 6
        and route.gateway in route.dst
    )


def _is_same_route(found: Route, wanted: Route) -> bool:
    """Whether this is the one to delete; both stand under one key.

    Where a gateway says where a route leads, the link need not be said. A route with several next
    hops is reported without either, and meant when neither is given.
    """
    return (
        found.type == wanted.type
        and (found.protocol == wanted.protocol or not ownership.is_protected(found))
        and found.altered == wanted.altered
        and found.gateway == wanted.gateway
        and (
            found.oif == wanted.oif
            or (wanted.gateway is not None and None in (found.oif, wanted.oif))
        )
    )


def _would_be_taken_for(other: Route, wanted: Route) -> bool:
    """Whether a delete request for `wanted` fits `other` as well; both stand under one key.

    Source: `fib_table_delete` and `fib_nh_match` of net/ipv4, `ip6_route_del` of net/ipv6.
    """
    if wanted.oif is None and wanted.type == RTN_UNICAST:
        return False  # several next hops: they are compared one by one
    if other.protocol != wanted.protocol or (wanted.altered and not other.altered):
        return False
    if wanted.dst.version == 4 and (
        (other.type, other.scope) != (wanted.type, wanted.scope)
        or wanted.src not in (None, other.src)
    ):
        return False
    several = other.oif is None and other.type == RTN_UNICAST
    return several or (wanted.gateway in (None, other.gateway) and wanted.oif in (None, other.oif))


def _is_in_the_way(found: FoundAddress, wanted: Address) -> bool:
    """Whether the kernel would keep this address instead of, or beside, the wanted one."""
    address = found.address
    if address.index != wanted.index or address.interface.ip != wanted.interface.ip:
        return False
    if wanted.interface.version == 6:
        return address.interface != wanted.interface
    return address.interface == wanted.interface and (
        address.scope != wanted.scope or is_point_to_point(found.body)
    )
