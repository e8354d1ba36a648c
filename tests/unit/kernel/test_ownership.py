"""Whose a route is."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.kernel.base import RTPROT_KERNEL, Route
from pyflannel.kernel.ownership import describe, is_kernels, is_protected

DST = IPv4Network("10.5.7.0/24")


@pytest.mark.parametrize("protocol", [0, 3, 4])
def test_routes_that_no_program_watches_over_may_be_replaced(protocol: int) -> None:
    assert not is_protected(Route(dst=DST, protocol=protocol))


@pytest.mark.parametrize("protocol", [1, RTPROT_KERNEL, 5, 9, 11, 12, 16, 80, 186, 188, 255])
def test_the_kernels_and_any_routing_daemons_may_not(protocol: int) -> None:
    route = Route(dst=DST, protocol=protocol)
    assert is_protected(route)
    assert is_kernels(route) is (protocol == RTPROT_KERNEL)


def test_a_route_is_described_as_ip_prints_it() -> None:
    route = Route(dst=DST, gateway=IPv4Address("10.99.0.7"), oif=3, protocol=12)
    assert describe(route, "eth0") == "10.5.7.0/24 via 10.99.0.7 dev eth0 proto bird"
    assert describe(Route(dst=DST, oif=3, protocol=80)) == "10.5.7.0/24 dev 3 proto 80"
