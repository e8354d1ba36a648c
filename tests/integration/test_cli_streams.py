"""Standard streams that are closed, full or unread, and Ctrl-C during the imports: no defects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOOL = [sys.executable, "-m", "pyflannel.cli.pyflannel"]
DAEMON = [sys.executable, "-m", "pyflannel.cli.pyflanneld"]
SAMPLE = str(Path(__file__).parents[2] / "config/vxlan.json")
PRINTING = [["--help"], ["leases", "--help"], ["config", "check", SAMPLE], ["--version"]]


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"], autouse=True)
def _buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


def run(command: list[str], **more) -> subprocess.CompletedProcess[str]:
    more.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        command, stderr=subprocess.PIPE, text=True, timeout=30, check=False, **more
    )


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_full_disk_behind_stdout_is_told(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run([*TOOL, *words], stdout=full)
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1] == (
        "pyflannel: write to standard output: No space left on device"
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_reader_who_has_seen_enough_is_no_failure(words: list[str]) -> None:
    """`| head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run([*TOOL, *words], stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def without(number: int, command: list[str]) -> list[str]:
    """The command with a standard stream closed; a shell does that."""
    return ["sh", "-c", f'exec "$@" {number}>&-', "sh", *command]


def test_a_closed_stdout_is_told_before_anything_is_done() -> None:
    done = run(without(1, [*TOOL, "status"]))
    assert done.returncode == 69
    assert "standard output is closed" in done.stderr


@pytest.mark.parametrize("number", [0, 1, 2])
def test_with_a_closed_stream_the_daemon_says_what_it_says_otherwise(number: int) -> None:
    done = run(without(number, [*DAEMON, "-nope"]))
    assert done.returncode == 2
    assert ("-nope" in done.stderr) == (number != 2)


def test_a_closed_stderr_is_no_defect_of_the_tool() -> None:
    assert run(without(2, [*TOOL, "nosuch"])).returncode == 2


INTERRUPTED = """
import os, signal, sys
sys.argv = ["/usr/bin/pyflannel", "leases"]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Finder())
from pyflannel.cli.pyflannel import main
main()
"""


@pytest.mark.parametrize(
    "module", ["pyflannel.core.errors", "pyflannel.cli.leases", "pyflannel.core.options"]
)
def test_ctrl_c_during_the_imports_ends_without_a_traceback(module: str) -> None:
    done = run([sys.executable, "-c", INTERRUPTED.format(module=module)])
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_prefix_that_is_no_utf8_is_shown_and_used() -> None:
    """etcd's keys are bytes."""
    command = [*TOOL, "config", "get", "--etcd-endpoints=http://127.0.0.1:1"]
    done = run([*command, b"--etcd-prefix=/\xff"])
    assert done.returncode == 69
    assert "\\xff/config" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--seconds", "0"],
        ["bench", "--seconds=nan"],
        ["bench", "--seconds=inf"],
        ["ping", "--count", "0"],
        ["ping", "--deadline", "0"],
        ["ping", "--deadline=-1"],
    ],
    ids=" ".join,
)
def test_numbers_that_make_no_sense_are_a_bad_command_line(words: list[str]) -> None:
    done = run([*TOOL, "lab", *words])
    assert done.returncode == 2
    assert words[1].partition("=")[0] in done.stderr
    assert "expected" in done.stderr
