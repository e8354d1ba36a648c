"""`pyflannel doctor`: what it prints of findings, and its exit codes."""

from __future__ import annotations

import json

import pytest

from pyflannel.cli import doctor, status
from pyflannel.core.errors import NotPermitted, UsageError
from pyflannel.diagnose.finding import Finding
from pyflannel.report.model import Severity
from tests.support.hostile import HOSTILE, is_fit

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
    shown = json.loads(capsys.readouterr().out)
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
