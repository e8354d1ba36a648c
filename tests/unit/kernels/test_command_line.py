"""What `make kernels ARGS=…` means, and where its files go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.__main__ import KERNELS, parse, pytest_step
from tests.kernels.cache import ROOT, cache_folder
from tests.kernels.report import read_junit


def test_without_words_it_is_everything():
    wanted = parse([])
    assert (wanted.kernels, wanted.tests, wanted.command) == (KERNELS, (), "")
    assert wanted.record


def test_kernels_and_tests_may_be_mixed():
    one = "tests/unit/kernels/test_command_line.py::test_x"
    wanted = parse(["6.1", one, "newest", "-j", "1"])
    assert (wanted.kernels, wanted.tests, wanted.jobs) == (("6.1", "newest"), (one,), 1)
    assert not wanted.record


def test_a_part_of_the_whole_is_written_down_if_that_is_asked_for():
    module = "tests/unit/kernels/test_command_line.py"
    assert parse(["6.1", "--record", module]).record
    assert not parse(["6.1", module]).record
    assert parse(["6.1"]).record


def test_what_is_behind_the_dashes_is_a_command():
    assert parse(["6.1", "--", "a; b"]).command == "a; b"
    assert parse(["--", "echo", "a b"]).command == "echo 'a b'"
    assert not parse(["--", "true"]).record


@pytest.mark.parametrize(
    "words",
    [
        ["tests/no_such.py"],
        ["6.1.2"],
        ["tests/unit", "--", "true"],
        ["--record", "tests/unit/kernels/test_command_line.py::test_x"],
        ["--record", "--", "true"],
    ],
)
def test_a_mistake_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err or len(words) > 1


def test_a_test_that_is_asked_for_runs_whether_it_is_marked_or_not():
    assert "-m guest" in pytest_step("tests/a.py", marked=True).command
    assert "-m guest" not in pytest_step("tests/a.py::test_b[c d]", marked=False).command
    assert pytest_step("tests/a.py::test_b[c d]", marked=False).command.endswith(
        "'tests/a.py::test_b[c d]'"
    )


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"PYFLANNEL_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/pyflannel"),
        ({}, "/h/.cache/pyflannel"),
        ({"PYFLANNEL_CACHE": "", "XDG_CACHE_HOME": ""}, "/h/.cache/pyflannel"),
    ],
)
def test_what_is_built_lies_in_the_one_folder_that_make_clean_names(
    environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("PYFLANNEL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)
    shown = subprocess.run(
        ["make", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"rm -rf {folder}\n" in shown.stdout.replace('"', "")


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Plays apt-get, with these sources; `$(…)` has been filled in."""

    def play(*lines: str) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "apt-get"
        program.write_text("#!/bin/sh\ncat <<END\n" + "".join(f"{x}\n" for x in lines) + "END\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
        return subprocess.run(
            [ROOT / "tools/debian-mirror.sh"], capture_output=True, text=True, check=False
        )

    for name in ("PYFLANNEL_DEBIAN_MIRROR", "PYFLANNEL_DEBIAN_SECURITY"):
        monkeypatch.delenv(name, raising=False)
    return play


def suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2]
    pytest.skip("this system has no code name (VERSION_CODENAME)")


def test_the_mirror_is_that_of_debian_itself_not_of_other_sources(apt):
    done = apt(
        f"{suite()} stable http://others.invalid/debian/",
        f"{suite()}-security main http://security.invalid/x/",
        f"{suite()} main http://mirror.invalid/debian/",
        f"{suite()} main http://second.invalid/debian/",
    )
    assert done.stdout == "main http://mirror.invalid/debian\nsecurity http://security.invalid/x\n"


def test_a_machine_without_updates_has_one_mirror(apt):
    assert apt(f"{suite()} main http://m.invalid/d").stdout == "main http://m.invalid/d\n"


def test_without_a_mirror_it_says_how_to_give_one(apt, monkeypatch: pytest.MonkeyPatch):
    done = apt(f"{suite()} stable http://others.invalid/debian/")
    assert done.returncode == 69
    assert "PYFLANNEL_DEBIAN_MIRROR" in done.stderr
    monkeypatch.setenv("PYFLANNEL_DEBIAN_MIRROR", "http://given.invalid/d")
    assert apt().stdout == "main http://given.invalid/d\n"


def test_a_test_in_a_guest_may_record_figures(tmp_path: Path):
    """With the options that guests get; the newer family of reports refuses it."""
    test = tmp_path / "test_it.py"
    test.write_text("def test_a(record_property):\n    record_property('figure: x', 3)\n")
    step = pytest_step(str(test), marked=False)
    command = step.command.replace(".venv/bin/python", sys.executable)
    config = tmp_path / "pytest.ini"
    config.write_text("[pytest]\nfilterwarnings = error\n")
    subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "OUT": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert read_junit((tmp_path / "junit.xml").read_text()).figures == {"x": 3.0}
