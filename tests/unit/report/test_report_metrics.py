"""Metrics of a report: what is known has a series, what was not measured has none."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from pyflannel.report.metrics import MOST_PEERS, STATES, families
from pyflannel.report.model import (
    ConfigReport,
    FilesReport,
    LeaseReport,
    NetworkReport,
    NodeReport,
    PeerReport,
    ProbeReport,
    RulesReport,
    StoreReport,
)

NOW = 1_700_000_000.0
KNOWN = PeerReport(subnet="10.5.7.0/24", public_ip="192.0.2.7")
MEASURED = replace(
    KNOWN,
    state="up",
    rtt_s=0.25,
    loss=0.5,
    last_heard=NOW - 4,
    mtu=1450,
    bytes_in=10,
    bytes_out=0,
    packets_in=3,
    packets_out=0,
    drops={"no route": 2},
)
FULL = NodeReport(
    version="1.2",
    now=NOW,
    ready_since=NOW - 9,
    store=StoreReport(kind="etcd", connected=False, peers=2),
    config=ConfigReport(effective={"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}),
    lease=LeaseReport(subnet="10.5.1.0/24", expires=NOW + 60, held=True),
    network=NetworkReport(repaired={"route": 3}),
    rules=RulesReport(repairs=4),
    files=FilesReport(restored=5),
    probes=ProbeReport(interval_s=10.0, answered=7, lost=2, void=1),
    peers=[KNOWN, replace(MEASURED, subnet="10.5.8.0/24", public_ip="192.0.2.8")],
)


def values(report: NodeReport, **changes) -> dict[str, dict[tuple[str, ...], float]]:
    return {
        family.name: {tuple(labels.values()): value for labels, value in family.samples}
        for family in families(replace(report, **changes))
    }


def test_what_a_node_says_of_itself():
    shown = values(FULL)
    assert shown["pyflannel_build_info"] == {("1.2",): 1}
    assert shown["pyflannel_node_info"] == {("10.5.1.0/24", "", "", "", ""): 1}
    assert shown["pyflannel_config_info"] == {
        ('"10.5.0.0/16"', "", "", "", "", '{"Type":"udp"}'): 1
    }
    assert shown["pyflannel_problems_by_code"] == {("PF102", "warning"): 1}
    assert shown["pyflannel_ready"] == {(): 1}
    assert shown["pyflannel_leases"] == {(): 3}
    assert shown["pyflannel_store_connected"] == {(): 0}
    assert shown["pyflannel_lease_expiry_timestamp_seconds"] == {(): NOW + 60}
    assert shown["pyflannel_probe_interval_seconds"] == {(): 10}
    assert shown["pyflannel_probes_total"] == {("answered",): 7, ("lost",): 2, ("void",): 1}
    assert shown["pyflannel_heals_total"] == {("files",): 5, ("route",): 3, ("rules",): 4}
    assert shown["pyflannel_problems"] == {("info",): 0, ("warning",): 1, ("error",): 0}


def test_every_state_of_peers_is_there_and_a_new_one_too():
    shown = values(FULL, peers=[KNOWN, replace(KNOWN, state="leaving")])["pyflannel_peers"]
    assert shown == {(state,): 0 for state in STATES} | {("unknown",): 1, ("leaving",): 1}


def test_a_peer_has_series_of_what_was_measured_and_of_nothing_else():
    shown, who = values(FULL), ("10.5.8.0/24", "192.0.2.8")
    assert shown["pyflannel_peer_up"] == {who: 1}
    assert shown["pyflannel_peer_rtt_seconds"] == {who: 0.25}
    assert shown["pyflannel_peer_loss_ratio"] == {who: 0.5}
    assert shown["pyflannel_peer_last_heard_timestamp_seconds"] == {who: NOW - 4}
    assert shown["pyflannel_peer_mtu_bytes"] == {who: 1450}
    assert shown["pyflannel_peer_bytes_total"] == {(*who, "in"): 10, (*who, "out"): 0}
    assert shown["pyflannel_peer_packets_total"] == {(*who, "in"): 3, (*who, "out"): 0}
    assert shown["pyflannel_peer_drops_total"] == {(*who, "no route"): 2}
    alone = {name for name in values(FULL, peers=[KNOWN]) if name.startswith("pyflannel_peer_")}
    assert alone == {"pyflannel_peer_info"}


def test_a_node_that_has_just_started_has_no_series_of_what_it_does_not_know():
    assert set(values(NodeReport())) == {
        *("pyflannel_build_info", "pyflannel_ready", "pyflannel_heals_total"),
        *("pyflannel_problems", "pyflannel_peers"),
    }


def test_a_reservation_has_no_end():
    lease = replace(FULL.lease, reservation=True)
    assert "pyflannel_lease_expiry_timestamp_seconds" not in values(FULL, lease=lease)


def test_single_peers_are_bounded_and_trouble_comes_first():
    many = [replace(MEASURED, subnet=f"10.{n // 256}.{n % 256}.0/24") for n in range(1000)]
    many[999] = replace(many[999], state="down")
    shown = values(FULL, peers=many)
    assert len(shown["pyflannel_peer_up"]) == MOST_PEERS
    assert shown["pyflannel_peer_up"]["10.3.231.0/24", "192.0.2.7"] == 0
    assert shown["pyflannel_peers"]["up",] == 999


def test_every_metric_is_in_the_reference():
    page = (Path(__file__).parents[3] / "docs/reference/metrics.md").read_text()
    listed = dict(re.findall(r"^\| (pyflannel_\w+) \| ([\w, ]*?) ?\|", page, re.MULTILINE))
    found = {one.name: ", ".join(one.samples[0][0]) for one in families(FULL)}
    assert listed == found
