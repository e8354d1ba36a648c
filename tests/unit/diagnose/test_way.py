"""The way of a packet over a node: every hop, and where it ends."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, ip_address

import pytest

from pyflannel.diagnose import iptables
from pyflannel.diagnose.facts import LinkFact, NodeFacts
from pyflannel.diagnose.way import Lookup, Outcome, WayFacts, ends, way

LINKS = {
    "eth0": LinkFact(),
    "flannel.1": LinkFact(),
    "docker0": LinkFact(addresses=(IPv4Interface("10.5.1.1/24"),)),
}
HERE, THERE = ip_address("10.5.1.2"), ip_address("10.5.7.2")
MAC = "02:00:00:00:00:07"
OUT = WayFacts(
    node=NodeFacts(links=LINKS),
    source=HERE,
    destination=THERE,
    source_here=True,
    destination_here=False,
    peer_public=ip_address("192.0.2.7"),
    own_public=ip_address("192.0.2.1"),
    bridge="docker0",
    tunnel="flannel.1",
    underlay="eth0",
    outer="udp",
    outer_port=8472,
    inner=Lookup(
        text="10.5.7.2 via 10.5.7.0 dev flannel.1", device="flannel.1", gateway="10.5.7.0"
    ),
    outer_route=Lookup(text="192.0.2.7 dev eth0", device="eth0"),
    neighbours={("flannel.1", "10.5.7.0"): MAC, ("eth0", "192.0.2.7"): "02:00:00:00:00:99"},
    fdb={MAC: "192.0.2.7"},
    forwards=True,
)
IN = replace(
    OUT,
    source=THERE,
    destination=HERE,
    source_here=False,
    destination_here=True,
    inner=Lookup(text="10.5.1.2 dev docker0", device="docker0"),
    neighbours={("docker0", "10.5.1.2"): "02:00:00:00:00:02"},
)


def rules(*lines: str, table: str = "filter") -> NodeFacts:
    chains = [f":{name} ACCEPT [0:0]" for name in ("INPUT", "FORWARD", "OUTPUT", "PREROUTING")]
    saved = "\n".join([f"*{table}", *chains, *lines, "COMMIT"])
    return NodeFacts(links=LINKS, tables=iptables.read(saved))


def places(facts: WayFacts) -> list[str]:
    return [hop.place for hop in way(facts)]


def test_outwards_every_object_that_decides_has_its_hop():
    assert places(OUT) == [
        *("docker0", "prerouting", "forwarding", "route", "forward", "postrouting"),
        *("flannel.1", "neighbour", "FDB", "route", "outer output", "outer postrouting", "eth0"),
    ]
    last = way(OUT)[-1]
    assert last.outcome is Outcome.LEAVES
    assert "192.0.2.7, udp port 8472" in last.text
    assert ends(way(OUT)) is None


def test_inwards_it_is_handed_to_the_pod():
    assert places(IN) == [
        *("eth0", "outer prerouting", "outer input", "flannel.1", "prerouting", "forwarding"),
        *("route", "forward", "postrouting", "docker0", "neighbour"),
    ]
    assert "02:00:00:00:00:02" in way(IN)[-1].text


@pytest.mark.parametrize(
    ("facts", "place", "words"),
    [
        (replace(OUT, bridge=""), "device", "no such device"),
        (replace(OUT, forwards=False), "forwarding", "does not forward"),
        (replace(OUT, peer_trouble="EPERM"), "route", "EPERM"),
        (replace(OUT, inner=Lookup(error="Network is unreachable")), "route", "no route"),
        (replace(IN, inner=Lookup(error="Invalid cross-device link")), "route", "rp_filter"),
        (replace(IN, inner=Lookup(error="Invalid argument")), "route", "rp_filter"),
        (replace(OUT, neighbours={}), "neighbour", "no entry with a MAC"),
        (replace(OUT, fdb={}), "FDB", "no entry"),
        (
            replace(OUT, neighbours={("flannel.1", "10.5.7.0"): MAC, ("eth0", "192.0.2.7"): ""}),
            "neighbour",
            "192.0.2.7 does not answer on eth0",
        ),
        (
            replace(OUT, node=NodeFacts(links={**LINKS, "flannel.1": LinkFact(up=False)})),
            "flannel.1",
            "down",
        ),
        (replace(OUT, node=rules("-A FORWARD -d 10.5.7.0/24 -j DROP")), "forward", "dropped"),
        (
            replace(OUT, node=rules("-A OUTPUT -p udp --dport 8472 -j DROP")),
            "outer output",
            "dropped",
        ),
        (replace(IN, node=rules("-A INPUT -p udp --dport 8472 -j DROP")), "outer input", "dropped"),
        (
            replace(IN, node=rules("-A PREROUTING -d 10.5.1.2/32 -j DROP", table="raw")),
            "prerouting",
            "",
        ),
        (replace(OUT, source_here=False), "this node", "neither"),
    ],
)
def test_it_ends_where_an_object_drops_it_or_is_missing(facts, place, words):
    last = way(facts)[-1]
    assert last.outcome is Outcome.ENDS
    assert (last.place, words in last.text) == (place, True)
    assert ends(way(facts)) == last


def test_what_may_end_it_does_not_end_the_way():
    hops = way(replace(OUT, node=rules("-A FORWARD -m limit --limit 5/sec -j DROP")))
    assert [hop.place for hop in hops if hop.outcome is Outcome.MAY_END] == ["forward"]
    assert hops[-1].outcome is Outcome.LEAVES
    stale = way(replace(OUT, fdb={MAC: "192.0.2.66"}))
    assert "the peer's lease says 192.0.2.7" in next(h.text for h in stale if h.place == "FDB")
    vpn = way(replace(OUT, inner=Lookup(text="10.5.7.2 dev tun0", device="tun0")))
    assert "not the overlay's device" in next(h.text for h in vpn if h.outcome is Outcome.MAY_END)


def test_backend_udp_wraps_by_its_leases_and_ipip_by_its_route():
    assert "data path ebpf" in {hop.decides for hop in way(replace(OUT, datapath="ebpf"))}
    ipip = replace(OUT, outer="ipip", outer_port=None)
    assert "wrapped for 10.5.7.0" in {hop.text for hop in way(ipip)}


def test_two_pods_of_one_node_meet_the_bridge_alone():
    assert places(replace(OUT, destination_here=True)) == ["docker0", "docker0"]
