"""docs/reference/ is what its sources say, and misses nothing of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.tree import leaves, tree
from pyflannel.core import configparse, errors
from pyflannel.core.kind import every
from pyflannel.core.options import FLAGS
from pyflannel.datapath.abilities import ABILITIES
from pyflannel.datapath.native import _native as native
from tests.support.schema import check, published
from tools import jsonpage, reference, reportpages

ROOT = Path(__file__).parents[2]
PAGES = reference.pages() | reportpages.pages() | jsonpage.pages()


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_what_its_tool_writes(name):
    written = (ROOT / "docs/reference" / name).read_text()
    assert written == PAGES[name], "run tools/reference.py, reportpages.py and jsonpage.py"


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


def test_everything_that_the_native_data_path_may_do_is_explained():
    assert list(ABILITIES["native"]) == list(native.OFFLOADS)


# What --json prints.


def test_every_command_with_json_has_its_schema_and_no_other():
    having = {
        " ".join(words)
        for words, parser in leaves(tree())
        if any("--json" in each.option_strings for each in parser.options)
    }
    assert {name.partition(" (")[0] for name in jsonpage.schemas()} == having
    made = {jsonpage.file_of(name) for name in jsonpage.schemas()}
    assert {path.name for path in (ROOT / "docs/reference").glob("*.schema.json")} == made


def test_what_each_command_really_prints_is_held_against_its_schema_somewhere():
    texts = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tried = set(re.findall(r'check_printed\(\s*"([a-z-]+)"', texts)) | {"ping", "trace", "status"}
    made = {jsonpage.file_of(name).removesuffix(".schema.json") for name in jsonpage.schemas()}
    assert made == tried


def test_what_is_said_of_a_member_is_about_one_that_there_is():
    schemas = jsonpage.schemas()
    for name, members in jsonpage.ABOUT.items():
        assert set(members) <= set(schemas[name]["properties"]), name


def test_a_schema_finds_what_is_missing_and_what_is_of_another_type():
    schema = published("lab-ping")
    good = {"ok": True, "pairs": [], "foreign_sources": {"pod1": ["192.0.2.1"]}}
    check(schema, good, exactly=True)
    for bad in ({"ok": 1}, {"pairs": [{}]}, {"foreign_sources": {"pod1": 1}}, {"more": 1}):
        with pytest.raises(AssertionError):
            check(schema, good | bad, exactly=True)
    check(schema, good | {"more": 1})
