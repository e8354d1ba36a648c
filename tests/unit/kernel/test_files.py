"""Files written whole or not at all, and read without surprises."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.kernel import files
from pyflannel.kernel.files import (
    FileMissing,
    FileText,
    FileUnreadable,
    inside,
    read_text_if_exists,
    write_atomically,
)


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def strict_umask():
    before = os.umask(0o077)
    yield
    os.umask(before)


class TestWriting:
    def test_the_content_is_there_and_nothing_else_is(self, tmp_path):
        write_atomically(tmp_path / "subnet.env", b"A=1\n")
        assert (tmp_path / "subnet.env").read_bytes() == b"A=1\n"
        assert names_in(tmp_path) == ["subnet.env"]

    def test_a_new_file_is_0644_even_under_a_strict_umask(self, tmp_path, strict_umask):
        write_atomically(tmp_path / "subnet.env", b"")
        assert mode_of(tmp_path / "subnet.env") == 0o644

    def test_an_existing_files_mode_is_kept(self, tmp_path, strict_umask):
        path = tmp_path / "subnet.env"
        path.write_bytes(b"old")
        for mode in (0o600, 0o666, 0o640):
            path.chmod(mode)
            write_atomically(path, b"new")
            assert mode_of(path) == mode

    def test_another_default_mode_can_be_asked_for(self, tmp_path):
        write_atomically(tmp_path / "key", b"", default_mode=0o400)
        assert mode_of(tmp_path / "key") == 0o400

    def test_the_file_is_replaced_not_rewritten(self, tmp_path):
        """A process that has the old one open goes on reading the old content."""
        path = tmp_path / "subnet.env"
        path.write_bytes(b"old")
        with path.open("rb") as reader:
            write_atomically(path, b"new")
            assert reader.read() == b"old"
        assert path.read_bytes() == b"new"

    def test_missing_directories_are_made_with_the_umask(self, tmp_path, strict_umask):
        write_atomically(tmp_path / "run" / "flannel" / "subnet.env", b"x")
        assert mode_of(tmp_path / "run") == 0o700
        assert mode_of(tmp_path / "run" / "flannel") == 0o700

    def test_unless_they_are_not_to_be_made(self, tmp_path):
        with pytest.raises(KernelError, match="ENOENT"):
            write_atomically(tmp_path / "no" / "file", b"x", make_parents=False)
        assert not (tmp_path / "no").exists()

    def test_a_symbolic_link_is_replaced_and_its_target_left_alone(self, tmp_path):
        (tmp_path / "target").write_bytes(b"precious")
        (tmp_path / "target").chmod(0o600)
        (tmp_path / "link").symlink_to("target")
        write_atomically(tmp_path / "link", b"new")
        assert not (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_bytes() == b"precious"
        assert mode_of(tmp_path / "link") == 0o644

    def test_a_bare_name_is_in_the_current_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_atomically("subnet.env", b"x")
        assert (tmp_path / "subnet.env").read_bytes() == b"x"

    def test_the_longest_name_there_can_be_still_works(self, tmp_path):
        for name in ("a" * 255, "ä" * 127):
            write_atomically(tmp_path / name, b"x")
            assert (tmp_path / name).read_bytes() == b"x"

    def test_short_writes_are_continued(self, tmp_path, monkeypatch):
        real = os.write
        monkeypatch.setattr(files.os, "write", lambda fd, data: real(fd, bytes(data[:3])))
        write_atomically(tmp_path / "f", b"0123456789")
        assert (tmp_path / "f").read_bytes() == b"0123456789"

    def test_file_then_rename_then_directory_reach_the_disk_in_this_order(
        self, tmp_path, monkeypatch
    ):
        order = []
        sync, rename = os.fsync, Path.rename

        def spy_sync(descriptor):
            order.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            sync(descriptor)

        def spy_rename(path, target):
            order.append("rename")
            return rename(path, target)

        monkeypatch.setattr(files.os, "fsync", spy_sync)
        monkeypatch.setattr(Path, "rename", spy_rename)
        write_atomically(tmp_path / "f", b"x")
        assert order == ["file", "rename", "directory"]


class TestFailingToWrite:
    @pytest.mark.parametrize(
        ("number", "kind", "hint"),
        [
            (errno.ENOSPC, DeviceUnavailable, "free some space"),
            (errno.EDQUOT, DeviceUnavailable, "quota"),
            (errno.EROFS, DeviceUnavailable, "read-only"),
            (errno.EACCES, NotPermitted, "may this user write"),
            (errno.EPERM, NotPermitted, "immutable"),
            (errno.ENAMETOOLONG, KernelError, "ENAMETOOLONG"),
        ],
    )
    @pytest.mark.parametrize("where", ["open", "write", "fsync"])
    def test_the_error_names_path_and_way_out_and_nothing_is_lost(
        self, tmp_path, monkeypatch, number, kind, hint, where
    ):
        path = tmp_path / "subnet.env"
        path.write_bytes(b"old")

        def fail(*_arguments, **_named):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, where, fail)
            with pytest.raises(KernelError, match=hint) as raised:
                write_atomically(path, b"new")
        assert type(raised.value) is kind
        assert raised.value.errno == number
        assert str(path) in str(raised.value)
        assert path.read_bytes() == b"old"
        assert names_in(tmp_path) == ["subnet.env"]

    def test_a_directory_in_the_place_of_the_file_is_told(self, tmp_path):
        (tmp_path / "subnet.env").mkdir()
        with pytest.raises(KernelError, match="a directory stands in the place"):
            write_atomically(tmp_path / "subnet.env", b"x")
        assert names_in(tmp_path) == ["subnet.env"]

    def test_a_file_in_the_place_of_the_directory_is_told(self, tmp_path):
        (tmp_path / "run").write_bytes(b"")
        with pytest.raises(KernelError, match="a file stands in the place of the directory"):
            write_atomically(tmp_path / "run" / "subnet.env", b"x")

    def test_the_temporary_file_goes_even_if_we_are_interrupted(self, tmp_path, monkeypatch):
        def interrupt(_descriptor):
            raise KeyboardInterrupt

        monkeypatch.setattr(files.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "f", b"x")
        assert names_in(tmp_path) == []

    def test_a_directory_that_cannot_be_synced_is_no_failure(self, tmp_path, monkeypatch):
        real = os.fsync

        def picky(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "no")
            real(descriptor)

        monkeypatch.setattr(files.os, "fsync", picky)
        write_atomically(tmp_path / "f", b"x")
        assert (tmp_path / "f").read_bytes() == b"x"

    @pytest.mark.root
    @pytest.mark.slow
    @pytest.mark.parametrize(("options", "kind"), [("size=4k", "ENOSPC"), ("size=64k,ro", "EROFS")])
    def test_on_a_real_full_or_read_only_file_system(self, tmp_path, options, kind):
        program = (
            "import sys\n"
            "from pyflannel.core.errors import DeviceUnavailable\n"
            "from pyflannel.kernel.files import write_atomically\n"
            "try:\n    write_atomically(sys.argv[1] + '/f', b'x' * 100_000)\n"
            "except DeviceUnavailable as error:\n    print(error)\n"
            "import os; print(os.listdir(sys.argv[1]))\n"
        )
        script = f'mount -t tmpfs -o {options} none "$1" && exec "$2" -c "$3" "$1"'
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", tmp_path, sys.executable, program],
            capture_output=True,
            text=True,
            check=True,
        )
        message, left = ended.stdout.splitlines()
        assert kind in message
        assert left == "[]"


class TestReading:
    def test_a_text_file_is_read(self, tmp_path):
        (tmp_path / "f").write_bytes("A=ä\n".encode())
        assert read_text_if_exists(tmp_path / "f") == FileText("A=ä\n", whole=True)

    def test_a_torn_one_is_read_and_marked(self, tmp_path):
        (tmp_path / "f").write_bytes(b"A=1\nB=")
        assert read_text_if_exists(tmp_path / "f") == FileText("A=1\nB=", whole=False)

    def test_a_missing_one_is_missing(self, tmp_path):
        assert isinstance(read_text_if_exists(tmp_path / "no" / "f"), FileMissing)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"A=1\n\0\0", "NUL byte at offset 4"),
            (b"A=\xff\n", "bad UTF-8 at offset 2"),
            (b"x" * (files.MOST_BYTES + 1), "longer than"),
        ],
    )
    def test_what_is_no_text_is_unreadable_with_the_reason(self, tmp_path, content, reason):
        (tmp_path / "f").write_bytes(content)
        found = read_text_if_exists(tmp_path / "f")
        assert isinstance(found, FileUnreadable)
        assert reason in found.reason
        assert str(tmp_path / "f") in found.reason

    def test_a_directory_or_a_fifo_is_told_and_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path, tmp_path / "fifo"):
            found = read_text_if_exists(path)
            assert isinstance(found, FileUnreadable)
            assert "not a regular file" in found.reason

    def test_a_loop_of_links_is_unreadable(self, tmp_path):
        (tmp_path / "f").symlink_to("f")
        found = read_text_if_exists(tmp_path / "f")
        assert isinstance(found, FileUnreadable)
        assert "ELOOP" in found.reason

    def test_no_permission_is_unreadable(self, tmp_path, monkeypatch):
        def refuse(*_arguments):
            raise PermissionError(errno.EACCES, "no")

        monkeypatch.setattr(files.os, "open", refuse)
        found = read_text_if_exists(tmp_path / "f")
        assert isinstance(found, FileUnreadable)
        assert "EACCES" in found.reason


class TestInside:
    def test_plain_paths_are_below_the_root(self, tmp_path: Path) -> None:
        assert inside(tmp_path, "/a/./b//c") == tmp_path / "a/b/c"
        assert inside("/", "etc/x") == Path("/etc/x")

    def test_dots_do_not_leave_the_root(self, tmp_path: Path) -> None:
        assert inside(tmp_path, "a/../../../../b") == tmp_path / "b"

    def test_links_are_followed_as_from_inside(self, tmp_path: Path) -> None:
        (tmp_path / "usr/lib").mkdir(parents=True)
        (tmp_path / "lib").symlink_to("usr/lib")
        (tmp_path / "usr/lib/up").symlink_to("../../..")
        (tmp_path / "abs").symlink_to("/lib/up/lib")
        assert inside(tmp_path, "/lib/x") == tmp_path / "usr/lib/x"
        assert inside(tmp_path, "/lib/up/x") == tmp_path / "x"
        assert inside(tmp_path, "/abs/x") == tmp_path / "usr/lib/x"

    def test_a_circle_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("/b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(KernelError, match="circle"):
            inside(tmp_path, "a/x")


@pytest.mark.parametrize("place", ["fifo", "socket", "link to fifo", "link to /dev/null"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, place: str) -> None:
    """`--docker-opts-file=/dev/null` must not make a file of the machine's /dev/null."""
    path = tmp_path / "target"
    target = Path("/dev/null") if "null" in place else path
    if "fifo" in place:
        os.mkfifo(target)
    elif place == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(target))
    if "link" in place:
        path = tmp_path / "link"
        path.symlink_to(target)
    with pytest.raises(KernelError, match=r"left alone.*another path"):
        write_atomically(path, b"x")
    assert path.is_symlink() == ("link" in place)
    assert not target.is_file()
    assert len(list(tmp_path.iterdir())) <= 2


def test_a_private_file_is_for_us_alone_with_any_mode_before(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lease.json"
    write_atomically(path, b"1", private=True)
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    path.chmod(0o644)
    write_atomically(path, b"2", private=True)
    assert mode_of(path) == 0o600
