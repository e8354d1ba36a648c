"""What `lab break` breaks, `lab heal` mends; and the page that teaches it says what is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec, trouble
from pyflannel.lab.state import BASE_VARIABLE
from tests.support.document import follow

pytestmark = [pytest.mark.root, pytest.mark.slow]

DOCS = Path(__file__).parents[2] / "docs"
CARRIED_ON = {"narrow underlay", "daemon killed", "daemon frozen", "etcd frozen"}
"""What small packets between pods get through, as long as nothing changes."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(LabSpec(name="trouble", backend="vxlan"), base=tmp_path_factory.mktemp("t")) as lab:
        yield lab


@pytest.mark.parametrize("name", trouble.TROUBLES)
def test_what_is_broken_shows_and_is_mended(lab, name):
    broken = trouble.break_it(lab, name, 2)
    assert trouble.recorded(lab) == [broken]
    matrix = lab.ping_all(count=1, deadline=1.0)
    silent = {(failure.source, failure.target) for failure in matrix.failures()}
    expected = {("pod1", "pod2"), ("pod2", "pod1"), ("pod2", "pod3"), ("pod3", "pod2")}
    assert silent == (set() if name in CARRIED_ON else expected)
    mended = trouble.heal(lab)
    assert mended is not None
    assert mended.ok
    assert trouble.recorded(lab) == []
    assert lab.node(2).exec(["nft", "list", "tables"]).stdout.count("pyflannel_lab") == 0


@pytest.mark.parametrize(("page", "commands"), [("learn.md", 20), ("performance.md", 2)])
def test_the_page_shows_what_is_so(page, commands, tmp_path):
    environment = {
        **os.environ,
        BASE_VARIABLE: str(tmp_path / "labs"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def shell(script):
        done = subprocess.run(
            ["bash", "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, 1), script  # 1: a pod does not answer, as shown
        return done.stdout

    try:
        assert follow(DOCS / page, {"host": shell}) > commands
    finally:
        shell("pyflannel lab down")
