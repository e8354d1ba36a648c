"""From a report to what the page shows."""

from __future__ import annotations

import dataclasses
import json

from pyflannel.report.model import NodeReport, StoreReport
from pyflannel.web.history import UNKNOWN, Rates
from pyflannel.web.view import MOST_PEERS, MOST_PROBLEMS, view
from tests.support.clusters import NOW, peer, report


def unknown(_name):
    return UNKNOWN


def test_a_node_that_is_well():
    shown = view(report(3), unknown)
    assert (shown["state"], shown["problems"], shown["more_peers"]) == ("fine", [], 0)
    assert shown["own"] == {
        "subnet": "10.5.1.0/24",
        "public_ip": "192.0.2.1",
        "backend": "udp",
        "interface": "eth0",
        "expires": NOW + 80_000,
        "reservation": False,
        "held": True,
    }
    assert shown["store"] == "etcd answers"
    assert [each["id"] for each in shown["peers"]] == ["10.5.2.0/24", "10.5.3.0/24"]
    assert shown["counts"] == {"up": 2}


def test_a_peers_numbers_are_the_reports_and_what_was_not_measured_is_none():
    peers = (peer(2), peer(3, rtt_s=None, drops=None))
    rates = {"10.5.2.0/24": Rates(7.0, 8.0), "10.5.3.0/24": UNKNOWN}
    first, second = view(dataclasses.replace(report(), peers=peers), rates.__getitem__)["peers"]
    assert (first["rate_in"], first["rate_out"], first["rtt_s"]) == (7.0, 8.0, 0.00042)
    assert (first["state"], first["troubled"], first["way"]) == ("up", False, "udp/native")
    assert (second["rate_in"], second["rtt_s"], second["drops"]) == (None, None, None)


def test_problems_come_with_their_remedies():
    shown = view(report(11, ill=True), unknown)
    assert shown["state"] == "problems"
    assert shown["problems"][0]["code"] == "PF102"
    assert all(each["text"] and each["severity"] for each in shown["problems"])
    assert any(each["remedy"] for each in shown["problems"])


def test_a_node_that_waits_says_what_for():
    shown = view(NodeReport(waiting_for="etcd does not answer", now=NOW), unknown)
    assert (shown["state"], shown["phase"]) == ("not ready", "etcd does not answer")
    assert shown["problems"][0]["code"] == "PF101"
    assert shown["own"]["subnet"] == ""


def test_of_very_many_peers_those_with_trouble_are_shown_and_all_are_counted():
    many = [
        peer(number % 250, subnet=f"10.{number // 250}.{number % 250}.0/24")
        for number in range(MOST_PEERS + 100)
    ]
    many[-1] = dataclasses.replace(many[-1], state="down")
    shown = view(dataclasses.replace(report(), peers=tuple(many)), unknown)
    assert len(shown["peers"]) == MOST_PEERS
    assert shown["more_peers"] == 100
    assert shown["peers"][-1]["state"] == "down"
    assert shown["counts"] == {"up": MOST_PEERS + 99, "down": 1}


def test_problems_are_bounded_and_counted():
    store = StoreReport(
        rejected={f"10.5.{n}.0/24": "no JSON" for n in range(90)}, rejected_count=90
    )
    shown = view(dataclasses.replace(report(), store=store), unknown)
    assert len(shown["problems"]) == MOST_PROBLEMS
    assert shown["more_problems"] == 40


def test_texts_of_others_are_escaped_and_cut():
    evil = "\x1b[2J\u202e<script>" + "x" * 10_000
    shown = view(
        dataclasses.replace(report(), peers=(peer(2, host=evil, reason=evil, drops={evil: 1}),)),
        unknown,
    )
    text = json.dumps(shown, ensure_ascii=False)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text) < 20_000
