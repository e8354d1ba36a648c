"""The commands of README.md work as they stand there, one after the other."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.state import BASE_VARIABLE

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
DEMO, LAB, START, LOOK = BLOCKS
"""The first one is tests/system/test_first_run.py's."""


def test_the_demo_is_one_command():
    assert DEMO == "make demo\n"


def test_the_lab_comes_breaks_heals_and_goes(tmp_path):
    environment = {**os.environ, BASE_VARIABLE: str(tmp_path)}

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-ec", script],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    try:
        done = run(LAB)
        assert done.returncode == 0, done.stdout
        assert json.loads(run(".venv/bin/pyflannel lab list --json").stdout) == {"labs": []}
    finally:
        run(".venv/bin/pyflannel lab down")


def test_a_node_is_started_and_looked_at():
    configure, daemon = START.splitlines()
    with Lab(LabSpec(nodes=1, name="readme", start_daemons=False)) as lab:
        node = lab.node(1)

        def run(script: str) -> str:
            return node.exec(["bash", "-ec", f"cd {ROOT}; {script}"]).stdout

        run(configure)
        child = node.space.popen(
            ["bash", "-c", f"exec {daemon}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            status = ["pyflannel", "status", "--json"]
            lab.wait(lambda: node.exec(status, check=False).returncode == 0, 30, what="a node")
            sample = json.loads((ROOT / "config/udp.json").read_text())["Network"]
            assert json.loads(node.exec(status).stdout)["config"]["Network"] == sample
            for line in LOOK.splitlines():
                assert run(line), line
        finally:
            child.terminate()
            child.wait(20)
