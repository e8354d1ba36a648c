"""Routes of both families: set, listed, deleted, refused."""

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.core.ip import Family
from pyflannel.kernel.base import (
    RTN_BLACKHOLE,
    RTPROT_KERNEL,
    Delete,
    FdbEntry,
    Neighbour,
    Route,
    Set,
)
from pyflannel.testing.fakeroutes import Hop
from tests.contract.netlink.world import BOTH, MAC, World, address

PROTO_STATIC = 4
PROTO_BIRD = 12


class TestRoutes:
    @BOTH
    async def test_a_route_is_read_back_as_it_was_set(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """All fields: onlink gateway, metric, protocol, source."""
        src = ip_address("10.5.0.0" if "." in dst else "fd00:5::")
        plain = w.route(dst, one)
        full = w.route(dst, two, metric=7, protocol=PROTO_STATIC, src=src)
        await w.done(Set(plain), Set(full))
        found = await w.routes(dst)
        assert sorted(found, key=lambda route: route.metric) == [plain, full]

    @BOTH
    async def test_set_replaces_gateway_device_and_type(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """One route has the key afterwards, with any number before."""
        variants = [
            w.route(dst, one),
            w.route(dst, two),
            w.route(dst),
            w.route(dst, oif=w.under.index),
            w.route(dst, one, oif=w.under.index),
            w.route(dst, type=RTN_BLACKHOLE, oif=None),
            w.route(dst, protocol=PROTO_STATIC),
        ]
        for before in variants:
            for after in variants:
                await w.done(Set(before))
                await w.done(Set(after))
                assert await w.routes(dst) == [after], f"{before} -> {after}"

    @BOTH
    async def test_set_replaces_all_that_were_appended(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """Also if the wanted route is one of them, in the first place or behind."""
        third = one.replace("7", "6")
        for wanted in (w.route(dst, one), w.route(dst, two), w.route(dst, third)):
            await w.done(Set(w.route(dst, one, oif=w.under.index)))
            w.others.append_route(w.route(dst))
            w.others.append_route(w.route(dst, oif=w.under.index))
            assert len(await w.routes(dst)) == 3
            await w.done(Set(wanted))
            assert await w.routes(dst) == [wanted]

    @BOTH
    async def test_set_keeps_one_of_those_that_were_appended(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """The kernel's replace alone fails with EEXIST here (IPv4), or does nothing (IPv6)."""
        wanted = w.route(dst)
        await w.done(Set(w.route(dst, one)))
        w.others.append_route(wanted)
        await w.done(Set(wanted))
        assert await w.routes(dst) == [wanted]

    @BOTH
    async def test_a_route_with_several_next_hops_is_reported_without_one(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """Set replaces it as a whole."""
        hops = [Hop(ip_address(one), w.under.index), Hop(ip_address(two), w.under.index)]
        w.others.add_multipath(ip_network(dst), hops)
        (found,) = await w.routes(dst)
        assert (found.gateway, found.oif) == (None, None)
        await w.done(Set(w.route(dst, one)))
        assert await w.routes(dst) == [w.route(dst, one)]

    @BOTH
    async def test_some_routes_can_be_listed(self, w: World, dst: str, one: str, two: str) -> None:
        """By protocol, and by nearness of destination or gateway."""
        family = Family(ip_network(dst).version)
        far = "203.0.113.0/24" if family is Family.V4 else "2001:db8:ffff::/64"
        routes = [
            w.route(dst, one, protocol=PROTO_BIRD),
            w.route(far, two, protocol=PROTO_BIRD, metric=7),
            w.route(far, protocol=PROTO_STATIC),
        ]
        await w.done(*map(Set, routes))

        async def listed(**how: Any) -> list[Route]:
            return [r for r in await w.netlink.routes(family, **how) if r in routes]

        assert len(await listed()) == 3
        assert set(await listed(protocols=[PROTO_BIRD])) == set(routes[:2])
        assert set(await listed(protocols=[PROTO_BIRD, PROTO_STATIC])) == set(routes)
        assert await listed(protocols=[77]) == []
        near = [ip_network(dst)]
        assert await listed(near=near) == [routes[0]]
        gateway = ip_network(f"{two}/32" if family is Family.V4 else f"{two}/128")
        assert await listed(near=[gateway]) == [routes[1]]
        wide = ip_network("10.0.0.0/7" if family is Family.V4 else "fd00::/7", strict=False)
        assert set(await listed(near=[wide])) == set(routes[:2])
        assert await listed(near=near, protocols=[PROTO_STATIC]) == []

    @BOTH
    async def test_the_gateways_of_several_next_hops_are_told(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """In their order."""
        hops = [Hop(ip_address(one), w.under.index), Hop(ip_address(two), w.under.index)]
        w.others.add_multipath(ip_network(dst), hops)
        (found,) = await w.routes(dst)
        assert found.next_hops == (ip_address(one), ip_address(two))
        await w.done(Set(w.route(dst, one)))
        (found,) = await w.routes(dst)
        assert found.next_hops == (ip_address(one),)

    @BOTH
    @pytest.mark.parametrize("protocol", [RTPROT_KERNEL, PROTO_BIRD])
    async def test_a_protected_route_is_neither_replaced_nor_deleted_nor_joined(
        self, w: World, dst: str, one: str, two: str, protocol: int
    ) -> None:
        """The refusal names it; when it is gone the place is free."""
        theirs = w.route(dst, oif=w.under.index, protocol=protocol)
        await w.done(Set(theirs))
        refusal = await w.refusal(Set(w.route(dst, one)))
        assert refusal.errno == errno.EEXIST
        assert f"{dst} dev {w.under.index} proto" in str(refusal)
        await w.done(Delete(w.route(dst, oif=w.under.index)))
        assert await w.routes(dst) == [theirs]
        await w.done(Delete(theirs), Set(w.route(dst, one)))
        assert await w.routes(dst) == [w.route(dst, one)]

    @BOTH
    async def test_delete_does_not_take_several_next_hops_for_one(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """The kernel would compare the first hop only. What was listed can be deleted."""
        hops = [Hop(ip_address(one), w.under.index), Hop(ip_address(two), w.under.index)]
        w.others.add_multipath(ip_network(dst), hops)
        (found,) = await w.routes(dst)
        await w.done(
            Delete(w.route(dst, one, oif=w.under.index)),
            Delete(w.route(dst, oif=w.under.index)),
        )
        assert await w.routes(dst) == [found]
        await w.done(Delete(found))
        assert await w.routes(dst) == []

    @BOTH
    async def test_delete_removes_exactly_this_route(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """One that differs in gateway, link, metric or type stays."""
        standing = w.route(dst, one, metric=5)
        await w.done(Set(standing))
        for other in (
            replace(standing, gateway=ip_address(two)),
            replace(standing, gateway=None, onlink=False),
            replace(standing, oif=w.under.index),
            replace(standing, metric=0),
            replace(standing, metric=6),
            replace(standing, type=RTN_BLACKHOLE, gateway=None, oif=None, onlink=False),
            replace(standing, dst=ip_network(dst).supernet()),
        ):
            await w.done(Delete(other))
            assert await w.routes(dst) == [standing], other
        await w.done(Delete(standing))
        assert await w.routes(dst) == []

    @BOTH
    async def test_delete_finds_the_right_one_among_those_of_one_destination(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """By its metric, and by its place among those appended."""
        first, cheap = w.route(dst, one, metric=5), w.route(dst, one)
        behind = w.route(dst, oif=w.under.index)
        await w.done(Set(first), Set(cheap))
        w.others.append_route(behind)
        await w.done(Delete(cheap))
        assert sorted(await w.routes(dst), key=lambda r: r.metric) == [behind, first]
        await w.done(Delete(behind))
        assert await w.routes(dst) == [first]

    @BOTH
    async def test_delete_with_a_gateway_needs_no_link(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """Direct routes are set without a link; the kernel finds one."""
        neighbour = ip_address("192.0.2.9" if "." in dst else "2001:db8::9")
        route = Route(dst=ip_network(dst), gateway=neighbour)
        await w.done(Set(route))
        assert await w.routes(dst) == [replace(route, oif=w.under.index)]
        await w.done(Delete(route))
        assert await w.routes(dst) == []

    @BOTH
    async def test_deleting_an_absent_route_succeeds(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """Also one through a link that is gone."""
        await w.done(Delete(w.route(dst, one)), Delete(w.route(dst, one, oif=99)))

    @BOTH
    async def test_a_blackhole_has_no_link(self, w: World, dst: str, one: str, two: str) -> None:
        """IPv6 reports the loopback there; it is left out."""
        hole = Route(dst=ip_network(dst), type=RTN_BLACKHOLE)
        await w.done(Set(hole))
        assert await w.routes(dst) == [hole]
        await w.done(Delete(w.route(dst)))
        assert await w.routes(dst) == [hole]
        await w.done(Delete(hole))
        assert await w.routes(dst) == []

    async def test_an_ipv6_metric_of_1024_is_no_metric(self, w: World) -> None:
        """The kernel cannot tell them apart, so set and delete do not either."""
        plain = w.route("fd00:5:7::/64", "fd00:5:7::")
        await w.done(Set(replace(plain, metric=1024)))
        assert await w.routes("fd00:5:7::/64") == [plain]
        await w.done(Set(plain))
        assert await w.routes("fd00:5:7::/64") == [plain]
        await w.done(Delete(replace(plain, metric=1024)))
        assert await w.routes("fd00:5:7::/64") == []

    @pytest.mark.parametrize(
        ("dst", "gateway", "code"),
        [
            ("10.5.7.0/24", "203.0.113.1", errno.ENETUNREACH),
            ("fd00:5:7::/64", "2001:db8:99::1", errno.EHOSTUNREACH),
        ],
    )
    async def test_a_gateway_that_is_on_no_link_is_refused(
        self, w: World, dst: str, gateway: str, code: int
    ) -> None:
        """Unless it is said to be on the link."""
        refusal = await w.refusal(Set(w.route(dst, gateway, onlink=False)))
        assert refusal.errno == code
        assert f"route replace {dst} via {gateway}" in str(refusal)
        refusal = await w.refusal(Set(w.route(dst, gateway, onlink=False, oif=None)))
        assert refusal.errno == code
        await w.done(Set(w.route(dst, gateway)))

    @BOTH
    async def test_a_route_without_a_way_is_refused(
        self, w: World, dst: str, one: str, two: str
    ) -> None:
        """No link, a missing one, one that is down; a source that is not ours."""
        for route in (
            w.route(dst, oif=None),
            w.route(dst, oif=99),
            w.route(dst, one, oif=None),
        ):
            refusal = await w.refusal(Set(route))
            assert isinstance(refusal, DeviceUnavailable)
            assert refusal.errno == errno.ENODEV
        source = ip_address("10.99.0.1" if "." in dst else "fd00:99::1")
        assert (await w.refusal(Set(w.route(dst, src=source)))).errno == errno.EINVAL
        for index in (w.device.index, w.device6.index):
            await w.netlink.set_link(index, up=False)
        assert (await w.refusal(Set(w.route(dst, one)))).errno == errno.ENETDOWN
        assert await w.routes(dst) == []

    async def test_a_route_through_another_link_does_not_keep_a_gateway_from_ours(
        self, w: World
    ) -> None:
        """Be it the one that is replaced, or a wider one. (IPv6 alone refuses that.)"""
        ours = w.route("fd00:5:7::/64", "fd00:5:7::")
        for elsewhere in (
            w.route("fd00:5:7::/64", oif=w.under.index),
            w.route("fd00::/16", oif=w.under.index),
        ):
            await w.done(Set(elsewhere))
            await w.done(Set(ours))
            assert await w.routes("fd00:5:7::/64") == [ours]
            # The last word stays the last.
            await w.done(Set(elsewhere), Set(ours), Delete(ours))
            assert ours not in await w.routes("fd00:5:7::/64")
            await w.done(Delete(elsewhere))

    async def test_a_gateway_that_belongs_elsewhere_is_refused(self, w: World) -> None:
        """A cheaper route to it leads through another link; nothing half-done is left."""
        cheaper = w.route("fd00:5:7::/64", oif=w.under.index, metric=1)
        await w.done(Set(cheaper))
        refusal = await w.refusal(Set(w.route("fd00:5:7::/64", "fd00:5:7::")))
        assert refusal.errno == errno.EINVAL
        assert await w.routes("fd00:5:7::/64") == [cheaper]

    async def test_one_failure_stops_nothing(self, w: World) -> None:
        """Failures are told by their position, the others are carried out in order."""
        good = [w.route(f"10.6.{i}.0/24", f"10.6.{i}.0") for i in range(150)]
        bad = w.route("10.7.0.0/24", oif=99)
        operations = [Set(route) for route in good]
        operations[70] = operations[3] = Set(bad)
        failures = await w.netlink.apply(operations)
        assert sorted(failures) == [3, 70]
        assert all(error.errno == errno.ENODEV for error in failures.values())
        assert len(await w.netlink.routes(Family.V4, oif=w.device.index)) == 148

    async def test_routes_of_one_link(self, w: World) -> None:
        """Those through others are not listed; those of a missing link are none."""
        mine = w.route("10.5.7.0/24", "10.5.7.0")
        await w.done(Set(mine), Set(w.route("10.5.8.0/24", oif=w.under.index)))
        assert await w.netlink.routes(Family.V4, oif=w.device.index) == [mine]
        assert await w.netlink.routes(Family.V4, oif=99) == []
        assert await w.netlink.routes(Family.V6, oif=99) == []

    async def test_the_default_route_is_a_route(self, w: World) -> None:
        """The kernel reports it without a destination."""
        for dst, gateway in (("0.0.0.0/0", "192.0.2.254"), ("::/0", "2001:db8::fe")):
            route = Route(dst=ip_network(dst), gateway=ip_address(gateway), oif=w.under.index)
            await w.done(Set(route))
            assert await w.routes(dst) == [route]
            await w.done(Delete(route))
            assert await w.routes(dst) == []

    async def test_a_link_that_goes_down_takes_routes_and_neighbours_along(self, w: World) -> None:
        """They do not come back; addresses (IPv4) and the FDB stay."""
        index = w.device.index
        fdb = FdbEntry(index=index, mac=MAC, dst=IPv4Address("192.0.2.7"))
        await w.done(
            Set(w.route("10.5.7.0/24", "10.5.7.0")),
            Set(replace(w.route("fd00:5:7::/64"), oif=index)),
            Set(Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC)),
            Set(Neighbour(index=index, ip=IPv6Address("fd00:5:7::"), mac=MAC)),
            Set(address(w.device, "fd00:6::1/128")),
            Set(fdb),
        )
        for up in (False, True):
            await w.netlink.set_link(index, up=up)
            assert await w.routes("10.5.7.0/24") == []
            assert await w.routes("fd00:5:7::/64") == []
            assert await w.netlink.neighbours(index, Family.V4) == []
            assert await w.netlink.neighbours(index, Family.V6) == []
            assert await w.netlink.fdb(index) == [fdb]
            found = await w.netlink.addresses(index=index)
            assert address(w.device, "10.5.0.0/32") in found
            assert address(w.device, "fd00:6::1/128") not in found
