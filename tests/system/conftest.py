"""The package under test and the one before it, each built once."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.machine import ROOT, run

FORMER: Final = "750e0a9"
"""The commit that the last package was built from: what people have, and may go back to."""

BUILD_S: Final = 1200.0
"""Half a minute, and over five on a machine that is busy with other tests."""

BUILDER: Final = """#!/bin/sh
# The manuals are made of the package, which in this environment is the present one.
case $1 in tools/*) export PYTHONPATH={tree} ;; esac
exec {python} "$@"
"""


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package of the sources as they are."""
    return ROOT / run(ROOT / "tools/build-deb.sh", timeout=BUILD_S).splitlines()[-1]


@pytest.fixture(scope="session")
def former_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package as it was last, built from its own commit with its own script."""
    known = subprocess.run(
        ["git", "-C", ROOT, "cat-file", "-e", f"{FORMER}^{{commit}}"],
        check=False,
        capture_output=True,
    )
    if known.returncode != 0:
        pytest.skip(
            f"commit {FORMER}, which the former package is built from, is not in this clone"
        )
    tree = tmp_path_factory.mktemp("former") / "pyflannel"
    run("git", "-C", ROOT, "worktree", "add", "--detach", tree, FORMER)
    try:
        builder = tree / ".venv/bin/python"
        builder.parent.mkdir(parents=True)
        builder.write_text(BUILDER.format(tree=tree, python=ROOT / ".venv/bin/python"))
        builder.chmod(0o755)
        built = run(tree / "tools/build-deb.sh", timeout=BUILD_S).splitlines()[-1]
        return (tree / built).rename(tree.parent / f"former-{Path(built).name}")
    finally:
        run("git", "-C", ROOT, "worktree", "remove", "--force", tree)
