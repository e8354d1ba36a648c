"""Requests and notifications for any of the kernel's objects, whatever it is."""

from __future__ import annotations

from pyflannel.core.ip import Family
from pyflannel.kernel.addresses import IFADDRMSG, address_body, decode_address
from pyflannel.kernel.base import (
    NUD_NOARP,
    FdbEntry,
    KernelObject,
    Neighbour,
    Notification,
    Route,
    Topic,
)
from pyflannel.kernel.links import IFINFOMSG, IFLA_IFNAME, link_attributes
from pyflannel.kernel.neighbours import (
    NDMSG,
    decode_fdb,
    decode_neighbour,
    fdb_body,
    neighbour_body,
)
from pyflannel.kernel.routes import decode_route, route_body
from pyflannel.kernel.rtnl import (
    AF_BRIDGE,
    DELETE_FLAGS,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    SET_FLAGS,
    Message,
    Request,
    family_of_af,
)


def set_request(item: KernelObject) -> Request:
    """Create or replace, as far as the kernel's own replace goes (see `kernel/netlink.py`)."""
    if isinstance(item, Route):
        return Request(RTM_NEWROUTE, SET_FLAGS, route_body(item))
    if isinstance(item, Neighbour):
        return Request(RTM_NEWNEIGH, SET_FLAGS, neighbour_body(item))
    if isinstance(item, FdbEntry):
        return Request(RTM_NEWNEIGH, SET_FLAGS, fdb_body(item))
    return Request(RTM_NEWADDR, SET_FLAGS, address_body(item))


def delete_request(item: KernelObject) -> Request:
    """Delete what the kernel finds by the object's fields."""
    if isinstance(item, Route):
        return Request(RTM_DELROUTE, DELETE_FLAGS, route_body(item))
    if isinstance(item, Neighbour):
        return Request(RTM_DELNEIGH, DELETE_FLAGS, neighbour_body(item))
    if isinstance(item, FdbEntry):
        return Request(RTM_DELNEIGH, DELETE_FLAGS, fdb_body(item))
    return Request(RTM_DELADDR, DELETE_FLAGS, address_body(item))


def decode_notification(message: Message) -> Notification | None:
    """What a multicast message is about.

    Returns:
        `None` for what happens all the time and is of no use here: cached routes, other tables,
        the kernel's own neighbours, and what bridges say about their ports. The states that an
        ordinary neighbour goes through are told: one that was ours and permanent may have been made
        ordinary, and which device's are of interest is known elsewhere.
    """
    kind, _, _, body = message
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return _route_notification(body, deleted=kind == RTM_DELROUTE)
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        af, index, state, _, _ = NDMSG.unpack_from(body)
        deleted = kind == RTM_DELNEIGH
        if af != AF_BRIDGE and not deleted and state & NUD_NOARP:
            return None
        return Notification(
            topic=Topic.NEIGHBOUR,
            index=index,
            deleted=deleted,
            family=family_of_af(af),
            object=decode_fdb(body) if af == AF_BRIDGE else decode_neighbour(body),
        )
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        af, _, _, _, index = IFADDRMSG.unpack_from(body)
        return Notification(
            topic=Topic.ADDRESS,
            index=index,
            deleted=kind == RTM_DELADDR,
            family=family_of_af(af),
            object=decode_address(body),
        )
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        af, _, index, _, _ = IFINFOMSG.unpack_from(body)
        if af == AF_BRIDGE:
            # RTM_DELLINK of this family says that a port left its bridge, not that it is gone.
            return None
        name = link_attributes(body).get(IFLA_IFNAME, b"")
        return Notification(
            topic=Topic.LINK,
            index=index,
            name=name.rstrip(b"\0").decode("utf-8", "surrogateescape"),
            deleted=kind == RTM_DELLINK,
        )
    return None


def _route_notification(body: bytes, *, deleted: bool) -> Notification | None:
    route = decode_route(body)
    if route is None:
        return None
    return Notification(
        topic=Topic.ROUTE,
        index=route.oif or 0,
        deleted=deleted,
        family=Family.V4 if route.dst.version == 4 else Family.V6,
        dst=route.dst,
        object=route,
    )
