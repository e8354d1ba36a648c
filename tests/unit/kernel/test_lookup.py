"""What is looked up for the choice of the interface, and what is not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from pyflannel.core.errors import InterfaceError, KernelError
from pyflannel.core.ip import Family
from pyflannel.core.options import DaemonOptions
from pyflannel.kernel import lookup
from pyflannel.kernel.base import RTN_UNICAST, Address, Link, Route

UNREACHABLE = 7
"""RTN_UNREACHABLE."""


@dataclass
class Stub:
    """As much of a `Netlink` as a look-up needs; remembers what it was asked."""

    route_list: list = field(default_factory=list)
    reach: Route | KernelError | None = None
    asked: list = field(default_factory=list)

    async def links(self):
        self.asked.append("links")
        return [
            Link(index=3, name="eth1", mtu=9000, up=True),
            Link(index=1, name="lo", mtu=65536, up=True, loopback=True),
            Link(index=2, name="eth0", mtu=1500),
        ]

    async def addresses(self, *, index=None):
        self.asked.append("addresses")
        return [
            Address(index=1, interface=ip_interface("127.0.0.1/8")),
            Address(index=2, interface=ip_interface("192.0.2.9/24"), permanent=False),
            Address(index=2, interface=ip_interface("192.0.2.1/24")),
            Address(index=3, interface=ip_interface("2001:db8::1/64"), temporary=True),
            Address(index=3, interface=ip_interface("2001:db8::2/64"), deprecated=True),
        ]

    async def routes(self, family, *, oif=None):
        self.asked.append(f"routes {family}")
        version = 4 if family is Family.V4 else 6
        return [route for route in self.route_list if route.dst.version == version]

    async def route_lookup(self, destination):
        self.asked.append(f"lookup {destination}")
        if isinstance(self.reach, KernelError):
            raise self.reach
        return self.reach


def route(text, oif, route_type=RTN_UNICAST):
    return Route(dst=ip_network(text), oif=oif, type=route_type)


def is_ours(name, link_kind):
    return (name, link_kind) == ("eth1", "")


def look(stub, families=(Family.V4,), **options):
    return asyncio.run(lookup.look_around(stub, DaemonOptions(**options), families, is_ours))


def test_links_get_their_addresses_and_come_in_the_order_of_their_index():
    found = look(Stub()).candidates
    assert [link.name for link in found] == ["lo", "eth0", "eth1"]
    assert found[0].loopback
    assert not found[1].up
    assert found[2].mtu == 9000
    assert [link.ours for link in found] == [False, False, True]
    assert [str(a.ip) for a in found[1].addresses] == ["192.0.2.9", "192.0.2.1"]
    assert [str(ip) for ip in found[1].usable(Family.V4)] == ["192.0.2.1", "192.0.2.9"]
    assert [str(ip) for ip in found[2].usable(Family.V6)] == ["2001:db8::1"]


def test_without_options_the_default_routes_of_each_family_count_in_the_kernels_order():
    stub = Stub(
        route_list=[
            route("192.0.2.0/24", 2),
            route("0.0.0.0/0", 2),
            route("0.0.0.0/0", 3),
            route("::/0", None, UNREACHABLE),
            route("::/0", 3),
        ]
    )
    found = look(stub, (Family.V4, Family.V6)).default_routes
    indexes = {family: [way.index for way in ways] for family, ways in found.items()}
    assert indexes == {Family.V4: [2, 3], Family.V6: [3]}


def test_a_family_that_is_off_is_not_asked_for():
    stub = Stub()
    assert look(stub).default_routes == {Family.V4: []}
    assert stub.asked == ["links", "addresses", "routes IPv4"]


@pytest.mark.parametrize(
    "options",
    [{"iface": ("eth0",)}, {"iface_regex": ("eth",)}, {"public_ip": "192.0.2.1"}],
)
def test_no_route_is_asked_for_where_an_option_says_more(options):
    stub = Stub()
    look(stub, **options)
    assert stub.asked == ["links", "addresses"]


def test_can_reach_asks_the_kernel_for_the_way():
    stub = Stub(reach=Route(dst=ip_network("203.0.113.1/32"), oif=2, src=ip_address("192.0.2.9")))
    found = look(stub, iface_can_reach="203.0.113.1")
    assert stub.asked[-1] == "lookup 203.0.113.1"
    assert found.reach is not None
    assert (found.reach.index, str(found.reach.source)) == (2, "192.0.2.9")


@pytest.mark.parametrize(
    ("target", "reach"),
    [("nope", None), ("203.0.113.1", None), ("203.0.113.1", KernelError("route get", "x", 22))],
)
def test_a_destination_that_leads_nowhere_is_none_and_the_choice_says_so(target, reach):
    stub = Stub(reach=reach)
    assert look(stub, iface_can_reach=target).reach is None
    options = DaemonOptions(iface_can_reach=target)
    with pytest.raises(InterfaceError, match="--iface-can-reach"):
        asyncio.run(lookup.find_interface(stub, options, (Family.V4,), ours=is_ours))


def test_addresses_that_the_store_prescribes_count_more_than_the_options():
    """As flannel's node-public-ip: it picks the interface, or with --iface it is published."""
    wished = [ip_address("192.0.2.9"), ip_address("2001:db8::9")]
    options = DaemonOptions(public_ip="192.0.2.1")
    found = asyncio.run(
        lookup.find_interface(
            Stub(), options, (Family.V4,), ours=lambda *_: False, public=wished[:1]
        )
    )
    assert str(found.interface.address) == "192.0.2.9"
    options = DaemonOptions(iface=("eth1",), public_ipv6="2001:db8::1")
    found = asyncio.run(
        lookup.find_interface(Stub(), options, (Family.V6,), ours=lambda *_: False, public=wished)
    )
    assert str(found.interface.public_ipv6) == "2001:db8::9"
