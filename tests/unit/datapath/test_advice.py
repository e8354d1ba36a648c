"""Where `auto` does without a data path that would work."""

from __future__ import annotations

import pytest

from pyflannel.datapath import advice
from pyflannel.datapath.base import Capabilities, Link

EBPF = Capabilities(name="ebpf", attached_by="clsact", wants_ethernet=True, wants_short=True)
USER_SPACE = Capabilities(name="native")


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    monkeypatch.setattr(
        advice, "MEASURED", {(5, 10): (3.0, 1.2), (6, 1): (3.0, 0.7), (6, 12): (3.0, 0.96)}
    )


@pytest.mark.parametrize(
    ("linux", "says"),
    [
        ((5, 4), "not measured on Linux 5.4"),
        ((5, 10), ""),
        ((5, 15), ""),
        ((6, 1), "on Linux 6.1 it was measured at 0.70 of the next one's speed"),
        ((6, 11), "on Linux 6.1 it was measured at 0.70"),
        ((6, 12), ""),
        ((7, 3), ""),
    ],
)
def test_the_worse_of_the_underlays_decides_and_a_kernel_counts_as_the_one_before(linux, says):
    found = advice.objection(EBPF, linux=linux, link=Link())
    assert says in found
    assert bool(found) is bool(says)


def test_without_ethernet_headers_what_comes_in_would_be_slow():
    assert "no Ethernet header" in advice.objection(EBPF, linux=(6, 12), link=Link(ethernet=False))
    assert advice.objection(USER_SPACE, linux=(5, 4), link=Link(ethernet=False)) == ""


@pytest.mark.parametrize(
    ("slow", "total", "says"),
    [
        (40_000, 60_000, "40000 of 60000 packets took its slow path in 30 s"),
        (40_000, 40_000, "40000 of 40000 packets took its slow path in 30 s"),
        (40_000, 80_000, ""),
        (29_000, 29_000, ""),
        (0, 0, ""),
    ],
    ids=["most", "all", "half", "few", "none"],
)
def test_a_slow_path_that_carries_most_packets_is_told(slow, total, says):
    before = advice.Carried(100.0, 5, 1000)
    now = advice.Carried(130.0, 5 + slow, 1000 + total)
    assert advice.slow_share(before, now) == says


def test_packets_too_long_for_the_programs_would_be_slow():
    assert "15346 bytes" in advice.objection(EBPF, linux=(6, 12), link=Link(long=True))
    assert advice.objection(USER_SPACE, linux=(5, 4), link=Link(long=True)) == ""
