"""A network config against one node, in values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from pyflannel.core import nodecheck
from pyflannel.core.fields import Problem
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.overlap import Judge, Obstacles, Surroundings
from tests.support.overlay import ME, NETWORK, config, key, lease

CONFIG = config({"Type": "host-gw"})
HERE = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"))


def judge(*prefixes: str, **more) -> Judge:
    connected = {IPv4Network(text): f"{text} of eth1" for text in prefixes}
    return Judge(Surroundings(connected=connected, **more))


def overlaps(around: Judge, *peers: Lease, route_per_peer: bool = True) -> list[Problem]:
    return list(nodecheck.overlaps(CONFIG, around, peers, route_per_peer=route_per_peer))


def own(*leases: Lease, lan: str = "198.51.100.0/24", conf=CONFIG) -> nodecheck.Own:
    around = judge(lan)
    obstacles = Obstacles(new=around, kept=around)
    return nodecheck.own(conf, leases, HERE, obstacles, previous=None, former=None)


def test_where_nothing_overlaps_nothing_is_said():
    assert overlaps(judge("198.51.100.0/24"), lease(2, "host-gw")) == []
    assert own().problems == ()
    assert own().key is None, "a new one is drawn at the start"
    assert own(lease(ME, "host-gw")).key == key(ME)


def test_each_peer_is_told_with_what_becomes_of_it_and_both_sides():
    found = overlaps(judge("10.5.7.0/24", "10.0.0.0/8"), lease(7, "host-gw"), lease(8, "host-gw"))
    said = [problem.message for problem in found]
    assert any("192.0.2.7 is left out: 10.5.7.0/24" in text for text in said)
    assert any("192.0.2.8 is carried all the same: 10.5.8.0/24" in text for text in said)
    assert any(text.startswith("10.5.0.0/16 lies inside") for text in said)
    assert all(problem.remedy and not problem.is_error for problem in found)


def test_many_peers_are_counted():
    peers = [lease(number, "host-gw") for number in range(2, 60)]
    found = overlaps(judge("10.0.0.0/8"), *peers)
    assert len(found) == 1 + nodecheck.MOST_NAMED + 1
    assert f"{len(peers) - nodecheck.MOST_NAMED} more peers" in found[-1].message


def test_a_backend_with_one_route_for_all_is_told_of_that():
    found = overlaps(judge(str(NETWORK)), lease(7, "udp"), route_per_peer=False)
    (problem,) = found
    assert problem.message.startswith("the overlay gets no route here: 10.5.0.0/16 equals or")


def test_the_own_lease_is_told_with_what_a_start_does():
    (problem,) = own(replace(lease(ME, "host-gw"), store_lease=7), lan="10.5.1.0/25").problems
    assert "this node's lease is not used: 10.5.1.0/24" in problem.message
    assert not problem.is_error


def test_that_nothing_is_left_is_an_error():
    only = replace(CONFIG, subnet_min=IPv4Address("10.5.1.0"), subnet_max=IPv4Address("10.5.1.0"))
    (problem,) = own(lan="10.5.1.0/24", conf=only).problems
    assert problem.is_error
    others = Lease(key=SubnetKey(IPv4Network("10.5.1.0/24")), attrs=LeaseAttrs(), store_lease=7)
    (problem,) = own(others, conf=only).problems
    assert "out of subnets" in problem.message
    assert not problem.is_error
