"""`pyflannel doctor`: what it prints of findings, and its exit codes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pyflannel.cli import doctor, status
from pyflannel.core.errors import NotPermitted, UsageError
from pyflannel.diagnose import datapaths
from pyflannel.diagnose.datapaths import DatapathFacts, PathFacts
from pyflannel.diagnose.finding import CODES, Finding
from pyflannel.docker import checks, runchecks, unitchecks
from pyflannel.docker.model import DockerFacts
from pyflannel.report import problems
from pyflannel.report.model import Severity
from tests.support.hostile import HOSTILE, is_fit
from tests.support.schema import check_printed

FOUND = Finding(
    code="PF204",
    severity=Severity.ERROR,
    subject="firewall",
    text="a firewall rule drops ping",
    evidence=("nft inet t f: drop",),
    consequence="nothing passes",
    remedy="delete it",
)
MAY = Finding(code="PF204", severity=Severity.INFO, subject="firewall", text="may drop")


def test_a_fault_has_evidence_consequence_and_cure(capsys):
    assert doctor.show_node([FOUND], as_json=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ERROR PF204 firewall",
        "  a firewall rule drops ping",
        "  seen: nft inet t f: drop",
        "  so: nothing passes",
        "  do: delete it",
        "1 problem",
    ]


def test_what_only_may_be_is_no_fault(capsys):
    assert doctor.show_node([MAY], as_json=False) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is wrong"


def test_json_has_schema_and_findings(capsys):
    assert doctor.show_node([FOUND, MAY], as_json=True) == 1
    shown = check_printed("doctor", capsys.readouterr().out)
    assert (shown["schema"], shown["subject"]) == (1, "node")
    assert [one["severity"] for one in shown["findings"]] == ["error", "info"]
    assert set(shown["findings"][0]) == {
        *("code", "severity", "subject", "text", "evidence", "consequence", "remedy"),
    }


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_reaches_the_terminal_raw(text):
    one = Finding(
        code="PF204",
        severity=Severity.INFO,
        subject=text,
        text=text,
        evidence=(text,),
        consequence=text,
        remedy=text,
    )
    assert is_fit(doctor.render_finding(one))


def test_who_may_not_ask_the_daemon_cannot_look(monkeypatch, capsys):
    def ask(path, subnet_file=""):
        raise NotPermitted("connect to", path, 13, "only root may ask")

    monkeypatch.setattr(status, "ask", ask)
    assert doctor.main([]) == 3
    assert "only root may ask" in capsys.readouterr().err


def test_another_tree_is_for_docker_alone(tmp_path):
    with pytest.raises(UsageError, match="doctor docker --root"):
        doctor.main(["--root", str(tmp_path)])


DATAPATHS = DatapathFacts(
    chosen="native",
    why="not ebpf: this kernel has no BPF",
    paths=(
        PathFacts(name="ebpf", obstacle="this kernel has no BPF", can={"tcx": "off (EINVAL)"}),
        PathFacts(name="native", can={"gso": "on", "join_udp": "off (forced)"}),
        PathFacts(name="python"),
    ),
)


def test_data_paths_are_told_with_what_they_can(capsys, monkeypatch):
    monkeypatch.setattr(datapaths, "look", lambda: DATAPATHS)
    assert doctor.main(["datapath"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "auto: native",
        "  not ebpf: this kernel has no BPF",
        "ebpf: no",
        "  this kernel has no BPF",
        "  tcx  off (EINVAL)",
        "native: yes",
        "  gso       on",
        "  join_udp  off (forced)",
        "python: yes",
    ]


def test_data_paths_as_json(capsys, monkeypatch):
    monkeypatch.setattr(datapaths, "look", lambda: DATAPATHS)
    assert doctor.main(["datapath", "--json"]) == 0
    shown = check_printed("doctor-datapath", capsys.readouterr().out)
    assert set(shown) == {"schema", "subject", "chosen", "why", "paths"}
    assert (shown["schema"], shown["subject"], shown["chosen"]) == (1, "datapath", "native")
    assert [path["name"] for path in shown["paths"]] == ["ebpf", "native", "python"]
    assert shown["paths"][0] == {
        "name": "ebpf",
        "obstacle": "this kernel has no BPF",
        "can": {"tcx": "off (EINVAL)"},
    }


@pytest.mark.parametrize("chosen", ["python", ""])
def test_a_slow_data_path_is_a_fault(capsys, monkeypatch, chosen):
    monkeypatch.setattr(datapaths, "look", lambda: replace(DATAPATHS, chosen=chosen))
    assert doctor.main(["datapath"]) == 1
    assert capsys.readouterr().out.startswith(f"auto: {chosen or 'none'}\n")


def test_without_rights_the_data_paths_cannot_be_tried(capsys, monkeypatch):
    def look():
        raise NotPermitted("unshare", "new network namespace", 1)

    monkeypatch.setattr(datapaths, "look", look)
    assert doctor.main(["datapath"]) == 3
    assert "unshare new network namespace: EPERM" in capsys.readouterr().err


def test_subjects_are_parts_of_the_node_and_a_peer_is_told_by_its_name():
    def one(code: str, subject: str = "x", text: str = "") -> Finding:
        return Finding(code=code, severity=Severity.ERROR, subject=subject, text=text)

    found = [
        *(one("PF102"), one("PF111"), one("PF205"), one("PF299")),
        *(one("PF171", "peer 10.5.7.0/24"), one("PF171", "peer 10.5.8.0/24")),
        one("PF218", "peer 10.5.7.0/24", "to the node 192.0.2.7"),
    ]
    codes = [each.code for each in doctor.about(found, "store")]
    assert codes == ["PF102", "PF111", "PF299"]
    assert [each.code for each in doctor.about(found, "peers")] == [
        *("PF299", "PF171", "PF171", "PF218"),
    ]
    assert doctor.about(found, "node") == found
    of_peer = [each.code for each in doctor.about(found, "node", "10.5.7.0/24")]
    assert of_peer == ["PF299", "PF171", "PF218"]
    assert [each.code for each in doctor.about(found, "peers", "192.0.2.7")] == ["PF299", "PF218"]
    assert doctor.PART_OF["peers"] <= {*problems.CODES, *CODES}


class TestDockerInTheWholeNode:
    """Where dockerd runs, what is wrong with it is among the node's findings, with a code."""

    FACTS = DockerFacts(arguments=("dockerd",), daemon_json='{"bip": "172.20.0.1/16"}')

    def test_each_problem_has_a_code_of_its_own(self):
        found = doctor.of_docker(self.FACTS)
        assert "PF301" in {one.code for one in found}
        assert all(one.subject == "docker" and one.consequence and one.remedy for one in found)
        assert all("pyflannel doctor docker" in one.evidence[0] for one in found)

    def test_a_docker_that_does_not_run_here_is_no_fault(self):
        assert doctor.of_docker(replace(self.FACTS, arguments=None)) == []

    def test_every_check_has_a_code_or_is_one_of_the_nodes(self):
        text = "".join(Path(room.__file__).read_text() for room in (unitchecks, runchecks))
        names = set(re.findall(r'\bproblem\(\s*"([^"]+)"', text))
        names |= set(re.findall(r'^    check = "([^"]+)"', text, re.MULTILINE))
        assert names == set(checks.CODE_OF) | {"lease", "ip_forward", "FORWARD"}
        assert sorted(checks.CODE_OF.values()) == sorted(checks.CODES)
        page = (Path(__file__).parents[3] / "docs/reference/problems.md").read_text()
        for code, meaning in checks.CODES.items():
            assert f"| {code} | {meaning} |" in page
