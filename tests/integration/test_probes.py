"""Probes of daemons in a lab: who answers is up, and each kind of failure has its own answer."""

from __future__ import annotations

import json
import os

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow]

UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM", "")
QUICK = ("--probe-interval=1",)
DUAL = {
    "Network": "10.0.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:10::/48",
    "Backend": {"Type": "vxlan"},
}


def said(lab: Lab, number: int = 1) -> dict:
    return json.loads(lab.node(number).exec(["pyflannel", "status", "--json"], check=False).stdout)


def peer(lab: Lab) -> dict:
    """The other node's record; one without a state while its lease is not known yet."""
    found = said(lab)["peers"]
    assert len(found) < 2
    return found[0] if found else {"state": "", "cause": "", "mtu": None}


def codes(lab: Lab) -> set[str]:
    return {one["code"] for one in said(lab)["problems"] if one["severity"] != "info"}


def becomes(lab: Lab, state: str, cause: str = "") -> dict:
    lab.wait(
        lambda: (peer(lab)["state"], peer(lab)["cause"]) == (state, cause),
        40,
        what=f"a peer that is {state} {cause}",
    )
    return peer(lab)


def test_a_broken_tunnel_a_dead_node_and_a_path_for_small_packets_are_told_apart():
    need_devices("vxlan")
    spec = LabSpec(nodes=2, name="probes", config=DUAL, daemon_args=QUICK)
    with Lab(spec) as lab:
        there = lab.node(2)
        known = becomes(lab, "up")
        assert known["rtt_s"] < 1
        assert known["underlay_heard"] is not None
        assert codes(lab) == set()

        # One family is enough.
        for tool in ("ip6tables", "iptables"):
            rule = ["INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP"]
            there.exec([tool, "-I", *rule])
            becomes(lab, "down", "tunnel")
            assert codes(lab) == {"PF171"}
            there.exec([tool, "-D", *rule])
            becomes(lab, "up")
            assert codes(lab) == set()

        there.unplug()
        becomes(lab, "down", "away")
        there.plug_in()
        becomes(lab, "up")

        large = ["INPUT", "-p", "udp", "--dport", "8472", "-m", "length", "--length", "1431:9000"]
        there.exec(["iptables", "-I", *large, "-j", "DROP"])
        becomes(lab, "small-only")
        assert codes(lab) == {"PF172"}
        # 1430 bytes less IP, UDP, VXLAN and Ethernet.
        lab.wait(lambda: 1372 <= (peer(lab)["mtu"] or 0) <= 1380, 40, what="the largest size")
        there.exec(["iptables", "-D", *large, "-j", "DROP"])
        becomes(lab, "up")


def test_where_ping_is_forbidden_nothing_is_wrong():
    need_devices("vxlan")
    with Lab(LabSpec(nodes=2, backend="vxlan", name="noping", start_daemons=False)) as lab:
        for node in lab.nodes:
            node.exec(["iptables", "-I", "INPUT", "-p", "icmp", "-j", "DROP"])
            node.start_daemon(list(QUICK))
        lab.wait_ready()
        lab.wait(lambda: said(lab)["probes"]["lost"] > 8, 40, what="probes that are lost")
        assert peer(lab)["state"] == "unknown"
        assert codes(lab) == set()


@pytest.mark.parametrize(
    ("backend", "args"),
    [
        ("udp", ("--datapath=python",)),
        ("udp", ("--datapath=native",)),
        ("udp", ("--datapath=ebpf",)),
        ("ipip", ()),
        ("host-gw", ()),
    ],
)
def test_a_stopped_peer_is_told_with_every_backend(backend, args):
    if backend == "ipip":
        need_devices("ipip")
    spec = LabSpec(nodes=2, backend=backend, name="probed", daemon_args=(*QUICK, *args))
    with Lab(spec) as lab:
        becomes(lab, "up")
        if backend == "udp":
            lab.node(2).stop_daemon()
            becomes(lab, "down", "tunnel")
            lab.node(2).start_daemon()
            becomes(lab, "up")
        lab.node(2).unplug()
        becomes(lab, "down", "away")


@pytest.mark.parametrize("backend", ["alloc", "extension"])
def test_where_packets_are_not_ours_nothing_is_probed(backend):
    with Lab(LabSpec(nodes=2, backend=backend, name="theirs", daemon_args=QUICK)) as lab:
        probes = said(lab)["probes"]
        assert (probes["probed"], probes["sent"], probes["interval_s"]) == ("nothing", 0, 0)


def test_with_an_interval_of_0_nothing_leaves():
    with Lab(LabSpec(nodes=2, name="noprobes", daemon_args=("--probe-interval=0",))) as lab:
        probes = said(lab)["probes"]
        assert (probes["probed"], probes["sent"], probes["interval_s"]) == ("tunnel", 0, 0)


@pytest.mark.skipif(
    not UPSTREAM, reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set"
)
@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_a_node_of_upstreams_answers_too(backend):
    need_devices(backend) if backend == "vxlan" else None
    spec = LabSpec(
        nodes=2, backend=backend, name="probed", daemon_args=QUICK, node_commands={2: UPSTREAM}
    )
    with Lab(spec) as lab:
        becomes(lab, "up")
        lab.node(2).exec(["iptables", "-I", "INPUT", "-p", "udp", "-j", "DROP"])
        becomes(lab, "down", "tunnel")
