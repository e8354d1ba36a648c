"""The static network file: what is read, what is refused and how it is said."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import Family
from pyflannel.core.lease import LeaseAttrs
from pyflannel.core.staticnet import parse_static, render_static

CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


def node(number: int, **changes: object) -> dict[str, object]:
    plain = {
        "Name": f"n{number}",
        "Subnet": f"10.244.{number}.0/24",
        "PublicIP": f"192.0.2.{number}",
    }
    return {key: value for key, value in (plain | changes).items() if value is not None}


def parse(nodes: object, config: object = None):
    return parse_static(json.dumps({"Config": config or CONFIG, "Nodes": nodes}), KINDS)


def test_a_good_file_is_leases_that_never_end():
    network = parse([node(1), node(2)]).network
    first, second = network.nodes
    assert first.lease.key.v4 == IPv4Network("10.244.1.0/24")
    assert first.lease.attrs.public_ip == IPv4Address("192.0.2.1")
    assert first.lease.is_reservation
    assert (first.name, second.name) == ("n1", "n2")


def test_keys_match_in_any_case_as_in_etcd():
    entry = {"subnet": "10.244.1.0/24", "publicip": "192.0.2.1", "NAME": "n1"}
    (found,) = parse([entry]).network.nodes
    assert found.name == "n1"


def test_a_node_is_found_by_its_name_or_else_by_its_address():
    network = parse([node(1), node(2)]).network
    nowhere, second = LeaseAttrs(), LeaseAttrs(public_ip=IPv4Address("192.0.2.2"))
    assert network.find("n1", second).name == "n1"
    assert network.find("", second).name == "n2"
    assert network.find("", nowhere) is None
    assert network.find("n9", second) is None


class TestVtepMac:
    """vxlan needs no exchange: the MAC follows from the lease, on every node alike."""

    def test_each_node_has_its_own_and_all_compute_the_same(self):
        one, other = (parse([node(1), node(2)]).network for _ in range(2))
        macs = [json.loads(n.lease.attrs.backend_data)["VtepMAC"] for n in one.nodes]
        assert macs == [json.loads(n.lease.attrs.backend_data)["VtepMAC"] for n in other.nodes]
        assert len(set(macs)) == 2
        assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "local and unicast"

    def test_it_does_not_change_with_the_address(self):
        (moved,) = parse([node(1, PublicIP="192.0.2.99")]).network.nodes
        (here,) = parse([node(1)]).network.nodes
        assert moved.lease.attrs.backend_data == here.lease.attrs.backend_data

    def test_data_that_stands_in_the_file_is_taken_as_it_is(self):
        data = {"VNI": 1, "VtepMAC": "0a:00:00:00:00:01"}
        (found,) = parse([node(1, BackendData=data)]).network.nodes
        assert found.lease.attrs.backend_data == '{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}'

    def test_a_large_cluster_has_no_two_alike(self):
        vxlan = KINDS.get("vxlan")
        settings = parse([node(1)]).network.config.backend
        subnets = IPv4Network("10.0.0.0/8").subnets(new_prefix=22)
        macs = {vxlan.derive_data(settings, Family.V4, subnet) for subnet in subnets}
        assert len(macs) == 16_384


@pytest.mark.parametrize(("kind", "stored"), [("udp", ""), ("alloc", ""), ("host-gw", "host-gw")])
def test_the_type_in_the_lease_is_the_one_that_the_backend_publishes(kind, stored):
    config = CONFIG | {"Backend": {"Type": kind}}
    (found,) = parse([node(1)], config).network.nodes
    assert found.lease.attrs.backend_type == stored
    assert found.lease.attrs.backend_data is None


def test_dual_stack_needs_both_halves():
    config = CONFIG | {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
    both = node(1, IPv6Subnet="fd00:10:0:1::/64", PublicIPv6="2001:db8::1")
    (found,) = parse([both], config).network.nodes
    assert found.lease.key.v6 == IPv6Network("fd00:10:0:1::/64")
    assert {p.key for p in parse([node(1)], config).errors} == {
        "Nodes[0].IPv6Subnet",
        "Nodes[0].PublicIPv6",
    }


@pytest.mark.parametrize(
    ("nodes", "key", "words"),
    [
        ([node(1, Subnet=None)], "Nodes[0].Subnet", "is missing"),
        ([node(1, PublicIP=None)], "Nodes[0].PublicIP", "is missing"),
        ([node(1, Subnet="10.9.1.0/24")], "Nodes[0].Subnet", "not a part of 10.244.0.0/16"),
        ([node(1, Subnet="10.244.0.0/16")], "Nodes[0].Subnet", "not a part of"),
        ([node(1, Subnet="10.244.0.0/15")], "Nodes[0].Subnet", "not a part of"),
        ([node(1, Subnet="10.244.1.0")], "Nodes[0].Subnet", "an IPv4 network like"),
        ([node(1, PublicIP=7)], "Nodes[0].PublicIP", "an IPv4 address like"),
        ([node(1), node(2, Name="n1")], "Nodes[1]", "both have n1"),
        ([node(1), node(2, PublicIP="192.0.2.1")], "Nodes[1]", "both have 192.0.2.1"),
        ([node(1), node(2, Subnet="10.244.1.128/25")], "Nodes[1]", "overlap"),
        (["x"], "Nodes[0]", "is not an object"),
        ({"n1": node(1)}, "Nodes", "is not an array"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_nothing_is_used(nodes, key, words):
    parsed = parse(nodes)
    assert parsed.network is None
    (problem,) = parsed.errors
    assert problem.key == key
    assert words in str(problem)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "Config is missing"),
        ('{"Config": {"Network": "x"}, "Nodes": []}', "Network"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_text_that_is_no_such_file_is_refused_with_a_sentence(text, words):
    parsed = parse_static(text, KINDS)
    assert parsed.network is None
    assert words in str(parsed.errors[0])


def test_a_misspelt_key_is_told_and_the_rest_used():
    parsed = parse([node(1, Subnett="x")])
    assert parsed.network is not None
    (problem,) = parsed.problems
    assert (problem.key, problem.remedy) == ("Nodes[0].Subnett", "did you mean Subnet?")


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_no_content_makes_it_raise(text):
    assert parse_static(text, KINDS).network is None


def test_what_is_made_from_a_store_says_the_same():
    network = parse([node(1), node(2)]).network
    made = parse_static(
        render_static(network.config, [n.lease for n in network.nodes]), KINDS
    ).network
    assert [n.lease for n in made.nodes] == [n.lease for n in network.nodes]
    assert made.config == network.config
