"""The ping matrix, and the arithmetic of the pinger."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.lab import pinger, traffic
from pyflannel.lab.ping import PingMatrix, PingResult


def result(source, target, *, received=3, ttl=60):
    return PingResult(
        source=source,
        target=target,
        address="10.0.1.2",
        sent=3,
        received=received,
        ttl=ttl if received else None,
        rtt_ms=0.25 if received else None,
    )


def matrix(*results, foreign=None):
    pods = tuple(sorted({r.source for r in results}))
    return PingMatrix(pods=pods, results=results, foreign_sources=foreign or {})


class TestMatrix:
    def test_it_is_good_only_if_every_pair_answered(self):
        good = matrix(result("pod1", "pod2"), result("pod2", "pod1"))
        bad = matrix(result("pod1", "pod2"), result("pod2", "pod1", received=0))
        assert good.ok
        assert not bad.ok
        assert [(r.source, r.target) for r in bad.failures()] == [("pod2", "pod1")]

    def test_a_rewritten_source_spoils_it(self):
        answered = matrix(
            result("pod1", "pod2"), result("pod2", "pod1"), foreign={"pod2": ("192.0.2.1",)}
        )
        assert not answered.ok
        assert "192.0.2.1" in "\n".join(answered.table())

    def test_the_table_has_a_row_per_source_and_says_who_is_silent(self):
        head, one, two = matrix(
            result("pod1", "pod2", ttl=62), result("pod2", "pod1", received=0)
        ).table()
        assert head.split() == ["to", "pod1", "to", "pod2"]
        assert one.split() == ["pod1", "·", "ttl=62", "0.25", "ms"]
        assert two.split() == ["pod2", "no", "answer", "·"]

    def test_many_pods_still_fit_a_terminal(self):
        pods = [f"pod{k}" for k in range(1, 13)]
        results = [result(a, b) for a in pods for b in pods if a != b]
        assert max(map(len, matrix(*results).table())) <= 80

    def test_json_names_each_pair(self):
        data = matrix(result("pod1", "pod2"), result("pod2", "pod1")).to_json()
        assert data["ok"] is True
        assert [(p["from"], p["to"], p["ttl"]) for p in data["pairs"]] == [
            ("pod1", "pod2", 60),
            ("pod2", "pod1", 60),
        ]

    def test_a_pair_that_was_not_asked_is_an_error(self):
        with pytest.raises(KeyError):
            matrix(result("pod1", "pod2")).between("pod2", "pod1")


@given(st.binary(max_size=200))
def test_a_packet_with_its_checksum_sums_up_to_zero(data):
    data = data[: len(data) // 2 * 2]
    assert pinger.checksum(data + struct.pack("!H", pinger.checksum(data))) == 0


def test_silence_says_to_how_much_and_how_long():
    said = result("pod1", "pod2", received=0).silence(1.5)
    assert said == "pod1 to pod2 (10.0.1.2): no answer to 3 requests in 1.5 s"


def test_a_deadline_that_was_too_short_to_ask_is_no_silence_of_the_other():
    said = replace(result("pod1", "pod2", received=0), sent=0).silence(0.001)
    assert said.endswith("the deadline of 0.001 s passed before anything was sent")


@pytest.mark.parametrize("module", [pinger, traffic])
def test_what_runs_in_a_pod_needs_the_standard_library_alone(module):
    command = [sys.executable, "-I", "-S", module.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (0, "")
