"""Building the package: with the extension, without it, and without the means to build it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTENSION = "pyflannel/datapath/native/_native.abi3.so"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as a clone would have it: nothing built."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, copy)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "pyflannel", copy / "pyflannel", ignore=ignore)
    return copy


def build(
    sources: Path, target: Path, what: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the package's own build, as pip does."""
    tree = target / "tree"
    shutil.copytree(sources, tree)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", what, "--dist-dir", target],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def wheel(target: Path) -> tuple[str, set[str]]:
    """Name and contents of the one wheel that was built."""
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path.name, set(archive.namelist())


def test_one_wheel_serves_every_python(sources: Path, tmp_path: Path) -> None:
    """The stable ABI: built once, loaded by 3.11 and all that follow."""
    run = build(sources, tmp_path, "bdist_wheel", PYFLANNEL_REQUIRE_NATIVE="1")
    assert run.returncode == 0, run.stderr
    name, files = wheel(tmp_path)
    assert "-cp311-abi3-linux" in name
    assert EXTENSION in files
    assert "pyflannel/datapath/native/_native.pyi" in files


@pytest.mark.parametrize(
    "environment",
    [{"PYFLANNEL_SKIP_NATIVE": "1"}, {"CC": "/bin/false"}],
    ids=["not wanted", "no compiler"],
)
def test_without_the_extension_there_is_still_a_wheel(
    environment: dict[str, str], sources: Path, tmp_path: Path
) -> None:
    """The python data path does the work then."""
    run = build(sources, tmp_path, "bdist_wheel", **environment)
    assert run.returncode == 0, run.stderr
    _, files = wheel(tmp_path)
    assert EXTENSION not in files
    assert "pyflannel/datapath/python.py" in files


def test_who_requires_the_extension_gets_it_or_an_error(sources: Path, tmp_path: Path) -> None:
    run = build(sources, tmp_path, "bdist_wheel", CC="/bin/false", PYFLANNEL_REQUIRE_NATIVE="1")
    assert run.returncode != 0
    assert not list(tmp_path.glob("*.whl"))


def test_wanting_and_not_wanting_it_is_a_contradiction(sources: Path, tmp_path: Path) -> None:
    both = {"PYFLANNEL_SKIP_NATIVE": "1", "PYFLANNEL_REQUIRE_NATIVE": "1"}
    run = build(sources, tmp_path, "bdist_wheel", **both)
    assert run.returncode != 0
    assert "contradict each other" in run.stderr


def test_the_source_archive_has_all_that_a_build_needs(sources: Path, tmp_path: Path) -> None:
    run = build(sources, tmp_path, "sdist")
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = ROOT / "pyflannel" / "datapath" / "native"
    wanted = {f"pyflannel/datapath/native/{p.name}" for p in native.glob("*.[ch]")}
    assert wanted | {"setup.py"} <= names
    assert not [name for name in names if name.endswith(".so")]
