"""What the service manager gets to hear, on a real unix datagram socket."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager

import pytest

from pyflannel import systemd
from pyflannel.systemd import Notifier, listen_fds, watchdog_interval_s


@contextmanager
def manager(address):
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.setblocking(False)
        yield sock


@pytest.fixture
def heard(tmp_path):
    with manager(str(tmp_path / "notify")) as sock:
        yield sock


@pytest.fixture
def notifier(tmp_path, heard):
    return Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "notify")})


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda n: n.ready(), "READY=1"),
        (lambda n: n.ready("10.5.1.0/24, 3 peers"), "READY=1\nSTATUS=10.5.1.0/24, 3 peers"),
        (lambda n: n.status("waiting for etcd"), "STATUS=waiting for etcd"),
        (lambda n: n.status("two\nlines\tand  more"), "STATUS=two lines and more"),
        (lambda n: n.stopping(), "STOPPING=1"),
        (lambda n: n.stopping("asked to"), "STOPPING=1\nSTATUS=asked to"),
        (lambda n: n.watchdog(), "WATCHDOG=1"),
        (lambda n: n.extend_timeout(30_000_000), "EXTEND_TIMEOUT_USEC=30000000"),
        (lambda n: n.remove_fds("tun"), "FDSTOREREMOVE=1\nFDNAME=tun"),
    ],
)
def test_each_notification_is_one_datagram(notifier, heard, say, message):
    assert say(notifier) is None
    assert heard.recv(4096).decode() == message


def test_a_name_in_the_abstract_namespace_works():
    name = f"pyflannel-test-{os.getpid()}"
    with manager("\0" + name) as sock:
        assert Notifier(f"@{name}").ready() is None
        assert sock.recv(100) == b"READY=1"


def test_without_a_socket_everything_is_silent():
    silent = Notifier.from_environment({})
    assert not silent.is_connected
    assert silent.ready() is None
    assert silent.store_fds("tun", [0]) is None


def test_the_variable_stays_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier.from_environment().ready()
    assert os.environ["NOTIFY_SOCKET"] == str(tmp_path / "gone")


def test_a_failing_send_is_returned_and_logged_as_a_warning_once(tmp_path, caplog):
    lost = Notifier(str(tmp_path / "gone"))
    with caplog.at_level("DEBUG", logger="pyflannel.systemd"):
        assert isinstance(lost.ready(), FileNotFoundError)
        assert isinstance(lost.watchdog(), FileNotFoundError)
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG"]


def test_an_address_of_another_kind_is_returned_as_an_error():
    error = Notifier("vsock:2:1234").ready()
    assert error is not None
    assert "neither a path nor @abstract" in str(error)


def test_a_manager_that_does_not_read_holds_us_up_for_a_moment_only(
    tmp_path, notifier, heard, monkeypatch
):
    monkeypatch.setattr(systemd, "SEND_TIMEOUT_S", 0.01)
    errors = (notifier.status("x" * 1000) for _ in range(5000))
    assert isinstance(next(error for error in errors if error is not None), TimeoutError)


def test_descriptors_are_passed_with_their_name(notifier, heard):
    reader, writer = os.pipe()
    try:
        assert notifier.store_fds("tun-flannel0", [writer]) is None
        message, fds, _flags, _from = socket.recv_fds(heard, 4096, 4)
        assert message == b"FDSTORE=1\nFDNAME=tun-flannel0\nFDPOLL=0"
        assert len(fds) == 1
        os.write(fds[0], b"alive")
        assert os.read(reader, 10) == b"alive"
        os.close(fds[0])
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "ä", "x" * 256])
def test_a_name_the_manager_would_not_take_is_refused(notifier, name):
    with pytest.raises(ValueError, match="cannot be the name"):
        notifier.store_fds(name, [0])


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_the_watchdog_wants_a_sign_of_life_every_half_of_its_limit(environment, interval):
    assert watchdog_interval_s(environment, pid=42) == interval


class TestPassedDescriptors:
    @pytest.fixture
    def passed(self, monkeypatch):
        """Three descriptors in a row, as the manager passes them from 3 on."""
        base = 700  # beyond what the test run has open
        source = os.open(os.devnull, os.O_RDONLY)
        for position in range(3):
            os.dup2(source, base + position, inheritable=True)
        os.close(source)
        monkeypatch.setattr(systemd, "FIRST_FD", base)
        yield base
        for position in range(3):
            os.close(base + position)

    def test_they_come_back_by_name_and_are_not_inherited(self, passed):
        environment = {"LISTEN_PID": "42", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "tun:udp:tun"}
        found = listen_fds(environment, pid=42)
        assert found == {"tun": [passed, passed + 2], "udp": [passed + 1]}
        assert not any(os.get_inheritable(passed + n) for n in range(3))

    def test_without_names_they_are_unknown(self, passed):
        environment = {"LISTEN_PID": "42", "LISTEN_FDS": "2"}
        assert listen_fds(environment, pid=42) == {"unknown": [passed, passed + 1]}

    @pytest.mark.parametrize(
        "environment",
        [
            {},
            {"LISTEN_FDS": "2"},
            {"LISTEN_PID": "41", "LISTEN_FDS": "2"},
            {"LISTEN_PID": "42", "LISTEN_FDS": "two"},
            {"LISTEN_PID": "42"},
        ],
    )
    def test_what_is_not_meant_for_us_is_left_alone(self, passed, environment):
        assert listen_fds(environment, pid=42) == {}
        assert os.get_inheritable(passed)

    def test_a_count_that_is_too_high_gives_what_is_there(self, passed):
        environment = {"LISTEN_PID": "42", "LISTEN_FDS": "4000"}
        found = listen_fds(environment, pid=42)
        assert found == {"unknown": [passed, passed + 1, passed + 2]}


def pipes(count):
    return [os.pipe() for _ in range(count)]


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_what_was_kept_is_taken_once_and_the_rest_is_ended(notifier, heard):
    (a, b), (c, d) = pipes(2)
    try:
        store = systemd.FdStore(notifier, {"tun": [a, c], "old": [d]})
        assert store.take("tun") == a
        assert store.take("tun") is None
        assert not is_open(c)
        store.drop_rest()
        assert not is_open(d)
        assert is_open(a)
        assert heard.recv(4096).decode() == "FDSTOREREMOVE=1\nFDNAME=old"
        with pytest.raises(BlockingIOError):
            heard.recv(4096)
    finally:
        os.close(a)
        os.close(b)


def test_what_is_kept_takes_the_place_of_what_had_the_name(notifier, heard):
    read, write = os.pipe()
    try:
        systemd.FdStore(notifier).keep("tun", read)
        assert heard.recv(4096).decode() == "FDSTOREREMOVE=1\nFDNAME=tun"
        message, fds, _, _ = socket.recv_fds(heard, 4096, 4)
        assert message.decode() == "FDSTORE=1\nFDNAME=tun\nFDPOLL=0"
        assert os.fstat(fds[0]).st_ino == os.fstat(read).st_ino
        os.close(fds[0])
    finally:
        os.close(read)
        os.close(write)
