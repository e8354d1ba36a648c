"""The peer table: what is known is there, what is not is left out, and it fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyflannel.report.codec import decode, encode
from pyflannel.report.model import NodeReport, PeerReport
from pyflannel.report.peers import WIDTH, table
from pyflannel.report.text import MOST_PEERS, page
from tests.support.hostile import HOSTILE, is_fit

NOW = 1_700_000_000.0
KNOWN = PeerReport(subnet="10.5.7.0/24", public_ip="192.0.2.7", backend="vxlan")
MEASURED = replace(
    KNOWN,
    host="node7.example.org",
    state="up",
    last_heard=NOW - 185,
    rtt_s=0.00042,
    loss=0.25,
    mtu=1450,
    bytes_in=1_500_000_000,
    bytes_out=999,
    drops={"no route": 2, "malformed": 3},
)


def test_without_measurements_there_are_three_columns():
    heading, line = table([KNOWN], NOW)
    assert heading.split("  ")[0] == "SUBNET"
    assert "HEARD" not in heading
    assert line.split() == ["10.5.7.0/24", "192.0.2.7", "unknown"]


def test_what_was_measured_stands_in_words():
    _, line = table([MEASURED], NOW, width=200)
    for words in ("3 min 5 s ago", "0.42 ms", "25 %", "1450", "1.5 GB", "999 B", "node7.example"):
        assert words in line
    assert "  5  " in line  # the drops of all reasons


def test_zero_is_a_value_and_nothing_measured_is_none():
    zero = replace(KNOWN, loss=0.0, bytes_in=0, drops={})
    _, first, second = table([zero, replace(KNOWN, subnet="10.5.8.0/24")], NOW)
    assert first.split()[3:] == ["0", "%", "0", "0", "B"]
    assert second.split()[3:] == []


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")],
)
def test_bytes_have_the_largest_unit(count, words):
    assert words in table([replace(KNOWN, bytes_out=count)], NOW)[1]


def test_it_fits_into_80_columns_and_keeps_the_state():
    wide = replace(MEASURED, subnet="100.100.100.0/24", public_ip="203.0.113.201")
    for line in table([wide] * 3, NOW):
        assert len(line) <= WIDTH
    assert "HEARD" in table([wide], NOW)[0]
    long = replace(wide, subnet=None, ipv6_subnet="2001:db8:1234:5678:9abc:def0:1234:5600/120")
    assert table([long], NOW, width=10)[0].split() == ["SUBNET", "PUBLIC", "IP", "STATE"]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_lease_says_reaches_the_terminal_raw(text):
    peer = PeerReport(subnet=text, public_ip=text, host=text, state=text)
    assert is_fit("\n".join(table([peer], NOW, width=500)))


def test_no_peers_are_no_table():
    assert table([], NOW) == []
    assert "peers:" not in page(NodeReport(now=NOW))


def test_the_page_has_the_first_dozen_and_trouble_before_the_rest():
    peers = [replace(KNOWN, subnet=f"10.5.{n}.0/24") for n in range(40)]
    peers[39] = replace(peers[39], state="failing", reason="EPERM")
    lines = page(NodeReport(now=NOW, peers=peers)).splitlines()
    start = lines.index("peers: 39 unknown, 1 failing")
    assert lines[start + 2].split() == ["10.5.39.0/24", "192.0.2.7", "failing"]
    assert lines[start + 2 + MOST_PEERS] == f"  and {40 - MOST_PEERS} more: pyflannel peers"
    assert all(len(line) <= WIDTH for line in lines)


def test_the_json_has_the_documented_keys_and_null_for_what_was_not_measured():
    (shown,) = encode(NodeReport(now=NOW, peers=[KNOWN]))["peers"]
    measured = ("host", "last_heard", "rtt_s", "loss", "mtu", "bytes_in", "bytes_out", "drops")
    assert {shown[key] for key in measured} == {None}
    assert shown["state"] == "unknown"
    assert decode(encode(NodeReport(now=NOW, peers=[MEASURED]))).peers == (MEASURED,)
