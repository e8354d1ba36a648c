"""Nodes compared by what each of them says; silence proves nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pyflannel.api.metrics import render
from pyflannel.cli import cluster, healthport
from pyflannel.core.errors import DeviceUnavailable, UsageError
from pyflannel.diagnose import finding
from pyflannel.diagnose.cluster import Witness, cluster_findings, matrix, own_problems
from pyflannel.report.codec import encode
from pyflannel.report.model import (
    ConfigReport,
    LeaseReport,
    NodeReport,
    PeerReport,
    StoreReport,
)
from pyflannel.report.scraped import Scraped, scraped
from tests.support.schema import check_printed

CONFIG = {"Network": "10.5.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}


def subnet(number: int) -> str:
    return f"10.5.{number}.0/24"


def peer(number: int, state: str = "up") -> PeerReport:
    return PeerReport(subnet=subnet(number), public_ip=f"192.0.2.{number}", state=state)


def witness(number: int, others: dict[int, str], **changes: object) -> Witness:
    report = NodeReport(
        version="1.2",
        now=9.0,
        ready_since=1.0,
        phase="running",
        config=ConfigReport(effective=CONFIG),
        lease=LeaseReport(subnet=subnet(number), held=True),
        peers=[peer(each, state) for each, state in others.items()],
    )
    return Witness(name=f"n{number}", report=replace(report, **changes))


ONE = witness(1, {2: "up", 3: "up"})
TWO = witness(2, {1: "up", 3: "up"})
THREE = witness(3, {1: "up", 2: "up"})
OTHER_CONFIG = ConfigReport(effective={**CONFIG, "SubnetLen": 25})
AWAY = Witness(name="n3", reason="connection refused")


def test_nodes_that_agree_have_no_finding_and_one_that_is_silent_is_none():
    assert cluster_findings([ONE, TWO, THREE]) == []
    assert cluster_findings([ONE, TWO, AWAY]) == []


@pytest.mark.parametrize(
    ("code", "witnesses", "words"),
    [
        (
            finding.TWO_OWNERS,
            [ONE, TWO, Witness(name="n9", report=ONE.report)],
            "n1 and n9",
        ),
        (
            finding.CONFIGS_DIFFER,
            [ONE, TWO, witness(3, {1: "up", 2: "up"}, config=OTHER_CONFIG)],
            "25 on n3",
        ),
        (finding.ONE_WAY, [ONE, witness(2, {1: "down", 3: "up"}), AWAY], "n1 hears n2"),
        (
            finding.DEAF_NODE,
            [witness(1, {2: "up", 3: "down"}), witness(2, {1: "up", 3: "down"}), AWAY],
            "2 of 2 nodes do not hear 10.5.3.0/24",
        ),
        (
            finding.LEASE_UNKNOWN,
            [ONE, witness(2, {1: "up"}), THREE],
            "n2 does not know the lease of n3",
        ),
        (
            finding.VERSIONS_DIFFER,
            [ONE, TWO, witness(3, {1: "up", 2: "up"}, version="1.3")],
            "2 releases",
        ),
    ],
)
def test_each_disagreement_has_its_code(code, witnesses, words):
    (found,) = cluster_findings(witnesses)
    assert found.code == code
    assert words in found.text


def test_every_code_of_clusters_is_tried_above():
    (cases,) = (mark.args[1] for mark in test_each_disagreement_has_its_code.pytestmark)
    codes = {case[0] for case in cases}
    assert codes == {code for code in finding.CODES if code > "PF4"}


def test_a_config_of_a_health_port_is_compared_as_far_as_it_is_told():
    """It comes without the texts of its backend, and in another order."""
    backend = {"Type": "extension", "PreStartupCommand": "x", "Port": 7}
    one, two = (
        witness(n, {3 - n: "up"}, config=ConfigReport(effective={**CONFIG, "Backend": each}))
        for n, each in ((1, backend), (2, {"Port": 7, "Type": "extension"}))
    )
    assert [each.code for each in cluster_findings([one, two])] == [finding.CONFIGS_DIFFER]
    assert cluster_findings([one, replace(two, codes=())]) == []
    other = witness(2, {1: "up"}, config=ConfigReport(effective={**CONFIG, "Backend": {"Port": 8}}))
    (found,) = cluster_findings([one, replace(other, codes=())])
    assert found.code == finding.CONFIGS_DIFFER


def test_a_node_that_tells_of_some_of_its_peers_knows_the_others_perhaps():
    part = replace(witness(1, {2: "up"}), complete=False)
    assert cluster_findings([part, TWO, THREE]) == []
    assert matrix([part, TWO, THREE])[1] == ["n1", ".", "up", "unknown"]


def test_the_codes_of_a_health_port_are_what_a_node_reports_of_itself():
    assert own_problems([replace(ONE, codes=("PF171",))]) == {"n1": ["PF171"]}


def test_the_matrix_says_who_hears_whom():
    head, *rows = matrix([ONE, witness(2, {1: "down"}), AWAY])
    assert head == ["", "n1", "n2", subnet(3)]
    assert rows == [
        ["n1", ".", "up", "up"],
        ["n2", "down", ".", "no lease"],
        ["n3", "unknown", "unknown", "unknown"],
    ]


def test_what_nodes_report_of_themselves_is_told_by_its_codes():
    ill = witness(2, {1: "up"}, store=StoreReport(kind="etcd", connected=False))
    assert own_problems([ONE, ill, AWAY]) == {"n1": [], "n2": ["PF102"]}


class TestCollecting:
    def test_from_files(self, tmp_path):
        (tmp_path / "n1.json").write_text(json.dumps(encode(ONE.report)))
        (tmp_path / "n2.json").write_text("{}")
        (tmp_path / "n3.json").write_text("no JSON")
        one, two, three = cluster.collect("", str(tmp_path), "")
        assert (one.name, one.subnet) == ("n1", subnet(1))
        assert (two.report, three.report) == (None, None)
        assert "not what pyflannel status --json prints" in two.reason

    def test_by_a_command(self, monkeypatch, tmp_path):
        answers = tmp_path / "192.0.2.2"
        answers.write_text(json.dumps(encode(TWO.report)))
        monkeypatch.setattr(cluster.status, "ask", lambda *_: encode(ONE.report))
        # Stands for ssh: what it prints is the file of the host; the command is passed over.
        via = f"sh -c 'cat {tmp_path}/{{host}}'"
        here, two, three = cluster.collect("", "", via)
        assert (here.name, two.subnet) == ("this node", subnet(2))
        assert "192.0.2.3" in three.reason
        assert cluster_findings([here, two, three]) == []

    def test_over_health_ports(self, monkeypatch):
        """Where those are open; the others are unknown."""

        def ask(host: str, port: int) -> Scraped:
            assert port == 9471
            if host == "192.0.2.3":
                raise healthport.NoAnswer("its health port 9471 has no metrics")
            return scraped(render(TWO.report).decode())

        monkeypatch.setattr(cluster.status, "ask", lambda *_: encode(ONE.report))
        monkeypatch.setattr(healthport, "ask", ask)
        here, two, three = cluster.collect("", "", "", 9471)
        assert (two.name, two.subnet, two.codes) == ("192.0.2.2", subnet(2), ())
        assert (three.report, three.reason) == (None, "its health port 9471 has no metrics")
        assert cluster_findings([here, two, three]) == []
        assert matrix([here, two, three])[2] == ["192.0.2.2", "up", ".", "up"]

    def test_without_a_way_to_ask_others_are_unknown(self, monkeypatch):
        monkeypatch.setattr(cluster.status, "ask", lambda *_: encode(ONE.report))
        here, *others = cluster.collect("", "", "")
        assert here.report is not None
        assert all("--via" in each.reason for each in others)

    def test_without_a_daemon_here_no_peer_is_known(self, monkeypatch):
        def refuse(*_: object) -> None:
            raise DeviceUnavailable("connect to", "/run/x", 2)

        monkeypatch.setattr(cluster.status, "ask", refuse)
        (here,) = cluster.collect("", "", "")
        assert here.report is None

    @pytest.mark.parametrize(("directory", "via"), [("/nonexistent", ""), ("", "ssh node")])
    def test_words_that_make_no_sense_are_refused(self, directory, via):
        with pytest.raises(UsageError):
            cluster.collect("", directory, via)

    def test_the_exit_code_tells_whether_something_is_wrong(self, capsys):
        assert cluster.show([ONE, TWO, THREE], str, as_json=False) == 0
        assert "nothing is wrong between the 3 of 3" in capsys.readouterr().out
        assert cluster.show([ONE, witness(2, {1: "down"}), AWAY], str, as_json=True) == 1
        said = check_printed("doctor-cluster", capsys.readouterr().out)
        assert said["unknown"] == {"n3": "connection refused"}
        (one_way,) = said["findings"]
        assert one_way["code"] == "PF403"
        # It is the node that hears which lets nothing new in.
        assert "n1 hears n2, and" in one_way["text"]
        assert "doctor on n1, then on n2; a firewall on n1 that" in one_way["remedy"]
