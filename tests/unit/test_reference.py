"""docs/reference/ is what its sources say, and misses nothing of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core import config, errors
from pyflannel.core.kind import every
from pyflannel.core.options import FLAGS
from tools import reference

ROOT = Path(__file__).parents[2]
PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_what_its_tool_writes(name):
    written = (ROOT / "docs/reference" / name).read_text()
    assert written == PAGES[name], "run python -m tools.reference"


def test_every_key_of_the_network_config_is_explained():
    page = PAGES["network-config.md"]
    keys = [*config._TOP_KEYS]
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
