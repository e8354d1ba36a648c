"""The JSON of a report: its shape is written down, and it is read back as it was."""

from __future__ import annotations

import json
import typing
from dataclasses import replace
from pathlib import Path

import pytest

from pyflannel.report import codec
from pyflannel.report.model import (
    ConfigReport,
    DatapathReport,
    DeviceReport,
    Failure,
    FilesReport,
    LeaseReport,
    NetworkReport,
    NodeReport,
    PeerReport,
    RulesReport,
    StoreReport,
    UnderlayReport,
)
from pyflannel.report.problems import CODES
from tests.support.schema import check

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"

FULL = NodeReport(
    version="1.2",
    now=1_700_000_100.0,
    started=1_700_000_000.0,
    phase="running with subnet 10.5.1.0/24",
    ready_since=1_700_000_001.0,
    config=ConfigReport(effective={"Network": "10.5.0.0/16"}, pending="it was deleted"),
    store=StoreReport(kind="etcd", where="http://192.0.2.1:2379", connected=False, revision=7),
    underlay=UnderlayReport(interface="eth0", index=2, mtu=1500, address="192.0.2.9"),
    lease=LeaseReport(subnet="10.5.1.0/24", expires=1_700_080_000.0, held=True),
    network=NetworkReport(
        backend="udp",
        devices={"flannel0": DeviceReport(index=3, mtu=1472, up=False)},
        failing={"peer 10.5.2.0/24": "EPERM"},
        failing_since={"peer 10.5.2.0/24": 1_700_000_050.0},
        datapath=DatapathReport(name="python", counters={"tun_rx": 0}),
    ),
    rules=RulesReport(repairs=0),
    files=FilesReport(states={"/run/flannel/subnet.env": "written"}, restored=2),
    failing={"status socket": Failure(text="taken", since=1_700_000_060.0)},
    peers=(PeerReport(subnet="10.5.2.0/24", drops={"unknown_peer": 3}),),
)


@pytest.mark.parametrize("report", [NodeReport(), FULL], ids=["empty", "full"])
def test_what_is_encoded_is_read_back_as_it_was(report):
    assert codec.decode(json.loads(json.dumps(codec.encode(report)))) == report


def test_of_very_many_that_fail_the_first_are_there_and_the_number():
    many = {f"peer {number}": "EPERM" for number in range(1_000)}
    network = NetworkReport(
        failing=many,
        failing_since=dict.fromkeys(many, 1.0),
        failing_count=1_000,
        ignored=many,
        ignored_count=1_000,
    )
    shown = codec.encode(NodeReport(network=network))["network"]
    assert (shown["failing_count"], shown["ignored_count"]) == (1_000, 1_000)
    for name in ("failing", "failing_since", "ignored"):
        assert list(shown[name]) == list(many)[:100]


def test_what_is_false_or_zero_is_there():
    shown = codec.encode(FULL)
    assert shown["network"]["devices"]["flannel0"]["up"] is False
    assert shown["store"]["connected"] is False
    assert shown["network"]["datapath"]["counters"] == {"tun_rx": 0}
    assert shown["rules"]["repairs"] == 0


def test_a_report_of_another_age_is_read_as_far_as_both_know_it():
    shown = codec.encode(FULL) | {"of_the_future": {"x": 1}}
    del shown["rules"], shown["peers"]
    shown["network"]["of_the_future"] = 1
    read = codec.decode(shown)
    assert read.rules is None
    assert read.peers == ()
    assert read.network == FULL.network


def test_a_value_of_an_impossible_type_is_refused_and_not_believed():
    with pytest.raises(ValueError, match="not an object"):
        codec.decode({"lease": "10.5.1.0/24"})


def test_the_shape_that_scripts_know_is_kept():
    shown = codec.encode(FULL)
    assert shown["schema"] == 1
    assert shown["etcd"]["endpoints"] == "http://192.0.2.1:2379"
    assert shown["config"] == {"Network": "10.5.0.0/16"}
    assert shown["files"] == {"/run/flannel/subnet.env": "written"}
    assert shown["files_restored"] == 2
    assert {"code", "severity", "subject", "since", "text", "remedy"} == set(shown["problems"][0])


def test_the_published_schema_is_the_one_in_force():
    """Written by `python -m pyflannel.report.codec`; a change of it must be one that only grows."""
    published = json.loads((REFERENCE / "status.schema.json").read_text())
    assert published == codec.schema()


@pytest.mark.parametrize("report", [NodeReport(), FULL], ids=["empty", "full"])
def test_every_report_has_the_shape_of_the_schema(report):
    check(codec.schema(), json.loads(json.dumps(codec.encode(report))), exactly=True)


def test_every_code_is_in_the_reference():
    table = (REFERENCE / "problems.md").read_text()
    for code, meaning in CODES.items():
        assert f"| {code} | {meaning} |" in table


def test_the_types_of_a_record_are_worked_out_once_and_not_for_each_peer(monkeypatch):
    asked = []
    real = typing.get_type_hints
    monkeypatch.setattr(typing, "get_type_hints", lambda kind: asked.append(kind) or real(kind))
    shown = json.loads(json.dumps(codec.encode(replace(FULL, peers=FULL.peers * 50))))
    codec.decode(shown)
    codec.decode(shown)
    assert asked.count(PeerReport) <= 1
