"""What a listener is told, and what it is not."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest

from pyflannel.core.ip import Family
from pyflannel.kernel.base import (
    NUD_FAILED,
    Delete,
    FdbEntry,
    LinkSpec,
    Neighbour,
    Notification,
    Notifications,
    Set,
    Topic,
    VxlanAttrs,
)
from tests.contract.netlink.world import MAC, World, address

PROTO_STATIC = 4
PROTO_BIRD = 12
PERIOD_S = 5.0
"""Deadline of every wait."""


async def _collect(
    stream: Notifications, until: Callable[[list[Notification]], bool]
) -> list[Notification]:
    """Notifications up to the one with which the condition holds."""
    seen: list[Notification] = []
    async with asyncio.timeout(PERIOD_S):
        async for notification in stream:
            seen.append(notification)
            if until(seen):
                break
    return seen


MARK = "203.0.113.0/24"


async def _told(w: World, stream: Notifications) -> list[Notification]:
    """All notifications of what happened before now: a route is set as a mark behind them."""
    mark = w.route(MARK, oif=w.under.index)
    await w.done(Set(mark))
    seen = await _collect(stream, lambda all_: all_[-1].dst == mark.dst)
    await w.done(Delete(mark))
    await _collect(stream, lambda all_: all_[-1].dst == mark.dst and all_[-1].deleted)
    return seen[:-1]


def _note(topic: Topic, index: int, **more: Any) -> Notification:
    return Notification(topic=topic, index=index, **more)


class TestNotifications:
    async def test_each_kind_of_change_is_told(self, w: World) -> None:
        """Set and deleted; link, family and destination are named."""
        stream = w.netlink.notifications()
        index = w.device.index
        v4, v6 = ip_network("10.5.7.0/24"), ip_network("fd00:5:7::/64")
        cases: list[tuple[Any, Notification]] = [
            (
                w.route("10.5.7.0/24", "10.5.7.0"),
                _note(Topic.ROUTE, index, family=Family.V4, dst=v4),
            ),
            (
                w.route("fd00:5:7::/64", "fd00:5:7::"),
                _note(Topic.ROUTE, w.device6.index, family=Family.V6, dst=v6),
            ),
            (
                Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC),
                _note(Topic.NEIGHBOUR, index, family=Family.V4),
            ),
            (
                Neighbour(index=index, ip=IPv6Address("fd00:5:7::"), mac=MAC),
                _note(Topic.NEIGHBOUR, index, family=Family.V6),
            ),
            (
                FdbEntry(index=index, mac=MAC, dst=IPv4Address("192.0.2.7")),
                _note(Topic.NEIGHBOUR, index),
            ),
            (
                address(w.device, "10.5.9.0/32"),
                _note(Topic.ADDRESS, index, family=Family.V4),
            ),
        ]
        for item, expected in cases:
            listed = item
            await w.done(Set(item))
            told = await _told(w, stream)
            assert replace(expected, object=listed) in told, item
            await w.done(Delete(item))
            told = await _told(w, stream)
            if isinstance(item, Neighbour):
                # Taken down before it is told.
                listed = replace(item, mac="", state=NUD_FAILED)
            assert replace(expected, deleted=True, object=listed) in told, item
        await stream.aclose()

    async def test_of_routing_daemons_only_what_is_near_is_told(self, w: World) -> None:
        """By destination, by gateway, or because it leads everywhere; others' routes as ever."""
        near = (ip_network("10.5.0.0/16"), ip_network("fd00:5::/40"))
        stream = w.netlink.notifications(near=near)
        bird = {"protocol": PROTO_BIRD}
        cases = [
            (w.route("10.5.7.0/24", "10.5.7.0", **bird), True),
            (w.route("10.5.7.0/24", **bird), True),
            (w.route("10.6.7.0/24", "10.6.7.0", **bird), False),
            (w.route("10.6.7.0/24", "10.5.7.0", **bird), True),
            (w.route("0.0.0.0/0", "10.6.7.0", **bird), True),
            (w.route("10.6.7.0/24", "10.6.7.0"), True),
            (w.route("10.6.7.0/24", "10.6.7.0", protocol=PROTO_STATIC), True),
            (w.route("fd00:5:7::/64", **bird), True),
            (w.route("fd00:5:ff::/64", **bird), True),
            (w.route("fd00:5:107::/64", **bird), False),
            (w.route("fd00:7::/64", "fd00:7::1", **bird), False),
            (w.route("fd00:7::/64", "fd00:5:7::1", **bird), True),
            (w.route("::/0", "fd00:7::1", **bird), True),
            (w.route("fd00:7::/64", "fd00:7::1"), True),
        ]
        for route, wanted in cases:
            await w.done(Set(route))
            told = [n for n in await _told(w, stream) if n.dst == route.dst and not n.deleted]
            assert bool(told) is wanted, route
            await w.done(Delete(route))
            told = [n for n in await _told(w, stream) if n.dst == route.dst and n.deleted]
            assert bool(told) is wanted, route
        await stream.aclose()

    async def test_without_prefixes_near_none_but_the_default_is_told(self, w: World) -> None:
        stream = w.netlink.notifications(near=())
        await w.done(Set(w.route("10.5.7.0/24", "10.5.7.0", protocol=PROTO_BIRD)))
        await w.done(Set(w.route("0.0.0.0/0", "10.5.7.0", protocol=PROTO_BIRD)))
        told = [n.dst for n in await _told(w, stream) if n.topic is Topic.ROUTE]
        assert told == [ip_network("0.0.0.0/0")]
        await stream.aclose()

    async def test_of_neighbours_only_those_of_the_links_that_are_asked_for_are_told(
        self, w: World
    ) -> None:
        """From the start or changed on the way; all else is told as ever."""
        ip, under = IPv4Address("10.5.7.0"), IPv4Address("192.0.2.99")
        items = [
            Neighbour(index=w.device.index, ip=ip, mac=MAC),
            FdbEntry(index=w.device.index, mac=MAC, dst=IPv4Address("192.0.2.7")),
            Neighbour(index=w.under.index, ip=under, mac=MAC),
        ]
        both = {w.device.index, w.under.index}
        stream = w.netlink.notifications(neighbours_of=set())
        for heard in (set(), {w.device.index}, {w.under.index}, both, set()):
            stream.hear_neighbours_of(heard)
            await w.done(*[Set(item) for item in items])
            await w.done(*[Delete(item) for item in items])
            told = [n for n in await _told(w, stream) if n.topic is Topic.NEIGHBOUR]
            assert {n.index for n in told if n.index in both} == heard
        await w.done(Set(w.route("10.5.7.0/24", "10.5.7.0")))
        assert Topic.ROUTE in {n.topic for n in await _told(w, stream)}
        await stream.aclose()

    async def test_what_was_there_already_is_not_told_again(self, w: World) -> None:
        """But for IPv6 routes, and by some kernels FDB entries, which are announced each time.

        Linux 6.1 and 6.12 do that with FDB entries. It is harmless: a notification says what stands
        now, and a reader that wants just that has no reason to act.
        """
        index = w.device.index
        items = [
            w.route("10.5.7.0/24", "10.5.7.0"),
            Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC),
            FdbEntry(index=index, mac=MAC, dst=IPv4Address("192.0.2.7")),
        ]
        await w.done(*[Set(item) for item in items])
        stream = w.netlink.notifications()
        await w.done(*[Set(item) for item in items])
        told = await _told(w, stream)
        again = [n for n in told if n.index == index and n.family is not Family.V6]
        # The family tells them: only FDB entries are neighbours without one.
        fdb = [n for n in again if n.topic is Topic.NEIGHBOUR and n.family is None]
        assert [n for n in again if n not in fdb] == []
        assert not any(n.deleted for n in fdb)
        await stream.aclose()

    async def test_links_are_told_with_their_names(self, w: World) -> None:
        """Created, changed, deleted; the deletion is told as such."""
        stream = w.netlink.notifications()
        link = await w.netlink.create_link(
            LinkSpec(name="flannel.9", kind="vxlan", vxlan=VxlanAttrs(vni=9))
        )
        created = _note(Topic.LINK, link.index, name="flannel.9")
        assert created in await _told(w, stream)
        await w.netlink.set_link(link.index, mtu=1400)
        assert created in await _told(w, stream)
        await w.netlink.delete_link(link.index)
        assert replace(created, deleted=True) in await _told(w, stream)
        await stream.aclose()

    async def test_a_link_that_goes_down_is_told_its_ipv4_routes_are_not(self, w: World) -> None:
        """So routes must be read back when a link changes."""
        dst = ip_network("10.5.7.0/24")
        await w.done(Set(w.route("10.5.7.0/24", "10.5.7.0")))
        stream = w.netlink.notifications()
        await w.netlink.set_link(w.device.index, up=False)
        told = await _told(w, stream)
        assert _note(Topic.LINK, w.device.index, name="flannel.1") in told
        assert [n for n in told if n.dst == dst] == []
        await stream.aclose()

    async def test_two_listeners_hear_the_same(self, w: World) -> None:
        """Each from its own subscription on; a closed one hears nothing more."""
        first = w.netlink.notifications()
        await w.done(Set(w.route("10.5.7.0/24", "10.5.7.0")))
        second = w.netlink.notifications()
        await w.done(Set(w.route("10.5.8.0/24", "10.5.8.0")))
        last = ip_network("10.5.8.0/24")
        heard = [
            [
                n.dst
                for n in await _collect(stream, lambda all_: all_[-1].dst == last)
                if n.index == w.device.index and n.family is Family.V4
            ]
            for stream in (first, second)
        ]
        assert heard == [[ip_network("10.5.7.0/24"), last], [last]]
        await first.aclose()
        await first.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(first)
        await second.aclose()

    @pytest.mark.parametrize("whole", [False, True], ids=["stream", "netlink"])
    async def test_closing_ends_the_iteration_of_who_waits(self, w: World, whole: bool) -> None:
        """Closing the stream, or the netlink it came from."""
        stream = w.netlink.notifications()
        await _told(w, stream)

        async def listen() -> None:
            async for _ in stream:
                pass

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0.02)
        await (w.netlink.close() if whole else stream.aclose())
        async with asyncio.timeout(PERIOD_S):
            await listener

    async def test_a_cancelled_wait_loses_nothing(self, w: World) -> None:
        """The next one hears what came meanwhile."""
        stream = w.netlink.notifications()
        await _told(w, stream)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                while True:
                    await anext(stream)
        await w.done(Set(w.route("10.5.7.0/24", "10.5.7.0")))
        wanted = ip_network("10.5.7.0/24")
        await _collect(stream, lambda all_: all_[-1].dst == wanted)
        await stream.aclose()
