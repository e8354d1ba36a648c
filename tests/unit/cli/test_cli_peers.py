"""`pyflannel peers`: what it prints of the daemon's answer."""

from __future__ import annotations

import json

import pytest

from pyflannel.cli import peers, status
from pyflannel.core.errors import DeviceUnavailable
from pyflannel.report.codec import encode
from pyflannel.report.model import NodeReport, PeerReport
from tests.support.schema import check_printed

REPORT = NodeReport(
    version="1",
    now=1_700_000_000.0,
    ready_since=1_600_000_000.0,
    peers=[
        PeerReport(subnet="10.5.1.0/24", public_ip="192.0.2.1"),
        PeerReport(subnet="10.5.2.0/24", public_ip="192.0.2.2", state="ignored", reason="no MAC"),
    ],
)


@pytest.fixture
def answer(monkeypatch):
    """Lets the daemon answer with something."""

    def answers(value):
        def ask(path, subnet_file=""):
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(status, "ask", ask)

    return answers


def test_a_table_with_trouble_first_and_its_reason(answer, capsys):
    answer(json.loads(json.dumps(encode(REPORT))))
    assert peers.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["SUBNET", "10.5.2.0/24", "10.5.1.0/24"]
    assert lines[3:] == ["10.5.2.0/24 ignored:", "  no MAC"]


def test_json_is_the_list_that_status_has(answer, capsys):
    answer(encode(REPORT))
    assert peers.main(["--json"]) == 0
    shown = check_printed("peers", capsys.readouterr().out)
    assert shown == json.loads(json.dumps(encode(REPORT)["peers"]))
    assert {
        *("subnet", "public_ip", "host", "state", "last_heard", "rtt_s", "loss", "mtu"),
        *("bytes_in", "bytes_out", "drops"),
    } <= set(shown[0])


def test_that_there_is_no_daemon_is_said(answer, capsys):
    answer(encode(NodeReport(ready_since=1.0)))
    assert peers.main([]) == 0
    assert capsys.readouterr().out == "no peers: no other node has a lease\n"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (DeviceUnavailable("connect to", "/run/x.sock", 2, "is pyflanneld running?"), "running?"),
        ({"version": "0.1", "peers": 2}, "another release (0.1)"),
    ],
)
def test_who_cannot_be_asked_is_exit_3(answer, capsys, value, words):
    answer(value)
    assert peers.main(["--json"]) == 3
    out, err = capsys.readouterr()
    assert not out
    assert words in err
