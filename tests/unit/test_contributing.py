"""The examples of CONTRIBUTING.md work as they stand there: each adds what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def write(tree: Path, block: str) -> None:
    """A new file, named in the first line."""
    name, _, text = block.partition("\n")
    file = tree / name.removeprefix("# ")
    assert not file.exists()
    file.write_text(text)


def change(tree: Path, block: str) -> None:
    """A diff without line numbers: what is taken out or stays is there, and only once."""
    for part in re.split(r"^--- ", block, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        file = tree / name
        for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            text = file.read_text()
            assert text.count(before) == 1, f"{name} has this {text.count(before)} times:\n{before}"
            file.write_text(text.replace(before, after))


def shell(tree: Path, block: str) -> None:
    subprocess.run(["sh", "-e"], input=block, text=True, cwd=tree, check=True)


APPLY: dict[str, Callable[[Path, str], None]] = {"python": write, "diff": change, "sh": shell}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """pyflannel after a contributor has done all that the page shows."""
    path = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pyflannel", path / "pyflannel", ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", path)
    blocks = BLOCKS.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(blocks) == 7
    for language, block in blocks:
        APPLY[language](path, block)
    return path


def run(tree: Path, *words: str, stdin: str = "") -> str:
    """Runs our Python, which finds the tree before all others, and gives what it says."""
    done = subprocess.run(
        [sys.executable, *words],
        input=stdin,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"},
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_backend_is_known_to_the_check_of_a_config(tree):
    config = json.dumps({"Network": "10.9.0.0/16", "Backend": {"Type": "beside"}})
    words = ("-m", "pyflannel.cli.pyflannel", "config", "check", "-", "--json")
    report = json.loads(run(tree, *words, stdin=config))
    assert report["problems"] == []
    assert report["config"]["Backend"] == {"Type": "beside"}


def test_a_flag_is_in_the_usage_and_a_store_is_opened_by_it(tree, tmp_path):
    usage = run(tree, "-m", "pyflannel.cli.pyflanneld", "--help")
    assert "directory with such files, of which the last by name counts" in usage
    for name in ("monday", "tuesday"):
        nodes = [{"Name": "n1", "Subnet": "10.9.1.0/24", "PublicIP": "192.0.2.1"}]
        config = {"Network": "10.9.0.0/16", "Backend": {"Type": "beside"}}
        (tmp_path / name).write_text(json.dumps({"Config": config, "Nodes": nodes}))
    script = f"""
import asyncio
from pyflannel.aio.clock import SystemClock
from pyflannel.backend.kinds import KINDS
from pyflannel.core.options import DaemonOptions
from pyflannel.store.base import no_obstacles
from pyflannel.store.open import open_store

options = DaemonOptions(static_networks={str(tmp_path)!r})
store = open_store(options, KINDS, None, SystemClock(), print, no_obstacles)
config = asyncio.run(store.network_config())
print(type(store).__name__, config.network, store._file.path)
"""
    assert run(tree, "-c", script).split() == [
        "NewestLeaseStore", "10.9.0.0/16", str(tmp_path / "tuesday"),
    ]  # fmt: skip


def test_a_check_finds_what_it_is_for_and_has_its_guide(tree):
    script = """
from dataclasses import replace
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.diagnose.checks import findings
from pyflannel.diagnose.facts import NodeFacts
from pyflannel.diagnose.guide import GUIDES
from pyflannel.report.model import LeaseReport, NodeReport

report = NodeReport(lease=LeaseReport())
facts = NodeFacts(report=report, subnet_file="/run/flannel/subnet.env")
print("PF239" in GUIDES)
for one in (facts, replace(facts, env=SubnetEnv())):
    print("PF239" in {finding.code for finding in findings(one)})
"""
    assert run(tree, "-c", script).split() == ["True", "True", "False"]


def test_a_fault_is_listed_and_fits_its_backends(tree):
    listed = run(tree, "-m", "pyflannel.cli.pyflannel", "lab", "break", "--list")
    assert "firewall-keeps-the-overlay-in" in listed
    script = """
from pyflannel.lab.trouble import fitting, named
name = named("firewall-keeps-the-overlay-in")
print([name in fitting(backend, with_etcd=True) for backend in ("vxlan", "host-gw")])
"""
    assert run(tree, "-c", script).strip() == "[True, False]"


def test_the_examples_are_as_clean_as_the_rest(tree):
    run(tree, "-m", "ruff", "check", "--no-cache", "pyflannel")
    run(tree, "-m", "ruff", "format", "--check", "--no-cache", "pyflannel")
