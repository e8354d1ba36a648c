"""The wheels of `make wheels`: each is installed, and its native core loaded and tried.

The one for aarch64 by Debian's interpreter for that machine, under QEMU's user-mode emulation.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support import arm64
from tests.support.machine import ROOT
from tools import wheels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SITE = Path(sysconfig.get_path("purelib"))
"""Libraries that pyflannel and the tests need; pure Python is the same for every machine."""
HERE, ARM, ANY = ("manylinux2014_x86_64", "manylinux2014_aarch64", "any")
PURE = (
    "tests/unit/datapath/test_native_packets.py",
    "tests/unit/core/test_packet.py",
    "tests/unit/core/test_lease_table.py",
)
ENGINES = "tests/contract/test_datapath_contract.py"
LOOK = """
import platform
import pyflannel
from pyflannel.datapath import native
print(platform.machine(), pyflannel.__file__, native.probe(), sep="\\n")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels by platform."""
    target = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, ROOT / "tools/wheels.py", target], check=True, cwd=ROOT, timeout=1500
    )
    return {path.stem.rpartition("-")[2]: path for path in target.glob("*.whl")}


@pytest.fixture
def installed(
    built: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Path]:
    """A directory into which pip has installed a wheel, as for the machine that it is for."""
    platform = request.param
    only = (
        []
        if platform == ANY
        else [f"--platform={platform}", "--only-binary=:all:", "--python-version=3.11"]
    )
    target = tmp_path / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--no-deps", "--no-index", "--target", target, *only, built[platform]),
        ],
        check=True,
        timeout=120,
    )
    yield target
    shutil.rmtree(target)


def here(arguments: Sequence[str | Path], site: Path, cwd: Path) -> str:
    """Runs this machine's interpreter with what is installed there before everything else."""
    done = subprocess.run(
        [sys.executable, "-B", *arguments],
        env={"PYTHONPATH": f"{site}", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_one_for_each_machine_and_one_for_all(built: dict[str, Path]) -> None:
    tags = {platform: path.stem.split("-")[-3:-1] for platform, path in built.items()}
    assert tags == {HERE: ["cp311", "abi3"], ARM: ["cp311", "abi3"], ANY: ["py3", "none"]}


def test_they_differ_in_the_native_core_alone(built: dict[str, Path]) -> None:
    contents: dict[str, set[str]] = {}
    for platform, path in built.items():
        with zipfile.ZipFile(path) as archive:
            contents[platform] = set(archive.namelist())
    core = "pyflannel/datapath/native/_native.abi3.so"
    assert "pyflannel/datapath/ebpf/flannel.bpf.o" in contents[ANY]
    assert contents[HERE] == contents[ARM] == contents[ANY] | {core}


@pytest.mark.parametrize("installed", [HERE], indirect=True)
def test_the_one_for_this_machine_has_a_core_that_loads(installed: Path, tmp_path: Path) -> None:
    machine, file, found = here(["-c", LOOK], installed, tmp_path).splitlines()
    assert (machine, Path(file).parents[1]) == ("x86_64", installed)
    assert "name='native'" in found


@pytest.mark.parametrize("installed", [ANY], indirect=True)
def test_the_one_for_all_says_that_it_has_none(installed: Path, tmp_path: Path) -> None:
    _, file, found = here(["-c", LOOK], installed, tmp_path).splitlines()
    assert Path(file).parents[1] == installed
    assert "name='native'" not in found
    assert found


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what the tests need, that which is not pure Python, for aarch64."""
    target = tmp_path_factory.mktemp("libraries")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--no-deps", "--target", target, "--python-version=3.11", "--only-binary=:all:"),
            *("--platform=manylinux2014_aarch64", "--platform=manylinux_2_28_aarch64"),
            f"hypothesis=={version('hypothesis')}",
        ],
        check=True,
        timeout=300,
    )
    return target


needs_emulator = pytest.mark.skipif(
    shutil.which(arm64.EMULATOR) is None, reason="qemu-user is not installed (make system does it)"
)


@needs_emulator
@pytest.mark.parametrize("installed", [ARM], indirect=True)
def test_the_one_for_aarch64_has_a_core_that_loads_there(installed: Path, tmp_path: Path) -> None:
    done = arm64.run_python(["-c", LOOK], search=[installed, SITE], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    machine, file, found = done.stdout.splitlines()
    assert (machine, Path(file).parents[1]) == ("aarch64", installed)
    assert "name='native'" in found


@needs_emulator
@pytest.mark.parametrize("installed", [ARM], indirect=True)
@pytest.mark.parametrize("tests", [PURE, (ENGINES,)], ids=["units", "contract"])
def test_it_passes_there_what_needs_no_device(
    installed: Path, libraries: Path, tests: Sequence[str], tmp_path: Path
) -> None:
    """The native core, some of the pure rooms, and the contract between socket pairs."""
    for name in ("tests", "tools", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    done = arm64.run_python(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not device and not python", *tests],
        search=[installed, tmp_path, libraries, SITE],
        cwd=tmp_path,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_a_core_that_asks_for_more_does_not_get_the_tag() -> None:
    """What this system's compiler makes needs the glibc of this system."""
    (core,) = (ROOT / "pyflannel/datapath/native").glob("*.so")
    options = ["--wide", "--file-header", "--dynamic", "--version-info"]
    described = subprocess.run(
        ["readelf", *options, core], check=True, capture_output=True, text=True
    ).stdout
    assert wheels.objection("x86_64", described).startswith("needs glibc 2.")
    assert wheels.objection("aarch64", described) == "is not for aarch64"
