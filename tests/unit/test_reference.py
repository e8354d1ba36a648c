"""docs/reference/ is what its sources say, and misses nothing of them."""

from __future__ import annotations

import ast
import json
import re
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import config as config_command
from pyflannel.cli import leases, prune, static
from pyflannel.cli.tree import leaves, tree
from pyflannel.core import configparse, errors
from pyflannel.core.ip import SubnetKey
from pyflannel.core.kind import every
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.options import FLAGS
from pyflannel.core.staticnet import StaticNode
from pyflannel.lab.ping import PingMatrix, PingResult
from pyflannel.report.model import PeerReport
from pyflannel.report.silence import Silence
from tools import jsonpage, reference

ROOT = Path(__file__).parents[2]
PAGES = reference.pages() | {"json.md": jsonpage.page()}


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_what_its_tool_writes(name):
    written = (ROOT / "docs/reference" / name).read_text()
    assert written == PAGES[name], "run tools/reference.py and tools/jsonpage.py"


def test_every_key_of_the_network_config_is_explained():
    page = PAGES["network-config.md"]
    keys = [*configparse.TOP_KEYS]
    for kind in every(KINDS):
        assert f"### {kind.name}\n" in page
        keys += kind.settings.keys()
    assert [key for key in keys if f"| `{key}` | " not in page] == []


def test_every_flag_has_its_variable_default_and_origin():
    rows = {row.split("`")[1]: row for row in PAGES["flags.md"].splitlines() if row[:4] == "| `-"}
    assert set(rows) == {f"--{flag.name}" for flag in FLAGS}
    for flag in FLAGS:
        row = rows[f"--{flag.name}"]
        assert (f"`{flag.variable()}`" in row) == flag.env
        assert ("*pyflannel*" in row) == (flag.since == "pyflannel")
        assert all(choice in row for choice in flag.choices)


def exit_codes(path):
    """What a module calls an exit code."""
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = [each.id for each in targets if isinstance(each, ast.Name)]
        if any(name.startswith("EXIT_") for name in named) and isinstance(
            getattr(node, "value", None), ast.Constant
        ):
            yield node.value.value


def test_every_exit_code_of_the_source_is_in_the_table_and_no_other():
    used = {0, errors.EXIT_DEFECT}
    for path in (ROOT / "pyflannel").rglob("*.py"):
        used |= set(exit_codes(path))
    assert {int(code) for code, _, _ in reference.EXIT_CODES} == used


OURS = {"PYFLANNEL_LAB_ID", "PYFLANNEL_LAB_USERNS"}
"""Written for our own children."""
OF_TESTS = {"PYFLANNEL_CACHE"}


def test_every_variable_that_is_read_is_explained():
    page = "".join(PAGES.values())
    found = set()
    for path in (ROOT / "pyflannel").rglob("*.py"):
        if "testing" not in path.parts:
            found |= set(re.findall(r'"((?:PYFLANNEL|FLANNELD?)_[A-Z_]*[A-Z])"', path.read_text()))
    found -= OURS | OF_TESTS
    of_subnet_env = {name for name in found if re.match(r"FLANNEL_(IPV6_)?(NETWORK|SUBNET)", name)}
    found -= of_subnet_env | {"FLANNEL_MTU", "FLANNEL_IPMASQ"}
    assert (
        sorted(name for name in found if f"`{name}`" not in page and name != "FLANNELD_ETCD") == []
    )


def test_every_file_that_the_package_places_is_listed():
    script = (ROOT / "tools/build-deb.sh").read_text()
    placed = re.findall(r"^ *place (\S+)", script, re.MULTILINE)
    listed = {source for source, _ in reference.packaged()}
    assert {each for each in placed if "$" not in each} == listed


# What --json prints.

SHAPES = jsonpage.shapes()
LEASE = Lease(key=SubnetKey(v4=IPv4Network("10.5.7.0/24")), attrs=LeaseAttrs())


def test_every_command_with_json_has_its_shape_and_no_other():
    having = {
        " ".join(words)
        for words, parser in leaves(tree())
        if any("--json" in each.option_strings for each in parser.options)
    }
    assert {name.partition(" (")[0] for name in SHAPES} == having


def test_a_config_is_printed_as_the_page_says(capsys):
    text = '{"Network": "10.5.0.0/16", "Netwrok": 1}'
    config_command._check(text.encode(), as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == set(SHAPES["config check"])
    assert tuple(printed["problems"][0]) == SHAPES["config check"]["problems"][0]


def test_leases_are_printed_as_the_page_says():
    keys = tuple(leases.as_json(LEASE, 7))
    assert (*keys, "own") == SHAPES["leases list"]["leases"][0]
    assert keys == SHAPES["leases release"]["lease"]
    silent = Silence(silent=((PeerReport(), 1.0),), unclear=((PeerReport(), "why"),))
    printed = prune._json(silent, (), {})
    assert set(printed) == set(SHAPES["leases prune"])
    for member in ("silent", "unclear"):
        assert tuple(printed[member][0]) == SHAPES["leases prune"][member][0]


def test_nodes_of_a_static_network_are_printed_as_the_page_says():
    printed = static._node(StaticNode(name="a", lease=LEASE))
    assert tuple(printed) == SHAPES["static check"]["nodes"][0]


def test_a_matrix_is_printed_as_the_page_says():
    result = PingResult(source="a", target="b", address="", sent=1, received=0, ttl=1, rtt_ms=None)
    printed = PingMatrix(pods=("a",), results=(result,), foreign_sources={}).to_json()
    assert set(printed) == set(SHAPES["lab ping"])
    assert tuple(printed["pairs"][0]) == SHAPES["lab ping"]["pairs"][0]
