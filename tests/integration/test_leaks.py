"""That a test which leaves something behind is found, by tests that do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

TESTS = """
import asyncio, os, subprocess, threading
import pytest

def test_task():
    async def main():
        asyncio.get_running_loop().later = asyncio.create_task(asyncio.sleep(60))
    asyncio.run(main())

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True, name="forgotten").start()

def test_descriptor():
    os.open("/dev/null", os.O_RDONLY)

def test_child():
    subprocess.Popen(["sleep", "10"]).returncode = 0

def test_clean():
    subprocess.run(["true"])

@pytest.fixture(scope="module")
def wide():
    child = subprocess.Popen(["sleep", "10"])
    yield child
    child.kill()
    child.wait()

def test_a_fixture_of_the_module_is_no_leak(wide):
    assert wide.poll() is None

def test_what_comes_beside_it_is_found_at_its_end(wide):
    os.open("/dev/zero", os.O_RDONLY)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "test_that_leaves_things.py").write_text(TESTS)
    (folder / "conftest.py").write_text(
        "import tests.support.leaks as leaks\nleaks.GRACE_S = 0.2\n"
        "def pytest_configure(config): config.pluginmanager.register(leaks.Leaks())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", f"--rootdir={folder}",
         "-Wignore", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    # The children that were left.
    for pid in re.findall(r"^(?:E +)?child: (\d+) sleep", done.stdout, re.MULTILINE):
        subprocess.run(["kill", pid], check=False)
    return done.stdout


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("test_task", r"left running: <Task"),
        ("test_thread", r"thread: forgotten"),
        ("test_descriptor", r"descriptor: \d+ -> /dev/null"),
        ("test_child", r"child: \d+ sleep 10"),
        ("test_what_comes_beside_it_is_found_at_its_end", r"descriptor: \d+ -> /dev/zero"),
    ],
)
def test_it_is_found_and_named(printed, test, words):
    assert re.search(rf"^(FAILED|ERROR) \S+::{test}\b", printed, re.MULTILINE), printed
    assert re.search(words, printed), printed


@pytest.mark.parametrize("test", ["test_clean", "test_a_fixture_of_the_module_is_no_leak"])
def test_what_leaves_nothing_passes(printed, test):
    assert not re.search(rf"^(FAILED|ERROR) \S+::{test}\b", printed, re.MULTILINE), printed
    assert re.search(rf"^PASSED \S+::{test}\b", printed, re.MULTILINE), printed
