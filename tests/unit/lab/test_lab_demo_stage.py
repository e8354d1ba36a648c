"""What the demo prints fits a terminal of 80 columns, and can be pasted."""

from __future__ import annotations

import io

import pytest

from pyflannel.lab import demo
from pyflannel.lab.stage import Stage, folded
from pyflannel.lab.topology import DEMO_CONFIG

LONG = "pyflanneld -etcd-endpoints=http://192.0.2.254:2379 -etcd-prefix=/coreos.com/network"


@pytest.mark.parametrize("width", [30, 60, 79, 200])
def test_a_folded_command_is_the_same_command(width):
    lines = folded(LONG, width)
    assert " ".join(line.removesuffix(" \\").strip() for line in lines) == LONG
    assert all(line.endswith(" \\") for line in lines[:-1])
    words = [len(word) for word in LONG.split()]
    assert max(map(len, lines)) <= max(width, *(length + 4 for length in words))


def test_a_headline_ends_with_its_time_in_the_last_column():
    out = io.StringIO()
    stage = Stage(out)
    with stage.step("Something is done"):
        pass
    stage.command("node1", LONG)
    stage.line(demo._PICTURE)
    stage.output(DEMO_CONFIG.splitlines())
    _, head, *rest = out.getvalue().splitlines()
    assert len(head) == 79
    assert head.endswith(" s")
    assert max(map(len, rest)) < 80
