"""One daemon per subnet file."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.kernel.lock import SingleInstance, is_held, upstream_daemons
from tests.support.machine import until

HOLDER = """
import sys, time
from pyflannel.kernel.lock import SingleInstance
lock = SingleInstance(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run" / "subnet.env")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_daemon_is_told_who_the_first_one_is(holder, tmp_path: Path) -> None:
    """By process id and subnet file; the first one is not disturbed."""
    subnet_file = tmp_path / "run" / "subnet.env"
    for _ in range(2):
        with pytest.raises(DeviceUnavailable) as refusal:
            SingleInstance(subnet_file).acquire()
        assert f"another pyflanneld (pid {holder.pid}) runs with subnet file {subnet_file}" in str(
            refusal.value
        )


def test_the_lock_of_a_killed_daemon_is_free(holder, tmp_path: Path) -> None:
    """However it died; its note is overwritten."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = SingleInstance(tmp_path / "run" / "subnet.env")
    with lock:
        assert lock.path.read_text() == f"{os.getpid()}\n"


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    """The file stays, empty; releasing twice is fine."""
    first, second = (SingleInstance(tmp_path / "subnet.env") for _ in range(2))
    first.acquire()
    first.release()
    first.release()
    assert first.path.read_text() == ""
    with second, pytest.raises(DeviceUnavailable):
        first.acquire()
    first.acquire()
    first.release()


def test_different_subnet_files_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two nodes on one machine."""
    with SingleInstance(tmp_path / "a.env"), SingleInstance(tmp_path / "b.env"):
        pass


def test_children_do_not_inherit_it(tmp_path: Path) -> None:
    """Or a hook that stays in the background would keep the next daemon out."""
    lock = SingleInstance(tmp_path / "subnet.env")
    lock.acquire()
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    lock.release()
    try:
        with lock:
            pass
    finally:
        child.kill()
        child.wait()


def test_a_place_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    """A file where a directory should be."""
    from pyflannel.core.errors import KernelError

    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match=r"subnet\.env\.lock"):
        SingleInstance(tmp_path / "file" / "subnet.env").acquire()


def test_whether_a_daemon_lives_can_be_asked_without_disturbing_it(holder, tmp_path: Path) -> None:
    """Also afterwards, when the file is still there."""
    subnet_file = tmp_path / "run" / "subnet.env"
    assert is_held(subnet_file)
    holder.kill()
    holder.wait()
    assert not is_held(subnet_file)
    assert not is_held(tmp_path / "other" / "subnet.env")


def test_flannels_own_daemon_is_found_by_its_name(tmp_path: Path) -> None:
    """As long as it runs, and in our network namespace only."""
    program = tmp_path / "flanneld"
    shutil.copy("/bin/sleep", program)
    before = upstream_daemons()
    with subprocess.Popen([program, "60"]) as child:
        try:
            # Popen is back a moment before the kernel has given the process its new name.
            until("it is found", lambda: upstream_daemons() == sorted([*before, child.pid]), 2)
        finally:
            child.kill()
    assert upstream_daemons() == before
