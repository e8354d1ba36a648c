"""Which routes are ours: the rule that keeps an operator's static routes safe."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from pyflannel.backend import routes
from pyflannel.backend.peers import public_address, sites
from pyflannel.core.ip import Family
from pyflannel.core.lease import LeaseAttrs
from pyflannel.kernel.base import RTN_BLACKHOLE, RTPROT_KERNEL, Link, Route
from tests.support.overlay import config, key, lease

ETH0 = Link(index=2, name="eth0")
CONFIG = config({"Type": "host-gw"}, ipv6=True)
OURS = Route(dst=IPv4Network("10.5.7.0/24"), gateway=IPv4Address("192.0.2.7"), oif=2)
OURS6 = Route(dst=IPv6Network("fd00:5:0:7::/64"), gateway=IPv6Address("2001:db8::7"), oif=2)


@pytest.mark.parametrize(
    "route",
    [
        OURS,
        OURS6,
        replace(OURS, onlink=True),  # ipip with DirectRouting
        replace(OURS, onlink=True, gateway=IPv4Address("10.5.7.0"), oif=9),  # vxlan
    ],
    ids=str,
)
def test_a_route_as_one_of_the_backends_writes_it_is_ours(route):
    assert routes.is_stray(route, CONFIG, key(1, ipv6=True), ETH0)


@pytest.mark.parametrize(
    "foreign",
    [
        replace(OURS, protocol=4),
        replace(OURS, protocol=RTPROT_KERNEL),
        replace(OURS, metric=100),
        replace(OURS, src=IPv4Address("192.0.2.1")),
        replace(OURS, gateway=None),
        replace(OURS, oif=3),
        replace(OURS, oif=None),
        replace(OURS, onlink=True, oif=3),
        replace(OURS, altered=True),
        replace(OURS, scope=253),
        replace(OURS, type=RTN_BLACKHOLE),
        replace(OURS, dst=IPv4Network("10.5.7.128/25")),
        replace(OURS, dst=IPv4Network("10.5.6.0/23")),
        replace(OURS, dst=IPv4Network("10.6.7.0/24")),
        replace(OURS, dst=IPv4Network("10.5.0.0/24")),  # before SubnetMin
        replace(OURS, dst=IPv4Network("10.5.255.0/24")),  # behind SubnetMax
        replace(OURS, dst=IPv4Network("10.5.1.0/24")),  # our own subnet
        replace(OURS6, dst=IPv6Network("fd00:5:0:1::/64")),
        replace(OURS6, dst=IPv6Network("fd00:6:0:7::/64")),
        replace(OURS6, metric=1),
    ],
    ids=str,
)
def test_any_other_route_is_another_programs(foreign):
    assert not routes.is_stray(foreign, CONFIG, key(1, ipv6=True), ETH0)


class TestWithoutAllotment:
    """With Kubernetes the podCIDRs are the subnets: as long as ours, anywhere in the network."""

    CONFIG = replace(
        CONFIG,
        subnet_len=0,
        subnet_min=IPv4Address(0),
        subnet_max=IPv4Address(0),
        ipv6_subnet_len=0,
        ipv6_subnet_min=IPv6Address(0),
        ipv6_subnet_max=IPv6Address(0),
    )

    @pytest.mark.parametrize(
        "route", [OURS, OURS6, replace(OURS, dst=IPv4Network("10.5.0.0/24"))], ids=str
    )
    def test_a_route_to_another_podcidr_is_ours(self, route):
        assert routes.is_stray(route, self.CONFIG, key(1, ipv6=True), ETH0)

    @pytest.mark.parametrize("cidr", ["10.5.7.0/25", "10.6.7.0/24", "10.5.1.0/24"])
    def test_another_length_or_network_is_another_programs(self, cidr):
        route = replace(OURS, dst=IPv4Network(cidr))
        assert not routes.is_stray(route, self.CONFIG, key(1, ipv6=True), ETH0)

    def test_nothing_is_ours_before_there_is_a_lease(self):
        assert not routes.is_stray(OURS, self.CONFIG, None, ETH0)


def test_without_the_external_interface_nothing_is_ours():
    assert not routes.is_stray(OURS, CONFIG, key(1), None)


def test_on_our_own_device_all_is_ours_but_what_the_kernel_and_our_containers_have_there():
    device = Link(index=9, name="flannel.1")

    def ours(**changes):
        route = replace(OURS, oif=9, **changes)
        return routes.is_device_route(route, CONFIG, key(1), device)

    assert ours()
    assert ours(gateway=None, dst=IPv4Network("10.5.0.0/16")), "what flannel 0.7 left behind"
    assert ours(metric=50, protocol=4)
    assert not ours(protocol=RTPROT_KERNEL)
    assert not ours(dst=IPv4Network("10.5.1.9/32"))
    assert not ours(dst=IPv4Network("172.31.0.0/16"))
    assert not routes.is_device_route(OURS, CONFIG, key(1), device)
    assert not routes.is_device_route(OURS, CONFIG, key(1), None)


def test_a_family_that_is_off_concerns_no_route():
    only4 = config({"Type": "host-gw"})
    assert not routes.inside(IPv6Network("fd00:5:0:7::/64"), only4, key(1))
    assert routes.inside(IPv4Network("10.5.7.0/24"), only4, None)


def test_the_type_that_is_not_given_is_named_so():
    assert sites(lease(2, "host-gw"), "host-gw", (Family.V4,))[1] == ""
    assert "not given" in sites(lease(2, "udp"), "host-gw", (Family.V4,))[1]
    assert "vxlan" in sites(lease(2, "vxlan"), "host-gw", (Family.V4,))[1]


def test_the_address_upstream_writes_for_none_is_none():
    nowhere = replace(lease(2, "host-gw"), attrs=LeaseAttrs(public_ip=IPv4Address("0.0.0.0")))
    assert public_address(nowhere, Family.V4) is None
    assert public_address(nowhere, Family.V6) is None


def test_only_an_address_without_a_gateway_before_it_is_on_the_link():
    path = Route(dst=IPv4Network("192.0.2.7/32"), oif=2)
    assert routes.direct_link(path) == 2
    assert routes.direct_link(replace(path, gateway=IPv4Address("192.0.2.254"))) is None
    assert routes.direct_link(replace(path, type=2)) is None, "our own address"
    assert routes.direct_link(None) is None
