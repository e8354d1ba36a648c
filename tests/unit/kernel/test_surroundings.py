"""What listings of the kernel say about what this node stands on."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface

import pytest

from pyflannel.core.ip import IPAddress
from pyflannel.core.overlap import Kind, Obstacles, Surroundings
from pyflannel.kernel.base import RTPROT_BOOT, RTPROT_KERNEL, Address, Link, Route
from pyflannel.kernel.surroundings import is_part_of_surroundings, obstacles, survey
from tests.support.overlay import ME, NETWORK, key

OURS, ETH0, DOCKER0 = 9, 2, 3
DEFAULT = IPv4Network("0.0.0.0/0")


def address(text: str, index: int = ETH0) -> Address:
    return Address(index=index, interface=IPv4Interface(text))


def around(*things: Address | Route, store: tuple[IPAddress, ...] = ()) -> Surroundings:
    """What is said of all, which is what is said without those that are told not to count."""

    def said(routes: list[Route]) -> Surroundings:
        return survey(
            [thing for thing in things if isinstance(thing, Address)],
            routes,
            own=key(ME),
            ours={OURS},
            networks=(NETWORK,),
            store=store,
            names={ETH0: "eth0", DOCKER0: "docker0"},
        )

    routes = [thing for thing in things if isinstance(thing, Route)]
    few = [route for route in routes if is_part_of_surroundings(route, (NETWORK,), store)]
    assert said(few) == said(routes)
    return said(routes)


EMPTY = around()


def test_an_address_is_one_and_makes_its_prefix_connected():
    found = around(address("10.5.40.7/24"))
    assert found.addresses == {IPv4Address("10.5.40.7"): "10.5.40.7/24 of eth0"}
    assert found.connected == {IPv4Network("10.5.40.0/24"): "10.5.40.7/24 of eth0"}
    host = around(address("10.5.40.7/32"))
    assert (list(host.addresses), host.connected) == ([IPv4Address("10.5.40.7")], {})


def test_our_device_and_what_lies_in_our_subnet_do_not_count():
    assert around(address("10.5.1.0/32", OURS), address("10.5.1.1/24", DOCKER0)) == EMPTY
    kernel = {"protocol": RTPROT_KERNEL, "scope": 253}
    on_ours = Route(dst=NETWORK, oif=OURS, **kernel)
    bridge = Route(dst=IPv4Network("10.5.1.0/24"), oif=DOCKER0, **kernel)
    assert around(on_ours, bridge) == EMPTY


def test_what_has_nothing_to_do_with_the_network_does_not_count():
    elsewhere = Route(dst=DEFAULT, gateway=IPv4Address("192.0.2.254"), oif=ETH0)
    link_local = Address(index=ETH0, interface=IPv6Interface("fe80::1/64"))
    assert around(address("192.0.2.1/24"), elsewhere, link_local) == EMPTY


def test_a_wider_prefix_counts_although_its_address_lies_elsewhere():
    found = around(address("10.1.2.3/8"))
    assert list(found.connected) == [IPv4Network("10.0.0.0/8")]


def test_a_prefix_that_only_a_route_tells_of_counts():
    """That of the other end of a point-to-point address."""
    dst = IPv4Network("10.5.77.1/32")
    found = around(Route(dst=dst, oif=ETH0, protocol=RTPROT_KERNEL, scope=253))
    assert found.connected == {dst: "10.5.77.1/32 of eth0"}


def test_gateways_of_others_count_be_it_one_or_several():
    one, two = IPv4Address("10.5.200.1"), IPv4Address("10.5.200.2")
    found = around(
        Route(dst=DEFAULT, gateway=one, oif=ETH0),
        Route(dst=IPv4Network("172.16.0.0/12"), hops=(one, two)),
    )
    assert list(found.next_hops) == [one, two]
    assert "default" in found.next_hops[one]


def test_a_route_into_the_network_counts_if_it_is_not_ours_to_replace():
    """Peers' routes, ours or left over, have gateways too."""
    dst, via = IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2")
    for protocol, counts in ((RTPROT_BOOT, False), (4, False), (12, True), (186, True)):
        found = around(Route(dst=dst, gateway=via, oif=ETH0, protocol=protocol))
        assert list(found.routes) == [dst] * counts
        assert not found.next_hops
    assert "bird" in around(Route(dst=dst, gateway=via, oif=ETH0, protocol=12)).routes[dst]


def test_a_route_with_a_metric_stays_behind_ours_and_does_not_count():
    """As behind upstream's, which has none either."""
    dst, via = IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2")
    assert around(Route(dst=dst, gateway=via, oif=ETH0, protocol=186, metric=20)) == EMPTY


def test_routes_into_the_network_are_kept_only_where_the_store_is_in_it():
    static = Route(dst=IPv4Network("10.5.200.0/24"), gateway=IPv4Address("192.0.2.2"), oif=ETH0)
    assert not around(static).passed
    assert not is_part_of_surroundings(static, (NETWORK,), ()), "as a peer's"
    assert around(static, store=(IPv4Address("10.5.200.9"),)).passed == {static.dst}
    assert not around(static, store=(IPv4Address("10.5.201.9"),)).passed


VETH = 5
LINKS = [
    Link(index=ETH0, name="eth0"),
    Link(index=DOCKER0, name="docker0", kind="bridge"),
    Link(index=VETH, name="veth1", kind="veth"),
    Link(index=OURS, name="flannel.1", kind="vxlan"),
]
MINE = key(ME).v4


def in_the_way(
    *things: Address | Route, underlay: int = ETH0, links: Sequence[Link] = ()
) -> Obstacles:
    return obstacles(
        [thing for thing in things if isinstance(thing, Address)],
        [thing for thing in things if isinstance(thing, Route)],
        [*LINKS, *links],
        ours={OURS},
        underlay={underlay},
        networks=(NETWORK,),
        store=(),
    )


def test_a_lan_is_in_the_way_of_a_subnet_whether_it_is_new_or_had_already():
    found = in_the_way(address("10.5.1.7/24"))
    for conflict in (found.of_new(MINE), found.of_kept(key(ME))):
        assert conflict is not None
        assert conflict.kind is Kind.CONNECTED
        assert str(conflict).endswith("10.5.1.7/24 of eth0")


def test_devices_of_containers_are_in_no_ones_way_in_a_subnet_that_the_node_has():
    """But a new one must not cover a bridge of others."""
    pod = Route(dst=IPv4Network("10.5.1.9/32"), oif=VETH, protocol=RTPROT_KERNEL, scope=253)
    for thing in (
        address("10.5.1.1/24", DOCKER0),
        address("10.5.1.1/32", VETH),
        address("10.5.1.1/24", VETH),
        pod,
    ):
        found = in_the_way(thing)
        assert found.of_kept(key(ME)) is None
        assert found.of_new(MINE) is not None
    assert in_the_way(address("10.5.1.1/32", OURS)).of_new(MINE) is None


LO, ON_ETH0, ON_DOCKER0, ON_THAT, TUN, DUMMY = 1, 20, 21, 22, 23, 24
MORE = [
    Link(index=LO, name="lo", loopback=True),
    Link(index=ON_ETH0, name="mac0", kind="macvlan", parent=ETH0),
    Link(index=ON_DOCKER0, name="shim", kind="macvlan", parent=DOCKER0),
    Link(index=ON_THAT, name="shim.7", kind="vlan", parent=ON_DOCKER0),
    Link(index=TUN, name="tun0", kind="tun"),
    Link(index=DUMMY, name="dns", kind="dummy"),
]


@pytest.mark.parametrize(
    ("index", "counts"),
    [
        (LO, False),
        (DUMMY, False),
        (ON_DOCKER0, False),
        (ON_THAT, False),
        (ON_ETH0, True),
        (TUN, True),
    ],
)
def test_what_is_stacked_leads_where_the_lowest_one_does(index, counts):
    """A macvlan on docker0 is how a host reaches containers; one on the NIC has the LAN behind."""
    found = in_the_way(address("10.5.1.254/24", index), links=MORE)
    assert (found.of_kept(key(ME)) is not None) is counts
    assert found.of_new(MINE) is not None


@pytest.mark.parametrize("underlay", [DOCKER0, ON_DOCKER0])
def test_what_is_stacked_on_the_way_to_the_other_nodes_counts(underlay):
    found = in_the_way(address("10.5.1.254/24", ON_THAT), links=MORE, underlay=underlay)
    assert found.of_kept(key(ME)) is not None


def test_a_bridge_that_leads_to_the_other_nodes_is_none_of_containers():
    found = in_the_way(address("10.5.1.1/24", DOCKER0), underlay=DOCKER0)
    assert found.of_kept(key(ME)) is not None


def test_a_subnet_inside_a_wider_prefix_may_be_had():
    found = in_the_way(address("10.1.2.3/8"))
    assert found.of_new(MINE) is None
    assert found.of_kept(key(ME)) is None
