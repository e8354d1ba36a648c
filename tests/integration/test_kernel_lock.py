"""One daemon per subnet file."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError
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


NOBODY = 65534


@contextlib.contextmanager
def as_nobody():
    """Files are opened as an ordinary user meanwhile."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def public():
    """A directory that every user may enter, as /run/flannel is."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.root
@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_local_user_who_locked_the_file_of_a_former_release_keeps_no_daemon_out(
    public: Path, how: int
) -> None:
    """It was 0644; from then on only root can open it."""
    lock = SingleInstance(public / "subnet.env")
    lock.path.touch(0o644)
    with as_nobody():
        file = lock.path.open()
    with file:
        fcntl.flock(file, how | fcntl.LOCK_NB)
        with lock:
            assert lock.path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(DeviceUnavailable, match=f"pid {os.getpid()}"):
                SingleInstance(public / "subnet.env").acquire()
        with SingleInstance(public / "subnet.env"):
            pass
    assert [path.name for path in public.iterdir()] == ["subnet.env.lock"]


@pytest.mark.root
def test_a_local_user_cannot_open_the_lock_but_learns_whether_it_is_held(public: Path) -> None:
    lock = SingleInstance(public / "subnet.env")
    with lock, as_nobody():
        with pytest.raises(PermissionError):
            lock.path.open()
        assert is_held(public / "subnet.env")
    with as_nobody():
        with pytest.raises(PermissionError):
            lock.path.open()
        assert not is_held(public / "subnet.env")


def test_a_file_that_a_former_release_left_open_in_others_is_replaced(tmp_path: Path) -> None:
    """Even where it is not held now: a process that has it open could lock it later."""
    lock = SingleInstance(tmp_path / "subnet.env")
    lock.path.touch(0o644)
    inode = lock.path.stat().st_ino
    with lock:
        assert lock.path.stat().st_ino != inode
        assert lock.path.stat().st_mode & 0o777 == 0o600


def test_a_daemon_of_a_former_release_is_not_overruled(holder, tmp_path: Path) -> None:
    """Its file is 0644, its pid is in it, and it holds the lock."""
    subnet_file = tmp_path / "run" / "subnet.env"
    path = SingleInstance(subnet_file).path
    path.chmod(0o644)
    inode = path.stat().st_ino
    with pytest.raises(DeviceUnavailable, match=f"pid {holder.pid}"):
        SingleInstance(subnet_file).acquire()
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("content", ["precious\n", "4711\nmore\n", "4" * 40])
def test_a_file_that_is_no_lock_of_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    lock = SingleInstance(tmp_path / "package")
    lock.path.write_text(content)
    before = lock.path.stat()
    with pytest.raises(KernelError, match=r"left alone.*--subnet-file"):
        lock.acquire()
    assert lock.path.read_text() == content
    assert lock.path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_fifo_or_a_link_in_its_place_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.lock")
    (tmp_path / "b.lock").symlink_to(tmp_path / "c")
    for name in ("a", "b"):
        with pytest.raises(KernelError):
            SingleInstance(tmp_path / name).acquire()
    assert not (tmp_path / "c").exists()


def test_a_look_at_the_lock_keeps_no_daemon_out(tmp_path: Path) -> None:
    """`status` asks whether it is held while the daemon starts."""
    lock = SingleInstance(tmp_path / "subnet.env")
    lock.acquire()
    lock.release()
    with lock.path.open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        timer = threading.Timer(0.01, lambda: fcntl.flock(look, fcntl.LOCK_UN))
        timer.start()
        with lock:
            pass
        timer.join()


def test_a_stale_pid_in_a_file_that_another_process_locks_is_not_blamed(tmp_path: Path) -> None:
    lock = SingleInstance(tmp_path / "subnet.env")
    with subprocess.Popen(["true"]) as child:
        pass
    lock.path.touch(0o600)
    lock.path.write_text(f"{child.pid}\n")
    with lock.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(DeviceUnavailable, match="lslocks"):
            lock.acquire()
