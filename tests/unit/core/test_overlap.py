"""Which subnets get in the way of what this node stands on."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.overlap import Conflict, Judge, Kind, Surroundings, overlap

NETWORK = IPv4Network("10.0.0.0/8")


def net(text: str) -> IPv4Network:
    return IPv4Network(text)


def judge(**around) -> Judge:
    return Judge(Surroundings(**around))


HOST = judge(
    own=(net("10.5.1.0/24"),),
    connected={
        net("10.99.0.0/16"): "10.99.0.1/16 of eth0",
        net("10.0.0.0/9"): "10.1.2.3/9 of eth1",
    },
    addresses={
        IPv4Address("10.99.0.1"): "10.99.0.1/16 of eth0",
        IPv4Address("10.1.2.3"): "10.1.2.3/9 of eth1",
    },
    next_hops={IPv4Address("10.99.255.254"): "10.99.255.254 of the route to everywhere (default)"},
    store=frozenset({IPv4Address("10.200.0.5")}),
    routes={net("10.6.0.0/24"): "10.6.0.0/24 via 10.99.0.7 proto bird"},
)


@pytest.mark.parametrize(
    ("subnet", "kind", "other"),
    [
        ("10.99.0.0/16", Kind.CONNECTED, "10.99.0.1/16 of eth0"),
        ("10.96.0.0/12", Kind.CONNECTED, "10.99.0.1/16 of eth0"),
        ("10.99.0.0/24", Kind.ADDRESS, "10.99.0.1/16 of eth0"),
        ("10.99.255.0/24", Kind.NEXT_HOP, "10.99.255.254 of the route to everywhere (default)"),
        ("10.200.0.0/24", Kind.STORE, "10.200.0.5"),
        ("10.5.1.128/25", Kind.OWN_SUBNET, "10.5.1.0/24"),
        ("10.5.0.0/16", Kind.OWN_SUBNET, "10.5.1.0/24"),
        ("10.5.1.0/24", Kind.OWN_SUBNET, "10.5.1.0/24"),
        ("10.6.0.0/24", Kind.ROUTE, "10.6.0.0/24 via 10.99.0.7 proto bird"),
        ("10.1.2.0/24", Kind.ADDRESS, "10.1.2.3/9 of eth1"),
    ],
)
def test_a_subnet_that_would_take_something_away_is_forbidden(subnet, kind, other):
    conflict = HOST.subnet(net(subnet))
    assert conflict == Conflict(kind, net(subnet), other)
    assert conflict.forbids
    assert subnet in str(conflict)
    assert other in str(conflict)


@pytest.mark.parametrize("subnet", ["10.1.3.0/24", "10.99.7.0/24"])
def test_a_subnet_inside_a_wider_connected_prefix_is_a_warning(subnet):
    conflict = HOST.subnet(net(subnet))
    assert conflict is not None
    assert conflict.kind is Kind.INSIDE
    assert not conflict.forbids


def test_of_two_wider_prefixes_the_narrower_one_is_named():
    assert str(HOST.subnet(net("10.99.7.0/24"))).endswith("10.99.0.1/16 of eth0")


@pytest.mark.parametrize("subnet", ["10.200.1.0/24", "10.6.1.0/24", "192.168.0.0/24"])
def test_what_is_in_no_ones_way_is_fine(subnet):
    if subnet == "10.6.1.0/24":
        assert HOST.subnet(net(subnet)).kind is Kind.INSIDE
    else:
        assert HOST.subnet(net(subnet)) is None


def test_the_families_do_not_meet():
    """::a05:0 is 10.5.0.0 as a number."""
    six = IPv6Network("::a63:0/112")
    assert HOST.subnet(six) is None
    both = judge(connected={six: "::a63:1/112 of eth0"}, addresses={IPv6Address("::a63:1"): "x"})
    assert both.subnet(net("10.99.0.0/16")) is None
    assert both.subnet(six).kind is Kind.CONNECTED


def test_all_that_a_network_overlaps_is_named_once():
    """The address of a connected prefix is no news beside the prefix."""
    found = HOST.network(NETWORK)
    assert [c.kind for c in found] == [Kind.CONNECTED, Kind.CONNECTED, Kind.STORE, Kind.NEXT_HOP]
    (inside,) = HOST.network(net("10.7.0.0/16"))
    assert inside.kind is Kind.INSIDE
    assert judge().network(NETWORK) == []


def test_the_route_of_a_network_gives_way_to_one_for_the_same_prefix():
    docker = judge(connected={net("172.17.0.0/16"): "172.17.0.1/16 of docker0"})
    assert docker.network_route(net("172.17.0.0/16")).kind is Kind.CONNECTED
    # More specific and less specific routes go on leading where they led.
    assert docker.network_route(net("172.16.0.0/12")) is None
    assert docker.network_route(net("172.17.4.0/22")) is None
    assert HOST.network_route(net("10.6.0.0/24")).kind is Kind.ROUTE


def test_the_route_of_a_network_gives_way_to_the_store_unless_that_has_a_longer_route():
    store = frozenset({IPv4Address("10.200.0.5")})
    assert judge(store=store).network_route(NETWORK).kind is Kind.STORE
    for known in (
        {"connected": {net("10.200.0.0/16"): "eth1"}},
        {"passed": frozenset({net("10.200.0.5/32")})},
        {"addresses": {IPv4Address("10.200.0.5"): "eth1"}},
        {"own": (net("10.200.0.0/24"),)},
    ):
        assert judge(store=store, **known).network_route(NETWORK) is None
    shorter = judge(store=store, connected={net("0.0.0.0/1"): "eth1"})
    assert shorter.network_route(NETWORK).kind is Kind.STORE


NETS = st.builds(
    lambda number, length: IPv4Network((number, length), strict=False),
    st.integers(0, 255),
    st.integers(20, 32),
)
"""Small enough to meet often."""
ADDRESSES = st.builds(IPv4Address, st.integers(0, 255))


@given(
    subnet=NETS,
    own=NETS,
    connected=st.sets(NETS, max_size=4),
    addresses=st.sets(ADDRESSES, max_size=3),
    hops=st.sets(ADDRESSES, max_size=3),
    store=st.sets(ADDRESSES, max_size=2),
    routes=st.sets(NETS, max_size=3),
)
def test_the_verdict_is_that_of_the_plain_rule(
    subnet, own, connected, addresses, hops, store, routes
):
    """Looked up here by going through everything."""
    conflict = Judge(
        Surroundings(
            own=(own,),
            connected=dict.fromkeys(connected, "prefix"),
            addresses=dict.fromkeys(addresses, "address"),
            next_hops=dict.fromkeys(hops, "hop"),
            store=frozenset(store),
            routes=dict.fromkeys(routes, "route"),
        )
    ).subnet(subnet)
    forbidden = (
        subnet.overlaps(own)
        or any(prefix.subnet_of(subnet) for prefix in connected)
        or any(address in subnet for address in addresses | hops | store)
        or subnet in routes
    )
    inside = any(subnet.subnet_of(prefix) for prefix in connected)
    assert (conflict is not None and conflict.forbids) is forbidden
    assert (conflict is not None) is (forbidden or inside)


@given(a=NETS, b=NETS)
def test_overlap_is_that_of_ipaddress(a, b):
    assert overlap(a, b) is a.overlaps(b)
    assert not overlap(a, IPv6Network("::/0"))


@pytest.mark.parametrize(
    ("subnet", "kind"),
    [
        ("10.99.0.0/16", Kind.CONNECTED),
        ("10.96.0.0/12", Kind.CONNECTED),
        ("10.99.0.0/24", Kind.ADDRESS),
        ("10.200.0.0/24", Kind.STORE),
        # What a peer may not have, and this node may: the container's bridge has the better route.
        ("10.99.255.0/24", None),
        ("10.6.0.0/24", None),
        ("10.99.7.0/24", None),
    ],
)
def test_what_this_nodes_own_subnet_must_not_take_away(subnet, kind):
    conflict = HOST.own(net(subnet))
    assert (conflict.kind if conflict is not None else None) is kind
