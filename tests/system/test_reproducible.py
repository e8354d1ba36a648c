"""Wheel and package are the same bytes wherever they are built; the package says what is in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.support.machine import ROOT, run

pytestmark = [pytest.mark.root, pytest.mark.slow]

EPOCH = "1750000000"
BUILD = """
umask "$1"
.venv/bin/python -m build --no-isolation --wheel --outdir dist . >/dev/null
tools/build-deb.sh >/dev/null
"""
BUILDER = """#!/bin/sh
# The tools import the package: that of this tree, which the builds do not see.
case $1 in tools/*) export PYTHONPATH="$PWD" ;; esac
exec {python} "$@"
"""


def build(place, umask, date, **environment):
    """Made of what is tracked here in a directory of its own; gives the contents by name.

    Args:
        date: of every file there, as touch(1) reads it.
    """
    place.mkdir(parents=True)
    tracked = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    run("find", place, "-exec", "touch", "-d", date, "{}", "+")
    (place / ".venv/bin").mkdir(parents=True)
    builder = place / ".venv/bin/python"
    builder.write_text(BUILDER.format(python=ROOT / ".venv/bin/python"))
    builder.chmod(0o755)
    done = subprocess.run(
        ["bash", "-ec", BUILD, "build", umask],
        cwd=place,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHONPATH": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2400,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return {path.name: path.read_bytes() for path in (place / "dist").iterdir()}


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    base = tmp_path_factory.mktemp("reproducible")
    first = build(base / "a", "022", "2026-01-01", TZ="UTC", LC_ALL="C.UTF-8")
    second = build(
        base / "another/place", "077", "2021-07-07", TZ="Asia/Tokyo", LC_ALL="C", HOME=str(base)
    )
    yield first, second
    shutil.rmtree(base, ignore_errors=True)


@pytest.mark.parametrize("suffix", [".whl", ".deb"])
def test_what_is_built_twice_in_different_places_is_the_same_bytes(builds, suffix):
    first, second = builds
    (name,) = (name for name in first if name.endswith(suffix))
    assert first.keys() == second.keys()
    assert first[name] == second[name]


def test_the_package_says_what_it_is_made_of(package):
    def inside(path):
        return run("sh", "-c", f"dpkg-deb --fsys-tarfile {package} | tar -xO ./{path}")

    bill = json.loads(inside("usr/share/doc/pyflannel/sbom.cdx.json"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    named = {(part["name"], part["version"]) for part in bill["components"]}
    locked = {
        tuple(line.split(" ")[0].split("=="))
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith(" ")
    }
    assert {"aiohttp", "pyroute2", "pyyaml", "etcd3gw", "uvloop"} <= {name for name, _ in named}
    assert named <= locked
    listed = run("dpkg-deb", "--contents", package)
    assert {
        line.split("/site-packages/")[1].split("/")[0].rpartition(".dist-info")[0].split("-")[0]
        for line in listed.splitlines()
        if line.endswith("dist-info/METADATA") and "/_vendor/" not in line
    } == {name.replace("-", "_") for name, _ in named} | {"pyflannel"}
    copyright_text = inside("usr/share/doc/pyflannel/copyright")
    assert "License: Apache-2.0 or GPL-2.0-only" in copyright_text
    assert copyright_text.count("\nFiles: ") == len(named) + 2
