"""What stands where a unix socket is wanted, and what becomes of it."""

from __future__ import annotations

import grp
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pyflannel.core.errors import ConfigError, DeviceUnavailable
from pyflannel.kernel import unixsocket
from pyflannel.kernel.unixsocket import Standing, look


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


@pytest.fixture
def open_sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bind(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    return made


def listen(path: Path) -> socket.socket:
    return unixsocket.listen(str(path), purpose="status socket", option="--status-socket")


def a_file(path: Path, _: ExitStack) -> None:
    path.write_text("precious")


def a_directory(path: Path, _: ExitStack) -> None:
    path.mkdir()


def a_link_to_a_dead_socket_of_ours(path: Path, _: ExitStack) -> None:
    target = path.with_name("target")
    listen(target).close()
    path.symlink_to(target)


def a_dangling_link(path: Path, _: ExitStack) -> None:
    path.symlink_to(path.with_name("nothing"))


def a_fifo(path: Path, _: ExitStack) -> None:
    os.mkfifo(path)


def a_datagram_socket_in_use(path: Path, stack: ExitStack) -> None:
    stack.enter_context(closing(bind(path, socket.SOCK_DGRAM)))
    path.chmod(0o600)


def a_socket_with_a_full_backlog(path: Path, stack: ExitStack) -> None:
    made = stack.enter_context(closing(bind(path)))
    path.chmod(0o600)
    made.listen(0)
    waiting = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
    waiting.connect(str(path))


def a_dead_socket_of_another_program(path: Path, _: ExitStack) -> None:
    bind(path).close()
    path.chmod(0o777)


FOREIGN: list[Callable[[Path, ExitStack], None]] = [
    a_file,
    a_directory,
    a_link_to_a_dead_socket_of_ours,
    a_dangling_link,
    a_fifo,
    a_datagram_socket_in_use,
    a_socket_with_a_full_backlog,
    a_dead_socket_of_another_program,
]


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_what_is_not_a_dead_socket_of_ours_stays_as_it_is(
    make: Callable[[Path, ExitStack], None], path: Path, open_sockets: ExitStack
) -> None:
    make(path, open_sockets)
    before = path.lstat()
    with pytest.raises(DeviceUnavailable, match=r"left alone.*--status-socket") as caught:
        listen(path)
    assert str(path) in str(caught.value)
    assert path.lstat() == before
    assert not unixsocket.remove_dead(path)


def test_a_dead_socket_of_ours_is_replaced(path: Path) -> None:
    listen(path).close()
    assert look(path) is Standing.DEAD
    with listen(path):
        assert look(path) is Standing.ALIVE


def test_no_other_user_may_ever_connect(path: Path) -> None:
    """Not even under a umask that lets everybody; and the directory is made if it is missing."""
    inside = path.parent / "run" / "s.sock"
    former = os.umask(0)
    try:
        with listen(inside):
            assert stat.S_IMODE(inside.stat().st_mode) == 0o600
            assert stat.S_IMODE(inside.parent.stat().st_mode) == 0o755
    finally:
        os.umask(former)


def test_a_place_that_cannot_be_is_explained(path: Path) -> None:
    path.write_text("")
    with pytest.raises(DeviceUnavailable, match=r"a file.*--status-socket"):
        listen(path / "s.sock")
    with pytest.raises(DeviceUnavailable, match=r"too long.*--status-socket"):
        listen(path.parent / ("x" * 120))


def test_nothing_there_is_nothing_to_remove(path: Path) -> None:
    assert look(path) is Standing.NOTHING
    assert not unixsocket.remove_dead(path)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_group_may_be_let_in(path: Path, umask: int) -> None:
    """The last one is our unit's."""
    group = os.getgid()
    former = os.umask(umask)
    try:
        with unixsocket.listen(str(path), purpose="x", option="-x", group=group):
            found = path.stat()
    finally:
        os.umask(former)
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == group
    assert look(path) is Standing.DEAD


def test_a_group_that_may_not_be_given_is_explained_and_leaves_no_socket(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(DeviceUnavailable, match="SupplementaryGroups"):
        unixsocket.listen(str(path), purpose="x", option="-x", group=4)
    assert look(path) is Standing.NOTHING


def test_groups_are_given_by_name_or_number() -> None:
    assert unixsocket.group_id("4711") == 4711
    assert unixsocket.group_id(grp.getgrgid(0).gr_name) == 0
    with pytest.raises(ConfigError, match="no group no such"):
        unixsocket.group_id("no such")
