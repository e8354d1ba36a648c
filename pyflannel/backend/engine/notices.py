"""What a notification of the kernel points at: what has to be read back, or nothing.

A notification that reports what is wanted anyway, or the end of what is not wanted, costs nothing:
so the kernel echoes our own writes. (To expect an echo for each write, and swallow it, was tried
and is wrong: the kernel is silent about a write that changes nothing, and the expectation then
swallows the next change by another program.)
"""

from __future__ import annotations

from pyflannel.backend.engine.state import Dirty, State
from pyflannel.backend.engine.tables import overrules, table_id
from pyflannel.kernel.base import Address, FdbEntry, Neighbour, Notification, Route, Topic
from pyflannel.kernel.ownership import is_kernels, is_near, is_protected


def pointed_at(state: State, notification: Notification) -> Dirty | None:
    """What the next pass must read back; `None` if it does not concern the plan."""
    indexes = {0, *state.own_indexes}
    match notification.topic:
        case Topic.OVERFLOW:
            return Dirty.unknown()
        case Topic.NEIGHBOUR:
            if notification.index not in indexes or not _is_news(state, notification):
                return None
            if notification.family is not None:
                return Dirty(kinds={Neighbour})
            # Whose an FDB entry is, its neighbour tells.
            return Dirty(kinds={FdbEntry, Neighbour})
        case Topic.ROUTE:
            if _is_of_others(state, notification):
                return Dirty(kinds={Route}, others=True)
            if notification.dst is None or state.plan.concerns(notification.dst):
                return Dirty(kinds={Route}) if _is_news(state, notification) else None
            # A route of another program may be the way to a peer, or to one that failed so far.
            failing = any(table.held for table in state.tables.values())
            if state.paths or failing or _is_in_the_way(state, notification):
                return Dirty(kinds={Route})
            return None
        case Topic.LINK | Topic.ADDRESS:
            if state.view.underlay is not None:
                indexes.add(state.view.underlay.index)
            named = notification.name in {state.plan.underlay, *state.specs}
            unknown = notification.index == 0 and not notification.name
            known = notification.index in indexes and notification.index != 0
            if named or known or unknown:
                return Dirty.all()
            # One on another link may be in a peer's way, or its prefix.
            address = notification.object
            near = isinstance(address, Address) and state.is_near(address.interface.network)
            # Routes vanish with an address without a word of their own (IPv4).
            return Dirty(addresses=True, kinds={Route}) if near else None


def _is_of_others(state: State, notification: Notification) -> bool:
    """Whether a route is one of a routing daemon which the overlay has to do with."""
    route = notification.object
    return (
        isinstance(route, Route)
        and is_protected(route)
        and not is_kernels(route)
        and is_near(route, state.plan.networks)
    )


def _is_in_the_way(state: State, notification: Notification) -> bool:
    """Whether a route of another program changes what the overlay must not get in the way of."""
    route = notification.object
    if not isinstance(route, Route):
        return False
    if is_kernels(route):
        return state.is_near(route.dst)
    return is_near(route, state.plan.networks)


def _is_news(state: State, notification: Notification) -> bool:
    """Whether what is reported is other than wanted.

    Reports come in the order of the changes: after that of what is right, any change is
    reported again.
    """
    thing = notification.object
    if thing is None or isinstance(thing, Address):
        return True
    table = state.tables.get(table_id(thing))
    if table is None or table.held:
        return True
    if isinstance(thing, Route) and is_protected(thing):
        return True
    wanted = table.delta.desired.get(thing.key)
    if notification.deleted or thing == wanted:
        return notification.deleted and wanted is not None
    if wanted is not None or overrules(thing, table.delta.desired):
        return True
    return state.plan.is_ours(thing, state.view, startup=not state.swept)
