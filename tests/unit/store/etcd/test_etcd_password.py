"""Where the password of the etcd user comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.core.errors import EXIT_CONFIG, StoreConfigError
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd.password import Password

SECRET = "S3cret"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "etcd-password"
    path.touch(0o600)
    path.write_text(f"{SECRET}\n")
    return path


def named(path: Path | str, **more: str) -> EtcdOptions:
    return EtcdOptions(username="u", password_file=str(path), **more)


@pytest.mark.parametrize("content", ["S3cret", "S3cret\n", "S3cret\r\n", " a b ", "pä\tss"])
def test_it_is_the_one_line_of_the_file(file: Path, content: str) -> None:
    file.write_bytes(content.encode())
    assert Password(named(file), {}).read() == content.rstrip("\r\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"x" * 5000, b"\xff", b"a\0b"])
def test_a_file_that_holds_none_is_refused_by_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(StoreConfigError, match="--etcd-password-file") as caught:
        Password(named(file), {})
    assert str(file) in str(caught.value)
    assert caught.value.exit_code == EXIT_CONFIG


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(StoreConfigError, match="--etcd-password-file"):
            Password(named(path), {})


def test_two_passwords_or_none_to_log_in_with_are_refused(file: Path) -> None:
    with pytest.raises(StoreConfigError, match="both given"):
        Password(named(file, password=SECRET), {})
    with pytest.raises(StoreConfigError, match="--etcd-username"):
        Password(EtcdOptions(password_file=str(file)), {})


def test_systemds_credential_is_used_where_nothing_else_is_said(file: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(file.parent)}
    assert Password(EtcdOptions(username="u"), environ).read() == SECRET
    assert Password(EtcdOptions(username="u", password="given"), environ).read() == "given"
    assert not Password(EtcdOptions(), environ)
    assert not Password(EtcdOptions(username="u"), {"CREDENTIALS_DIRECTORY": "/nonexistent"})
    assert not Password(EtcdOptions(username="u"), {})


def test_an_exchanged_password_is_used_at_the_next_login(file: Path) -> None:
    password = Password(named(file), {})
    file.write_text("other\n")
    assert password.read() == "other"


def test_while_the_file_cannot_be_read_the_last_one_is_used_and_that_is_said_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    password = Password(named(file), {})
    file.unlink()
    assert [password.read() for _ in range(3)] == [SECRET] * 3
    assert len(caplog.records) == 1
    assert SECRET not in caplog.text


def test_a_file_that_others_may_read_is_a_warning(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Password(named(file), {})
    assert not caplog.records
    file.chmod(0o640)
    Password(named(file), {})
    assert "others may read" in caplog.text
