"""Every behaviour that `pyflannel/kernel/base.py` promises, on the fake and on the real kernel.

Each test builds its own little world: an underlay bridge and vxlan devices over it, in memory or in
a network namespace of its own (under plain asyncio and under uvloop). What "somebody else" does is
done through the fake's own doors, or with `ip` and `bridge`.
"""

import asyncio
import contextlib
import errno
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, Protocol

import pytest
import uvloop

from pyflannel.core.errors import DeviceUnavailable, KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork
from pyflannel.kernel.base import (
    NUD_FAILED,
    NUD_PERMANENT,
    RT_SCOPE_LINK,
    RTN_BLACKHOLE,
    RTPROT_KERNEL,
    Address,
    Delete,
    FdbEntry,
    Link,
    LinkSpec,
    Neighbour,
    Netlink,
    Notification,
    Notifications,
    Route,
    Set,
    Topic,
    VxlanAttrs,
)
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.testing.fakenetlink import FakeNetlink
from pyflannel.testing.fakeroutes import Hop
from tests.support.netns import in_new_netns, without_fallback

MAC = "0e:00:00:00:00:02"
OTHER_MAC = "0e:00:00:00:00:03"
PROTO_STATIC = 4
PROTO_BIRD = 12
RTN_LOCAL = 2
NUD_REACHABLE = 2
PERIOD_S = 5.0
"""Deadline of whatever is waited for."""


class Others(Protocol):
    """What somebody else does to the tables."""

    def append_route(self, route: Route) -> None: ...
    def add_multipath(self, dst: IPNetwork, hops: Sequence[Hop]) -> None: ...
    def learn(self, entry: FdbEntry) -> None: ...


class OtherPrograms:
    """`ip` and `bridge` in the namespace of the test."""

    def append_route(self, route: Route) -> None:
        where = ["dev", _device(route.oif)] if route.oif else []
        via = ["via", str(route.gateway)] if route.gateway else []
        _ip("route", "append", str(route.dst), *via, *where, "proto", "boot", scope=route)

    def add_multipath(self, dst: IPNetwork, hops: Sequence[Hop]) -> None:
        words: list[str] = []
        for gateway, oif in hops:
            words += ["nexthop", "via", str(gateway), "dev", _device(oif), "onlink"]
        _ip("route", "add", str(dst), *words)

    def learn(self, entry: FdbEntry) -> None:
        device = _device(entry.index)
        words = ["bridge", "fdb", "replace", entry.mac, "dev", device, "dst", str(entry.dst)]
        subprocess.run([*words, "dynamic"], check=True)


def _ip(*words: str, scope: Route | None = None) -> None:
    family = "-6" if any(":" in word and "/" in word for word in words) else "-4"
    tail = ["scope", "global"] if scope is not None and family == "-4" else []
    subprocess.run(["ip", family, *words, *tail], check=True)


def _device(index: int | None) -> str:
    """The name of a device in the namespace of the test."""
    assert index is not None
    return socket.if_indextoname(index)


@dataclass
class World:
    """An underlay with addresses, and vxlan devices over it, up and addressed like flannel's."""

    netlink: Netlink
    others: Others
    under: Link
    device: Link
    device6: Link

    async def done(self, *operations: Set | Delete) -> None:
        assert await self.netlink.apply(operations) == {}

    async def refusal(self, operation: Set | Delete) -> KernelError:
        failures = await self.netlink.apply([operation])
        assert list(failures) == [0]
        return failures[0]

    async def routes(self, dst: str) -> list[Route]:
        network = ip_network(dst)
        family = Family(network.version)
        return [route for route in await self.netlink.routes(family) if route.dst == network]

    def route(self, dst: str, gateway: str | None = None, **more: Any) -> Route:
        """A route of a backend: through the vxlan device of its family, gateways on the link."""
        network = ip_network(dst)
        device = self.device if network.version == 4 else self.device6
        fields: dict[str, Any] = {
            "oif": device.index,
            "gateway": ip_address(gateway) if gateway else None,
            "onlink": gateway is not None,
        }
        return Route(dst=network, **(fields | more))

    async def link(self, name: str = "flannel.1") -> Link:
        link = await self.netlink.link(name)
        assert link is not None
        return link


async def build(netlink: Netlink, others: Others) -> World:
    under = await netlink.create_link(
        LinkSpec(name="under0", kind="bridge", mac="02:00:00:00:00:01")
    )
    await netlink.set_link(under.index, up=True)
    device = await netlink.create_link(
        LinkSpec(
            name="flannel.1",
            kind="vxlan",
            mac="0e:00:00:00:00:01",
            txqlen=0,
            vxlan=VxlanAttrs(vni=1, link=under.index, local=IPv4Address("192.0.2.1")),
        )
    )
    device6 = await netlink.create_link(
        LinkSpec(
            name="flannel-v6.1",
            kind="vxlan",
            mac="0e:00:00:00:06:01",
            vxlan=VxlanAttrs(vni=1, link=under.index, local=IPv6Address("2001:db8::1")),
        )
    )
    await netlink.set_link(device.index, up=True)
    await netlink.set_link(device6.index, up=True)
    addresses = [
        address(under, "192.0.2.1/24"),
        address(under, "2001:db8::1/64"),
        address(device, "10.5.0.0/32"),
        address(device6, "fd00:5::/128"),
    ]
    assert await netlink.apply([Set(one) for one in addresses]) == {}
    return World(netlink, others, under, device, device6)


def address(link: Link, interface: str, **more: Any) -> Address:
    return Address(index=link.index, interface=ip_interface(interface), **more)


Body = Callable[[World], Awaitable[None]]


def _in_fake(body: Body) -> None:
    async def scenario() -> None:
        netlink = FakeNetlink()
        await body(await build(netlink, netlink))
        await netlink.close()

    asyncio.run(scenario())


def _in_kernel(body: Body, run: Callable[..., None]) -> None:
    async def scenario() -> None:
        netlink = KernelNetlink()
        try:
            await body(await build(netlink, OtherPrograms()))
        finally:
            await netlink.close()

    in_new_netns(lambda: run(scenario()))


@pytest.fixture(
    params=[
        "fake",
        pytest.param("kernel-asyncio", marks=[pytest.mark.root, pytest.mark.guest]),
        pytest.param("kernel-uvloop", marks=[pytest.mark.root, pytest.mark.guest]),
    ]
)
def check(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Runs the body of a test in a world of the kind that is tested."""
    if request.param == "fake":
        return _in_fake
    run = asyncio.run if request.param == "kernel-asyncio" else uvloop.run
    return lambda body: _in_kernel(body, run)


Check = Callable[[Body], None]

BOTH = pytest.mark.parametrize(
    ("dst", "one", "two"),
    [
        ("10.5.7.0/24", "10.5.7.0", "10.5.8.0"),
        ("fd00:5:7::/64", "fd00:5:7::", "fd00:5:8::"),
    ],
    ids=["v4", "v6"],
)
"""A destination and two gateways, in each family."""


class TestLinks:
    def test_links_are_listed_in_order_of_their_index(self, check: Check) -> None:
        """The loopback comes first; a new link has the highest index."""

        async def body(w: World) -> None:
            links = without_fallback(await w.netlink.links())
            assert [link.name for link in links] == ["lo", "under0", "flannel.1", "flannel-v6.1"]
            assert [link.index for link in links] == sorted(link.index for link in links)
            assert [link.loopback for link in links] == [True, False, False, False]
            assert links[0].mtu == 65536

        check(body)

    def test_a_created_vxlan_device_is_read_back_with_its_attributes(self, check: Check) -> None:
        """What was not given is the kernel's default: port 8472, MTU of the underlay less 50."""

        async def body(w: World) -> None:
            link = await w.link()
            assert link == replace(w.device, up=True, running=True)
            assert (link.kind, link.mtu, link.mac) == ("vxlan", 1450, "0e:00:00:00:00:01")
            assert link.txqlen == 0
            assert link.vxlan == VxlanAttrs(
                vni=1, link=w.under.index, local=IPv4Address("192.0.2.1"), port=8472
            )
            assert w.device6.vxlan is not None
            assert w.device6.vxlan.local == IPv6Address("2001:db8::1")
            assert w.device6.mtu == 1430

        check(body)

    def test_every_vxlan_attribute_arrives(self, check: Check) -> None:
        """Port, learning, GBP and L2 miss are what the spec says."""

        async def body(w: World) -> None:
            spec = LinkSpec(
                name="flannel.7",
                kind="vxlan",
                mtu=1300,
                mac=OTHER_MAC,
                txqlen=17,
                vxlan=VxlanAttrs(vni=7, port=8473, learning=True, gbp=True, l2miss=True),
            )
            link = await w.netlink.create_link(spec)
            assert (link.name, link.mtu, link.mac, link.txqlen) == (
                "flannel.7",
                1300,
                OTHER_MAC,
                17,
            )
            assert link.vxlan == spec.vxlan
            assert link.up is False

        check(body)

    def test_creation_is_exclusive(self, check: Check) -> None:
        """A taken name and a taken VNI are EEXIST."""

        async def body(w: World) -> None:
            for name, vni in (("flannel.1", 5), ("other", 1)):
                spec = LinkSpec(
                    name=name,
                    kind="vxlan",
                    vxlan=VxlanAttrs(vni=vni, local=IPv4Address("192.0.2.1")),
                )
                with pytest.raises(KernelError) as refusal:
                    await w.netlink.create_link(spec)
                assert refusal.value.errno == errno.EEXIST
                assert name in str(refusal.value)

        check(body)

    def test_a_kind_that_the_kernel_lacks_is_a_missing_device(self, check: Check) -> None:
        """The error names the kind, so that the operator knows which module is missing."""

        async def body(w: World) -> None:
            with pytest.raises(DeviceUnavailable, match="nonesuch") as refusal:
                await w.netlink.create_link(LinkSpec(name="x", kind="nonesuch"))
            assert refusal.value.errno == errno.EOPNOTSUPP

        check(body)

    @pytest.mark.parametrize(
        ("spec", "code"),
        [
            (LinkSpec(name="x", kind="vxlan", vxlan=VxlanAttrs(vni=1 << 24)), errno.ERANGE),
            (LinkSpec(name="x", kind="vxlan", vxlan=VxlanAttrs(vni=9, link=99)), errno.ENODEV),
            (LinkSpec(name="x", kind="vxlan", mtu=1, vxlan=VxlanAttrs(vni=9)), errno.EINVAL),
            (
                LinkSpec(name="x", kind="vxlan", mac="01:00:00:00:00:01", vxlan=VxlanAttrs(vni=9)),
                errno.EADDRNOTAVAIL,
            ),
            (LinkSpec(name="a-name-too-long-for-it", kind="bridge"), errno.ERANGE),
        ],
    )
    def test_an_impossible_link_is_refused(self, check: Check, spec: LinkSpec, code: int) -> None:
        """Each with the kernel's errno, and nothing is left behind."""

        async def body(w: World) -> None:
            before = await w.netlink.links()
            with pytest.raises(KernelError) as refusal:
                await w.netlink.create_link(spec)
            assert refusal.value.errno == code
            assert isinstance(refusal.value, DeviceUnavailable) == (code == errno.ENODEV)
            assert await w.netlink.links() == before

        check(body)

    @pytest.mark.parametrize("name", ["nope", "", "a-name-too-long-for-it", "ünïcödé-näme"])
    def test_a_link_that_is_not_there_is_none(self, check: Check, name: str) -> None:
        """Whatever the name looks like."""

        async def body(w: World) -> None:
            assert await w.netlink.link(name) is None

        check(body)

    def test_set_link_changes_what_is_given_and_nothing_else(self, check: Check) -> None:
        """MTU, MAC, queue length and state, each by itself."""

        async def body(w: World) -> None:
            expected = await w.link()
            changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
                ({"mtu": 1400}, {"mtu": 1400}),
                ({"mac": MAC}, {"mac": MAC}),
                ({"txqlen": 5}, {"txqlen": 5}),
                ({"up": False}, {"up": False, "running": False}),
                ({"up": True, "mtu": 1399}, {"up": True, "running": True, "mtu": 1399}),
            ]
            for given, seen in changes:
                await w.netlink.set_link(expected.index, **given)
                expected = replace(expected, **seen)
                assert await w.link() == expected

        check(body)

    def test_the_checksum_offload_is_switched_and_the_link_announced(self, check: Check) -> None:
        """A new vxlan link has it on; it stays as it is while the link goes down and up."""

        async def body(w: World) -> None:
            name, index = w.device.name, w.device.index
            assert await w.netlink.tx_checksum(name)
            stream = w.netlink.notifications()
            for on in (False, True, False):
                await w.netlink.set_tx_checksum(name, on=on)
                assert await w.netlink.tx_checksum(name) is on
                async with asyncio.timeout(PERIOD_S):
                    async for told in stream:
                        if told.topic is Topic.LINK and told.index == index:
                            break
            await w.netlink.set_tx_checksum(name, on=False)  # as it is
            for up in (False, True):
                await w.netlink.set_link(index, up=up)
                assert not await w.netlink.tx_checksum(name)
            await stream.aclose()

        check(body)

    def test_the_checksum_offload_of_no_link_is_a_missing_device(self, check: Check) -> None:
        """Also to be read."""

        async def body(w: World) -> None:
            for work in (
                w.netlink.tx_checksum("flannel.9"),
                w.netlink.set_tx_checksum("flannel.9", on=False),
            ):
                with pytest.raises(DeviceUnavailable) as refusal:
                    await work
                assert refusal.value.errno == errno.ENODEV

        check(body)

    def test_set_link_of_nothing_is_a_missing_device(self, check: Check) -> None:
        """Unlike a delete, it cannot be taken for done."""

        async def body(w: World) -> None:
            with pytest.raises(DeviceUnavailable) as refusal:
                await w.netlink.set_link(99, up=True)
            assert refusal.value.errno == errno.ENODEV

        check(body)

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"mtu": 70000}, errno.EINVAL),
            ({"mtu": 10}, errno.EINVAL),
            ({"mac": "01:00:00:00:00:01"}, errno.EADDRNOTAVAIL),
        ],
    )
    def test_an_impossible_change_is_refused(
        self, check: Check, change: dict[str, Any], code: int
    ) -> None:
        """And the link stays as it was."""

        async def body(w: World) -> None:
            before = await w.link()
            with pytest.raises(KernelError) as refusal:
                await w.netlink.set_link(w.device.index, **change)
            assert refusal.value.errno == code
            assert await w.link() == before

        check(body)

    def test_a_deleted_link_is_gone_and_may_be_deleted_again(self, check: Check) -> None:
        """With all that hung on it."""

        async def body(w: World) -> None:
            index = w.device.index
            await w.done(
                Set(w.route("10.5.7.0/24", "10.5.7.0")),
                Set(Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC)),
                Set(FdbEntry(index=index, mac=MAC, dst=IPv4Address("192.0.2.7"))),
            )
            await w.netlink.delete_link(index)
            await w.netlink.delete_link(index)
            assert await w.netlink.link("flannel.1") is None
            assert await w.netlink.addresses(index=index) == []
            assert await w.netlink.neighbours(index, Family.V4) == []
            assert await w.netlink.fdb(index) == []
            assert await w.netlink.routes(Family.V4, oif=index) == []
            assert await w.routes("10.5.7.0/24") == []

        check(body)

    def test_the_loopback_cannot_be_deleted(self, check: Check) -> None:
        """A refusal is not "already so"."""

        async def body(w: World) -> None:
            with pytest.raises(KernelError) as refusal:
                await w.netlink.delete_link(1)
            assert refusal.value.errno == errno.EOPNOTSUPP

        check(body)

    def test_the_underlay_takes_the_vxlan_devices_along(self, check: Check) -> None:
        """Which is why a replaced network card means a new flannel.1."""

        async def body(w: World) -> None:
            await w.netlink.delete_link(w.under.index)
            left = without_fallback(await w.netlink.links())
            assert [link.name for link in left] == ["lo"]

        check(body)


class TestAddresses:
    def test_addresses_of_both_families_are_listed(self, check: Check) -> None:
        """IPv4 before IPv6; of all links or of one."""

        async def body(w: World) -> None:
            everything = await w.netlink.addresses()
            assert [a.interface.version for a in everything] == sorted(
                a.interface.version for a in everything
            )
            assert address(w.under, "192.0.2.1/24") in everything
            of_one = await w.netlink.addresses(index=w.device.index)
            assert of_one[0] == address(w.device, "10.5.0.0/32")
            # The link-local one that every device with a MAC gets when it goes up.
            assert of_one[1:] == [address(w.device, "fe80::c00:ff:fe00:1/64", scope=RT_SCOPE_LINK)]

        check(body)

    def test_addresses_of_a_missing_link_are_none(self, check: Check) -> None:
        """An empty list, not an error."""

        async def body(w: World) -> None:
            assert await w.netlink.addresses(index=99) == []

        check(body)

    def test_an_address_set_twice_is_there_once(self, check: Check) -> None:
        """Set is idempotent."""

        async def body(w: World) -> None:
            one = address(w.device, "10.5.9.0/32")
            await w.done(Set(one), Set(one))
            await w.done(Set(one))
            assert (await w.netlink.addresses(index=w.device.index)).count(one) == 1

        check(body)

    def test_ipv4_addresses_differ_by_their_prefix_length(self, check: Check) -> None:
        """Both stand side by side, and each is deleted by itself."""

        async def body(w: World) -> None:
            host, net = address(w.device, "10.5.9.0/32"), address(w.device, "10.5.9.0/24")
            await w.done(Set(host), Set(net))
            found = await w.netlink.addresses(index=w.device.index)
            assert host in found
            assert net in found
            await w.done(Delete(net))
            found = await w.netlink.addresses(index=w.device.index)
            assert host in found
            assert net not in found

        check(body)

    def test_an_ipv6_address_has_one_prefix_length(self, check: Check) -> None:
        """Setting it with another one replaces it, though the kernel's replace would not."""

        async def body(w: World) -> None:
            wide, host = address(w.device6, "fd00:9::1/64"), address(w.device6, "fd00:9::1/128")
            await w.done(Set(wide))
            await w.done(Set(host))
            found = await w.netlink.addresses(index=w.device6.index)
            assert host in found
            assert wide not in found
            assert await w.routes("fd00:9::/64") == []

        check(body)

    def test_an_ipv4_address_with_another_scope_is_replaced(self, check: Check) -> None:
        """The kernel's replace would leave the scope."""

        async def body(w: World) -> None:
            await w.done(Set(address(w.device, "10.5.9.0/32", scope=RT_SCOPE_LINK)))
            wanted = address(w.device, "10.5.9.0/32")
            await w.done(Set(wanted))
            found = await w.netlink.addresses(index=w.device.index)
            assert [a for a in found if a.interface == wanted.interface] == [wanted]

        check(body)

    def test_deleting_an_absent_address_succeeds(self, check: Check) -> None:
        """Absent from the link, with another length, or with the link itself."""

        async def body(w: World) -> None:
            await w.done(
                Delete(address(w.device, "10.5.77.0/32")),
                Delete(address(w.device, "10.5.0.0/24")),
                Delete(address(w.device6, "fd00:5::/64")),
                Delete(Address(index=99, interface=ip_interface("10.5.0.0/32"))),
            )
            assert address(w.device, "10.5.0.0/32") in await w.netlink.addresses()
            assert address(w.device6, "fd00:5::/128") in await w.netlink.addresses()

        check(body)

    def test_an_address_for_a_missing_link_is_refused(self, check: Check) -> None:
        """As a missing device."""

        async def body(w: World) -> None:
            lost = Address(index=99, interface=ip_interface("10.5.0.0/32"))
            refusal = await w.refusal(Set(lost))
            assert isinstance(refusal, DeviceUnavailable)
            assert refusal.errno == errno.ENODEV

        check(body)

    def test_an_address_brings_the_route_to_its_network(self, check: Check) -> None:
        """Of protocol `kernel`; an IPv4 host address brings none, an IPv6 one does."""

        async def body(w: World) -> None:
            (v4,) = await w.routes("192.0.2.0/24")
            assert (v4.oif, v4.protocol, v4.scope) == (w.under.index, RTPROT_KERNEL, RT_SCOPE_LINK)
            assert v4.src == IPv4Address("192.0.2.1")
            (v6,) = await w.routes("2001:db8::/64")
            assert (v6.oif, v6.protocol, v6.metric) == (w.under.index, RTPROT_KERNEL, 256)
            assert await w.routes("10.5.0.0/32") == []
            (host,) = await w.routes("fd00:5::/128")
            assert host.protocol == RTPROT_KERNEL
            await w.done(Delete(address(w.under, "192.0.2.1/24")))
            await w.done(Delete(address(w.under, "2001:db8::1/64")))
            assert await w.routes("192.0.2.0/24") == []
            assert await w.routes("2001:db8::/64") == []

        check(body)

    def test_the_last_ipv4_address_takes_routes_and_neighbours_along(self, check: Check) -> None:
        """Only IPv4 ones; as long as there is another address they stay."""

        async def body(w: World) -> None:
            index = w.device.index
            v6_route = replace(w.route("fd00:5:7::/64"), oif=index)
            v4 = Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC)
            v6 = Neighbour(index=index, ip=IPv6Address("fd00:5:7::"), mac=MAC)
            second = address(w.device, "10.5.9.0/32")
            await w.done(
                Set(second),
                Set(w.route("10.5.7.0/24", "10.5.7.0")),
                Set(v6_route),
                Set(v4),
                Set(v6),
            )
            await w.done(Delete(second))
            assert len(await w.routes("10.5.7.0/24")) == 1
            assert await w.netlink.neighbours(index, Family.V4) == [v4]
            await w.done(Delete(address(w.device, "10.5.0.0/32")))
            assert await w.routes("10.5.7.0/24") == []
            assert await w.netlink.neighbours(index, Family.V4) == []
            assert len(await w.routes("fd00:5:7::/64")) == 1
            assert await w.netlink.neighbours(index, Family.V6) == [v6]

        check(body)

    def test_routes_with_a_source_go_with_its_address(self, check: Check) -> None:
        """IPv4: a route that prefers an address is removed with it."""

        async def body(w: World) -> None:
            second = address(w.device, "10.5.9.0/32")
            route = w.route("10.5.7.0/24", "10.5.7.0", src=IPv4Address("10.5.9.0"))
            await w.done(Set(second), Set(route))
            assert await w.routes("10.5.7.0/24") == [route]
            await w.done(Delete(second))
            assert await w.routes("10.5.7.0/24") == []

        check(body)

    def test_secondary_addresses_go_with_the_first_of_their_network(self, check: Check) -> None:
        """IPv4's promote_secondaries is off by default."""

        async def body(w: World) -> None:
            first, second = address(w.under, "192.0.2.1/24"), address(w.under, "192.0.2.5/24")
            await w.done(Set(second))
            await w.done(Delete(second))
            assert first in await w.netlink.addresses()
            await w.done(Set(second))
            await w.done(Delete(first))
            assert second not in await w.netlink.addresses()

        check(body)


class TestRoutes:
    @BOTH
    def test_a_route_is_read_back_as_it_was_set(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """All fields: onlink gateway, metric, protocol, source."""

        async def body(w: World) -> None:
            src = ip_address("10.5.0.0" if "." in dst else "fd00:5::")
            plain = w.route(dst, one)
            full = w.route(dst, two, metric=7, protocol=PROTO_STATIC, src=src)
            await w.done(Set(plain), Set(full))
            found = await w.routes(dst)
            assert sorted(found, key=lambda route: route.metric) == [plain, full]

        check(body)

    @BOTH
    def test_set_replaces_gateway_device_and_type(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """One route stands under the key, whatever stood there before."""

        async def body(w: World) -> None:
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

        check(body)

    @BOTH
    def test_set_replaces_all_that_were_appended(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """Also if the wanted route is one of them, in the first place or behind."""

        async def body(w: World) -> None:
            third = one.replace("7", "6")
            for wanted in (w.route(dst, one), w.route(dst, two), w.route(dst, third)):
                await w.done(Set(w.route(dst, one, oif=w.under.index)))
                w.others.append_route(w.route(dst))
                w.others.append_route(w.route(dst, oif=w.under.index))
                assert len(await w.routes(dst)) == 3
                await w.done(Set(wanted))
                assert await w.routes(dst) == [wanted]

        check(body)

    @BOTH
    def test_set_keeps_one_of_those_that_were_appended(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """The kernel's replace alone fails with EEXIST here (IPv4), or does nothing (IPv6)."""

        async def body(w: World) -> None:
            wanted = w.route(dst)
            await w.done(Set(w.route(dst, one)))
            w.others.append_route(wanted)
            await w.done(Set(wanted))
            assert await w.routes(dst) == [wanted]

        check(body)

    @BOTH
    def test_a_route_with_several_next_hops_is_reported_without_one(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """Set replaces it as a whole."""

        async def body(w: World) -> None:
            hops = [Hop(ip_address(one), w.under.index), Hop(ip_address(two), w.under.index)]
            w.others.add_multipath(ip_network(dst), hops)
            (found,) = await w.routes(dst)
            assert (found.gateway, found.oif) == (None, None)
            await w.done(Set(w.route(dst, one)))
            assert await w.routes(dst) == [w.route(dst, one)]

        check(body)

    @BOTH
    def test_some_routes_can_be_listed(self, check: Check, dst: str, one: str, two: str) -> None:
        """By protocol, and by nearness of destination or gateway."""

        async def body(w: World) -> None:
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

        check(body)

    @BOTH
    def test_the_gateways_of_several_next_hops_are_told(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """In their order."""

        async def body(w: World) -> None:
            hops = [Hop(ip_address(one), w.under.index), Hop(ip_address(two), w.under.index)]
            w.others.add_multipath(ip_network(dst), hops)
            (found,) = await w.routes(dst)
            assert found.next_hops == (ip_address(one), ip_address(two))
            await w.done(Set(w.route(dst, one)))
            (found,) = await w.routes(dst)
            assert found.next_hops == (ip_address(one),)

        check(body)

    @BOTH
    @pytest.mark.parametrize("protocol", [RTPROT_KERNEL, PROTO_BIRD])
    def test_a_protected_route_is_neither_replaced_nor_deleted_nor_joined(
        self, check: Check, dst: str, one: str, two: str, protocol: int
    ) -> None:
        """The refusal names it; when it is gone the place is free."""

        async def body(w: World) -> None:
            theirs = w.route(dst, oif=w.under.index, protocol=protocol)
            await w.done(Set(theirs))
            refusal = await w.refusal(Set(w.route(dst, one)))
            assert refusal.errno == errno.EEXIST
            assert f"{dst} dev {w.under.index} proto" in str(refusal)
            await w.done(Delete(w.route(dst, oif=w.under.index)))
            assert await w.routes(dst) == [theirs]
            await w.done(Delete(theirs), Set(w.route(dst, one)))
            assert await w.routes(dst) == [w.route(dst, one)]

        check(body)

    @BOTH
    def test_delete_does_not_take_several_next_hops_for_one(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """The kernel would compare the first hop only. What was listed can be deleted."""

        async def body(w: World) -> None:
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

        check(body)

    @BOTH
    def test_delete_removes_exactly_this_route(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """One that differs in gateway, link, metric or type stays."""

        async def body(w: World) -> None:
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

        check(body)

    @BOTH
    def test_delete_finds_the_right_one_among_those_of_one_destination(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """By its metric, and by its place among those appended."""

        async def body(w: World) -> None:
            first, cheap = w.route(dst, one, metric=5), w.route(dst, one)
            behind = w.route(dst, oif=w.under.index)
            await w.done(Set(first), Set(cheap))
            w.others.append_route(behind)
            await w.done(Delete(cheap))
            assert sorted(await w.routes(dst), key=lambda r: r.metric) == [behind, first]
            await w.done(Delete(behind))
            assert await w.routes(dst) == [first]

        check(body)

    @BOTH
    def test_delete_with_a_gateway_needs_no_link(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """Direct routes are set without a link; the kernel finds one."""

        async def body(w: World) -> None:
            neighbour = ip_address("192.0.2.9" if "." in dst else "2001:db8::9")
            route = Route(dst=ip_network(dst), gateway=neighbour)
            await w.done(Set(route))
            assert await w.routes(dst) == [replace(route, oif=w.under.index)]
            await w.done(Delete(route))
            assert await w.routes(dst) == []

        check(body)

    @BOTH
    def test_deleting_an_absent_route_succeeds(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """Also one through a link that is gone."""

        async def body(w: World) -> None:
            await w.done(Delete(w.route(dst, one)), Delete(w.route(dst, one, oif=99)))

        check(body)

    @BOTH
    def test_a_blackhole_has_no_link(self, check: Check, dst: str, one: str, two: str) -> None:
        """IPv6 reports the loopback there; it is left out."""

        async def body(w: World) -> None:
            hole = Route(dst=ip_network(dst), type=RTN_BLACKHOLE)
            await w.done(Set(hole))
            assert await w.routes(dst) == [hole]
            await w.done(Delete(w.route(dst)))
            assert await w.routes(dst) == [hole]
            await w.done(Delete(hole))
            assert await w.routes(dst) == []

        check(body)

    def test_an_ipv6_metric_of_1024_is_no_metric(self, check: Check) -> None:
        """The kernel cannot tell them apart, so set and delete do not either."""

        async def body(w: World) -> None:
            plain = w.route("fd00:5:7::/64", "fd00:5:7::")
            await w.done(Set(replace(plain, metric=1024)))
            assert await w.routes("fd00:5:7::/64") == [plain]
            await w.done(Set(plain))
            assert await w.routes("fd00:5:7::/64") == [plain]
            await w.done(Delete(replace(plain, metric=1024)))
            assert await w.routes("fd00:5:7::/64") == []

        check(body)

    @pytest.mark.parametrize(
        ("dst", "gateway", "code"),
        [
            ("10.5.7.0/24", "203.0.113.1", errno.ENETUNREACH),
            ("fd00:5:7::/64", "2001:db8:99::1", errno.EHOSTUNREACH),
        ],
    )
    def test_a_gateway_that_is_nobodys_neighbour_is_refused(
        self, check: Check, dst: str, gateway: str, code: int
    ) -> None:
        """Unless it is said to be on the link."""

        async def body(w: World) -> None:
            refusal = await w.refusal(Set(w.route(dst, gateway, onlink=False)))
            assert refusal.errno == code
            assert f"route replace {dst} via {gateway}" in str(refusal)
            refusal = await w.refusal(Set(w.route(dst, gateway, onlink=False, oif=None)))
            assert refusal.errno == code
            await w.done(Set(w.route(dst, gateway)))

        check(body)

    @BOTH
    def test_a_route_without_a_way_is_refused(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """No link, a missing one, one that is down; a source that is not ours."""

        async def body(w: World) -> None:
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

        check(body)

    def test_a_route_through_another_link_does_not_keep_a_gateway_from_ours(
        self, check: Check
    ) -> None:
        """Be it the one that is replaced, or a wider one. (IPv6 alone refuses that.)"""

        async def body(w: World) -> None:
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

        check(body)

    def test_a_gateway_that_belongs_elsewhere_is_refused(self, check: Check) -> None:
        """A cheaper route to it leads through another link; nothing half-done is left."""

        async def body(w: World) -> None:
            cheaper = w.route("fd00:5:7::/64", oif=w.under.index, metric=1)
            await w.done(Set(cheaper))
            refusal = await w.refusal(Set(w.route("fd00:5:7::/64", "fd00:5:7::")))
            assert refusal.errno == errno.EINVAL
            assert await w.routes("fd00:5:7::/64") == [cheaper]

        check(body)

    def test_one_failure_stops_nothing(self, check: Check) -> None:
        """Failures are told by their position, the others are carried out in order."""

        async def body(w: World) -> None:
            good = [w.route(f"10.6.{i}.0/24", f"10.6.{i}.0") for i in range(150)]
            bad = w.route("10.7.0.0/24", oif=99)
            operations = [Set(route) for route in good]
            operations[70] = operations[3] = Set(bad)
            failures = await w.netlink.apply(operations)
            assert sorted(failures) == [3, 70]
            assert all(error.errno == errno.ENODEV for error in failures.values())
            assert len(await w.netlink.routes(Family.V4, oif=w.device.index)) == 148

        check(body)

    def test_routes_of_one_link(self, check: Check) -> None:
        """Those through others are not listed; those of a missing link are none."""

        async def body(w: World) -> None:
            mine = w.route("10.5.7.0/24", "10.5.7.0")
            await w.done(Set(mine), Set(w.route("10.5.8.0/24", oif=w.under.index)))
            assert await w.netlink.routes(Family.V4, oif=w.device.index) == [mine]
            assert await w.netlink.routes(Family.V4, oif=99) == []
            assert await w.netlink.routes(Family.V6, oif=99) == []

        check(body)

    def test_the_default_route_is_a_route(self, check: Check) -> None:
        """The kernel reports it without a destination."""

        async def body(w: World) -> None:
            for dst, gateway in (("0.0.0.0/0", "192.0.2.254"), ("::/0", "2001:db8::fe")):
                route = Route(dst=ip_network(dst), gateway=ip_address(gateway), oif=w.under.index)
                await w.done(Set(route))
                assert await w.routes(dst) == [route]
                await w.done(Delete(route))
                assert await w.routes(dst) == []

        check(body)

    def test_a_link_that_goes_down_takes_routes_and_neighbours_along(self, check: Check) -> None:
        """They do not come back; addresses (IPv4) and the FDB stay."""

        async def body(w: World) -> None:
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

        check(body)


class TestNeighboursAndFdb:
    @pytest.mark.parametrize("ip", ["10.5.7.0", "fd00:5:7::"])
    def test_a_neighbour_is_set_replaced_and_deleted(self, check: Check, ip: str) -> None:
        """Permanent unless said otherwise; another MAC takes the place of the first."""

        async def body(w: World) -> None:
            family = Family(ip_address(ip).version)
            index = w.device.index
            one = Neighbour(index=index, ip=ip_address(ip), mac=MAC)
            two = replace(one, mac=OTHER_MAC)
            await w.done(Set(one))
            assert await w.netlink.neighbours(index, family) == [one]
            assert one.state == NUD_PERMANENT
            await w.done(Set(two))
            assert await w.netlink.neighbours(index, family) == [two]
            await w.done(Set(replace(two, state=NUD_REACHABLE)))
            (found,) = await w.netlink.neighbours(index, family)
            assert found.state == NUD_REACHABLE
            await w.done(Set(one))
            assert await w.netlink.neighbours(index, family) == [one]
            await w.done(Delete(one), Delete(one))
            assert await w.netlink.neighbours(index, family) == []

        check(body)

    def test_neighbours_are_those_of_one_link_and_family(self, check: Check) -> None:
        """And of a missing link there are none."""

        async def body(w: World) -> None:
            one = Neighbour(index=w.device.index, ip=IPv4Address("10.5.7.0"), mac=MAC)
            two = Neighbour(index=w.under.index, ip=IPv4Address("192.0.2.7"), mac=MAC)
            six = Neighbour(index=w.device.index, ip=IPv6Address("fd00:5:7::"), mac=MAC)
            await w.done(Set(one), Set(two), Set(six))
            assert await w.netlink.neighbours(w.device.index, Family.V4) == [one]
            assert await w.netlink.neighbours(w.under.index, Family.V4) == [two]
            assert await w.netlink.neighbours(w.device.index, Family.V6) == [six]
            assert await w.netlink.neighbours(99, Family.V4) == []

        check(body)

    def test_a_changed_mac_of_the_link_flushes_its_neighbours(self, check: Check) -> None:
        """Permanent ones as well; routes and FDB stay."""

        async def body(w: World) -> None:
            index = w.device.index
            fdb = FdbEntry(index=index, mac=MAC, dst=IPv4Address("192.0.2.7"))
            await w.done(
                Set(Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC)),
                Set(Neighbour(index=index, ip=IPv6Address("fd00:5:7::"), mac=MAC)),
                Set(w.route("10.5.7.0/24", "10.5.7.0")),
                Set(fdb),
            )
            await w.netlink.set_link(index, mac="0e:00:00:00:99:99")
            assert await w.netlink.neighbours(index, Family.V4) == []
            assert await w.netlink.neighbours(index, Family.V6) == []
            assert len(await w.routes("10.5.7.0/24")) == 1
            assert await w.netlink.fdb(index) == [fdb]

        check(body)

    @pytest.mark.parametrize("family", [4, 6])
    def test_replacing_the_destination_of_a_mac_leaves_one_entry(
        self, check: Check, family: int
    ) -> None:
        """In a vxlan device of each family."""

        async def body(w: World) -> None:
            device = w.device if family == 4 else w.device6
            prefix = "192.0.2." if family == 4 else "2001:db8::"
            one = FdbEntry(index=device.index, mac=MAC, dst=ip_address(f"{prefix}7"))
            two = replace(one, dst=ip_address(f"{prefix}8"))
            await w.done(Set(one))
            assert await w.netlink.fdb(device.index) == [one]
            await w.done(Set(two), Set(two))
            assert await w.netlink.fdb(device.index) == [two]

        check(body)

    def test_an_fdb_entry_is_deleted_only_with_its_destination(self, check: Check) -> None:
        """Another destination's entry stays; an absent MAC is well deleted."""

        async def body(w: World) -> None:
            one = FdbEntry(index=w.device.index, mac=MAC, dst=IPv4Address("192.0.2.7"))
            await w.done(Set(one))
            await w.done(
                Delete(replace(one, dst=IPv4Address("192.0.2.8"))),
                Delete(replace(one, mac=OTHER_MAC)),
                Delete(replace(one, index=99)),
            )
            assert await w.netlink.fdb(w.device.index) == [one]
            await w.done(Delete(one), Delete(one))
            assert await w.netlink.fdb(w.device.index) == []

        check(body)

    @pytest.mark.parametrize("change", [{"port": 9999}, {"vni": 77}, {"via": 2}])
    def test_an_fdb_entry_is_also_its_port_vni_and_link(
        self, check: Check, change: dict[str, int]
    ) -> None:
        """One to the right host with a wrong port reaches nobody; it is seen, and replaced."""

        async def body(w: World) -> None:
            wanted = FdbEntry(index=w.device.index, mac=MAC, dst=IPv4Address("192.0.2.7"))
            wrong = replace(wanted, **change)
            await w.done(Set(wrong))
            assert await w.netlink.fdb(w.device.index) == [wrong]
            await w.done(Delete(wanted))
            assert await w.netlink.fdb(w.device.index) == [wrong]
            await w.done(Set(wanted))
            assert await w.netlink.fdb(w.device.index) == [wanted]
            await w.done(Set(wrong), Delete(wrong))
            assert await w.netlink.fdb(w.device.index) == []

        check(body)

    def test_what_the_device_learned_is_not_listed_and_not_in_the_way(self, check: Check) -> None:
        """A learned entry ages; only one that was set stays."""

        async def body(w: World) -> None:
            learned = FdbEntry(index=w.device.index, mac=MAC, dst=IPv4Address("192.0.2.7"))
            w.others.learn(learned)
            assert await w.netlink.fdb(w.device.index) == []
            wanted = replace(learned, dst=IPv4Address("192.0.2.8"))
            await w.done(Set(wanted))
            assert await w.netlink.fdb(w.device.index) == [wanted]

        check(body)

    @pytest.mark.parametrize(
        ("mac", "dst", "code"),
        [
            ("00:00:00:00:00:00", "192.0.2.7", errno.EOPNOTSUPP),
            ("01:00:5e:00:00:01", "192.0.2.7", errno.EOPNOTSUPP),
            (MAC, "2001:db8::7", errno.EAFNOSUPPORT),
            ("not a mac", "192.0.2.7", errno.EINVAL),
        ],
    )
    def test_an_impossible_fdb_entry_is_refused(
        self, check: Check, mac: str, dst: str, code: int
    ) -> None:
        """Group addresses, the other family's destinations, and what is no MAC."""

        async def body(w: World) -> None:
            entry = FdbEntry(index=w.device.index, mac=mac, dst=ip_address(dst))
            assert (await w.refusal(Set(entry))).errno == code
            assert await w.netlink.fdb(w.device.index) == []

        check(body)

    def test_entries_for_a_missing_link_are_refused_and_well_deleted(self, check: Check) -> None:
        """Set is ENODEV, delete is fine, a listing is empty."""

        async def body(w: World) -> None:
            for item in (
                Neighbour(index=99, ip=IPv4Address("10.5.7.0"), mac=MAC),
                FdbEntry(index=99, mac=MAC, dst=IPv4Address("192.0.2.7")),
            ):
                refusal = await w.refusal(Set(item))
                assert isinstance(refusal, DeviceUnavailable)
                assert refusal.errno == errno.ENODEV
                await w.done(Delete(item))
            assert await w.netlink.fdb(99) == []

        check(body)


class TestLookup:
    def test_a_direct_neighbour_has_no_gateway(self, check: Check) -> None:
        """The answer tells link and source, and is about the address itself."""

        async def body(w: World) -> None:
            for text, own in (("192.0.2.9", "192.0.2.1"), ("2001:db8::9", "2001:db8::1")):
                destination = ip_address(text)
                found = await w.netlink.route_lookup(destination)
                assert found is not None
                assert (found.gateway, found.oif) == (None, w.under.index)
                assert found.src == ip_address(own)
                assert found.dst == ip_network(text)

        check(body)

    def test_others_have_one(self, check: Check) -> None:
        """The longest prefix decides, then the lowest metric."""

        async def body(w: World) -> None:
            await w.done(
                Set(w.route("10.0.0.0/8", oif=w.under.index)),
                Set(w.route("10.5.7.0/24", "10.5.7.1", metric=9)),
                Set(w.route("10.5.7.0/24", "10.5.7.0")),
                Set(w.route("fd00:5:7::/64", "fd00:5:7::")),
            )
            for text, gateway, device, own in (
                ("10.5.7.9", "10.5.7.0", w.device, "10.5.0.0"),
                ("fd00:5:7::9", "fd00:5:7::", w.device6, "fd00:5::"),
            ):
                found = await w.netlink.route_lookup(ip_address(text))
                assert found is not None
                assert (found.gateway, found.oif) == (ip_address(gateway), device.index)
                assert found.src == ip_address(own)

        check(body)

    @pytest.mark.parametrize("text", ["203.0.113.1", "2001:db8:99::1"])
    def test_an_unreachable_one_is_none(self, check: Check, text: str) -> None:
        """Without a route, and with one that leads into a black hole."""

        async def body(w: World) -> None:
            destination: IPAddress = ip_address(text)
            assert await w.netlink.route_lookup(destination) is None
            await w.done(Set(Route(dst=ip_network(text), type=RTN_BLACKHOLE)))
            assert await w.netlink.route_lookup(destination) is None

        check(body)

    def test_an_own_address_is_local(self, check: Check) -> None:
        """Its route has the type `local`."""

        async def body(w: World) -> None:
            for text in ("192.0.2.1", "10.5.0.0", "2001:db8::1"):
                found = await w.netlink.route_lookup(ip_address(text))
                assert found is not None
                assert found.type == RTN_LOCAL

        check(body)


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
    def test_each_kind_of_change_is_told(self, check: Check) -> None:
        """Set and deleted; link, family and destination are named."""

        async def body(w: World) -> None:
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

        check(body)

    def test_of_routing_daemons_only_what_is_near_is_told(self, check: Check) -> None:
        """By destination, by gateway, or because it leads everywhere; others' routes as ever."""

        async def body(w: World) -> None:
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

        check(body)

    def test_without_prefixes_near_none_but_the_default_is_told(self, check: Check) -> None:
        async def body(w: World) -> None:
            stream = w.netlink.notifications(near=())
            await w.done(Set(w.route("10.5.7.0/24", "10.5.7.0", protocol=PROTO_BIRD)))
            await w.done(Set(w.route("0.0.0.0/0", "10.5.7.0", protocol=PROTO_BIRD)))
            told = [n.dst for n in await _told(w, stream) if n.topic is Topic.ROUTE]
            assert told == [ip_network("0.0.0.0/0")]
            await stream.aclose()

        check(body)

    def test_what_was_there_already_is_not_told_again(self, check: Check) -> None:
        """But for IPv6 routes, and by some kernels FDB entries, which are announced each time.

        Linux 6.1 and 6.12 do that with FDB entries. It is harmless: a notification says what stands
        now, and whoever wants just that has no reason to act.
        """

        async def body(w: World) -> None:
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

        check(body)

    def test_links_are_told_with_their_names(self, check: Check) -> None:
        """Created, changed, deleted; the deletion is told as such."""

        async def body(w: World) -> None:
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

        check(body)

    def test_a_link_that_goes_down_is_told_its_ipv4_routes_are_not(self, check: Check) -> None:
        """So whoever keeps routes must read them back when a link changes."""

        async def body(w: World) -> None:
            dst = ip_network("10.5.7.0/24")
            await w.done(Set(w.route("10.5.7.0/24", "10.5.7.0")))
            stream = w.netlink.notifications()
            await w.netlink.set_link(w.device.index, up=False)
            told = await _told(w, stream)
            assert _note(Topic.LINK, w.device.index, name="flannel.1") in told
            assert [n for n in told if n.dst == dst] == []
            await stream.aclose()

        check(body)

    def test_two_listeners_hear_the_same(self, check: Check) -> None:
        """Each from its own subscription on; a closed one hears nothing more."""

        async def body(w: World) -> None:
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

        check(body)

    @pytest.mark.parametrize("whole", [False, True], ids=["stream", "netlink"])
    def test_closing_ends_the_iteration_of_who_waits(self, check: Check, whole: bool) -> None:
        """Closing the stream, or the netlink it came from."""

        async def body(w: World) -> None:
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

        check(body)

    def test_a_cancelled_wait_loses_nothing(self, check: Check) -> None:
        """The next one hears what came meanwhile."""

        async def body(w: World) -> None:
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

        check(body)


class TestBatches:
    def test_nothing_to_do_is_done(self, check: Check) -> None:
        """An empty batch."""

        async def body(w: World) -> None:
            assert await w.netlink.apply([]) == {}

        check(body)

    @BOTH
    def test_operations_are_carried_out_in_order(
        self, check: Check, dst: str, one: str, two: str
    ) -> None:
        """The last word on an object is what counts, within a batch too."""

        async def body(w: World) -> None:
            first, second = w.route(dst, one), w.route(dst, two)
            await w.done(Set(first), Delete(first))
            assert await w.routes(dst) == []
            await w.done(Delete(first), Set(second), Delete(first))
            assert await w.routes(dst) == [second]
            await w.done(Set(first), Set(second), Set(first))
            assert await w.routes(dst) == [first]
            await w.done(Delete(first), Set(second), Delete(second), Set(first), Delete(first))
            assert await w.routes(dst) == []
            own = Address(
                index=first.oif or 0, interface=ip_interface(f"{one}/{32 if '.' in one else 128}")
            )
            await w.done(Set(own), Delete(own), Set(own))
            assert own in await w.netlink.addresses()
            await w.done(Delete(own), Set(own), Delete(own))
            assert own not in await w.netlink.addresses()

        check(body)

    def test_a_batch_of_everything(self, check: Check) -> None:
        """Hundreds of objects of all kinds; all are there, and all are gone after."""

        async def body(w: World) -> None:
            index = w.device.index
            items: list[Any] = []
            for i in range(300):
                ip, mac = (
                    IPv4Address(f"10.6.{i % 256}.{i // 256}"),
                    f"0e:00:00:01:{i >> 8:02x}:{i & 255:02x}",
                )
                items += [
                    Neighbour(index=index, ip=ip, mac=mac),
                    FdbEntry(index=index, mac=mac, dst=IPv4Address("198.51.100.1") + i),
                    w.route(f"{ip}/32", str(ip)),
                ]
            await w.done(*[Set(item) for item in items])
            assert len(await w.netlink.neighbours(index, Family.V4)) == 300
            assert len(await w.netlink.fdb(index)) == 300
            assert len(await w.netlink.routes(Family.V4, oif=index)) == 300
            found = set(await w.netlink.routes(Family.V4)) | set(await w.netlink.fdb(index))
            found |= set(await w.netlink.neighbours(index, Family.V4))
            assert found >= set(items)
            await w.done(*[Delete(item) for item in items])
            assert await w.netlink.neighbours(index, Family.V4) == []
            assert await w.netlink.fdb(index) == []
            assert await w.netlink.routes(Family.V4, oif=index) == []

        check(body)

    def test_calls_may_run_at_the_same_time(self, check: Check) -> None:
        """Answers are not mixed up."""

        async def body(w: World) -> None:
            async def peer(i: int) -> None:
                route = w.route(f"10.6.{i}.0/24", f"10.6.{i}.0")
                assert await w.netlink.apply([Set(route)]) == {}
                assert route in await w.netlink.routes(Family.V4, oif=w.device.index)
                assert await w.netlink.link(f"none{i}") is None
                assert (await w.link()).index == w.device.index
                found = await w.netlink.route_lookup(IPv4Address(f"10.6.{i}.9"))
                assert found is not None
                assert found.gateway == IPv4Address(f"10.6.{i}.0")

            async with asyncio.TaskGroup() as group:
                for i in range(40):
                    group.create_task(peer(i))

        check(body)

    def test_a_big_batch_lets_others_run(self, check: Check) -> None:
        """The event loop turns while hundreds of objects are set."""

        async def body(w: World) -> None:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counter = asyncio.create_task(count())
            await asyncio.sleep(0)
            before = turns
            routes = [w.route(f"10.{6 + i // 250}.{i % 250}.0/24") for i in range(4000)]
            await w.done(*[Set(route) for route in routes])
            assert turns - before >= 5
            counter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await counter

        check(body)

    def test_a_cancelled_batch_leaves_the_netlink_usable(self, check: Check) -> None:
        """Whatever answers were still to come."""

        async def body(w: World) -> None:
            routes = [w.route(f"10.{6 + i // 250}.{i % 250}.0/24") for i in range(1000)]
            for _ in range(5):
                batch = asyncio.create_task(w.netlink.apply([Set(route) for route in routes]))
                for _ in range(3):
                    await asyncio.sleep(0)
                batch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await batch
                assert (await w.link()).name == "flannel.1"
                assert len(without_fallback(await w.netlink.links())) == 4

        check(body)

    def test_a_closed_netlink_refuses(self, check: Check) -> None:
        """With a KernelError; closing twice is fine."""

        async def body(w: World) -> None:
            await w.netlink.close()
            await w.netlink.close()
            with pytest.raises(KernelError) as refusal:
                await w.netlink.links()
            assert refusal.value.errno == errno.EBADF
            with pytest.raises(KernelError):
                await w.netlink.apply([Set(w.route("10.5.7.0/24"))])

        check(body)
