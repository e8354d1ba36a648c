"""The lock file: names, versions and hashes of everything that is installed, and no addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tools import lockfile, sbom

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
REQUIREMENT = re.compile(r"[a-z0-9-]+==[A-Za-z0-9.+!-]+( ; [a-z_.0-9<>='() -]+)? \\", re.ASCII)
TWO_MACHINES = (
    "implementation_name == 'cpython' and ((platform_machine == 'aarch64' and sys_platform"
    " == 'linux') or (platform_machine == 'x86_64' and sys_platform == 'linux'))"
)
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def test_it_has_names_versions_and_hashes_and_nothing_else() -> None:
    lines = LOCK.splitlines()
    assert all(REQUIREMENT.fullmatch(line) or HASH.fullmatch(line) for line in lines)
    assert "//" not in LOCK


def test_the_compiler_of_the_wheels_has_one_of_its_own() -> None:
    """400 MB that only `make wheels` needs."""
    lines = (ROOT / "tools/wheels.lock").read_text().splitlines()
    assert all(REQUIREMENT.fullmatch(line) or HASH.fullmatch(line) for line in lines)
    assert [line.partition("==")[0] for line in lines if REQUIREMENT.fullmatch(line)] == ["ziglang"]
    assert "ziglang" not in LOCK


def test_the_generator_of_the_site_has_one_of_its_own() -> None:
    """Neither the demo nor the tests download it."""
    lines = (ROOT / "tools/docs.lock").read_text().splitlines()
    assert all(REQUIREMENT.fullmatch(line) or HASH.fullmatch(line) for line in lines)
    assert any(line.startswith("mkdocs==") for line in lines)
    assert "mkdocs" not in LOCK


def test_every_dependency_of_ours_is_in_it_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        group
        for name, each in project["dependency-groups"].items()
        if name not in {"wheels", "docs"}
        for group in each
    ]
    wanted = [*project["project"]["dependencies"], *(g for g in groups if isinstance(g, str))]
    locked = set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))
    assert {re.split(r"[<>=; ]", each)[0].lower() for each in wanted} <= locked


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ("sys_platform == 'linux'", ""),
        ("implementation_name == 'cpython' and sys_platform == 'linux'", ""),
        (
            "python_full_version < '3.12' and sys_platform == 'linux'",
            "python_full_version < '3.12'",
        ),
        (TWO_MACHINES, "platform_machine == 'aarch64' or platform_machine == 'x86_64'"),
        ("sys_platform == 'win32'", "sys_platform == 'win32'"),
    ],
)
def test_what_always_holds_is_no_condition(condition: str, left: str) -> None:
    assert lockfile.simplified(condition) == left


def distribution(site: Path, name: str, *headers: str) -> None:
    directory = site / f"{name}-1.0.dist-info"
    directory.mkdir()
    lines = [f"Name: {name}", "Version: 1.0", *headers]
    (directory / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n\ntext\n")
    (directory / "RECORD").write_text(f"{name}/a.py,,\n{directory.name}/METADATA,,\n../bin/x,,\n")


def test_the_bill_of_materials_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    distribution(tmp_path, "pyflannel", "License-Expression: Apache-2.0 AND (MIT OR GPL-2.0-only)")
    distribution(tmp_path, "some_thing", "License: MIT License", "Author: A. Uthor")
    first = sbom.cyclonedx(tmp_path)
    assert '"pkg:pypi/some-thing@1.0"' in first
    assert sbom.cyclonedx(tmp_path) == first
    stanza = sbom.copyright_stanzas(tmp_path)
    assert "some_thing/*" in stanza
    assert "Copyright: A. Uthor\nLicense: MIT\n" in stanza


def test_a_licence_that_cannot_be_read_ends_the_build(tmp_path: Path) -> None:
    distribution(tmp_path, "pyflannel", "License: free as in beer, mostly")
    with pytest.raises(SystemExit, match="no SPDX licence"):
        sbom.cyclonedx(tmp_path)
