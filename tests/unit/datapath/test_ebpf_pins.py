"""Where programs are pinned: a place that a local user could prepare is not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyflannel.datapath.ebpf import pins, survey


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As bpffs mounted with mode 1777."""
    made = tmp_path / "bpf"
    made.mkdir()
    made.chmod(0o1777)
    return made


@pytest.fixture
def directory(base: Path) -> Path:
    return pins.pin_directory(str(base))


def test_it_is_made_for_us_alone_and_goes_with_its_pins(directory: Path) -> None:
    former = os.umask(0)
    try:
        assert pins.make(directory) == ""
    finally:
        os.umask(former)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_mode & 0o022 == 0
    assert pins.make(directory) == ""
    assert pins.is_there(directory)
    (directory / "link-x").touch()
    assert pins.remove(directory)
    assert not directory.exists()
    assert not pins.is_there(directory)
    assert not pins.remove(directory)


@pytest.mark.parametrize("level", ["pyflannel", "namespace"])
def test_a_link_to_somewhere_else_is_neither_used_nor_cleaned(
    base: Path, directory: Path, tmp_path: Path, level: str
) -> None:
    """`/sys/fs/bpf/pyflannel -> /x`, and in it `<namespace> -> /etc`: root deleted /etc's files."""
    precious = tmp_path / "etc"
    precious.mkdir()
    (precious / "shadow").write_text("precious")
    if level == "pyflannel":
        trap = tmp_path / "trap"
        trap.mkdir()
        (trap / directory.name).symlink_to(precious)
        (base / "pyflannel").symlink_to(trap)
    else:
        directory.parent.mkdir(0o755)
        directory.symlink_to(precious)
    assert "not a directory" in pins.make(directory)
    assert not pins.is_there(directory)
    assert not pins.remove(directory)
    assert (precious / "shadow").read_text() == "precious"


def test_a_directory_that_others_may_write_is_not_used(directory: Path) -> None:
    assert pins.make(directory) == ""
    directory.parent.chmod(0o777)
    assert "others may write" in pins.make(directory)
    assert not pins.remove(directory)
    directory.parent.chmod(0o755)
    directory.chmod(0o770)
    assert "others may write" in pins.make(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away")
def test_a_directory_of_another_user_is_not_used(directory: Path) -> None:
    assert pins.make(directory) == ""
    os.chown(directory.parent, 65534, 65534)
    assert "belongs to user 65534" in pins.make(directory)
    assert not pins.is_there(directory)


def test_without_the_sticky_bit_any_user_could_rename_it(base: Path, directory: Path) -> None:
    base.chmod(0o777)
    assert "any user may rename" in pins.make(directory)


def test_a_place_that_may_not_be_looked_at_is_no_defect(base: Path, directory: Path) -> None:
    """Pins of a root daemon, and a start as another user."""
    assert pins.make(directory) == ""
    if os.geteuid() != 0:
        base.chmod(0)
        assert not pins.is_there(directory)
        base.chmod(0o755)
        return
    base.chmod(0)
    os.seteuid(65534)
    try:
        assert not pins.is_there(directory)
        assert not pins.remove(directory)
        assert "Permission" in pins.make(directory)
    finally:
        os.seteuid(0)
        base.chmod(0o755)


@pytest.mark.parametrize(
    ("pinned", "other"),
    [
        ([], False),
        (["peers-8-40-65536"], False),
        (["peers-8-32-65536"], True),
        (["peers-8-32-65536", "peers-8-40-65536"], False),
        (["counters-4-8-16"], False),
    ],
)
def test_another_releases_table_is_told_by_its_shape(tmp_path, monkeypatch, pinned, other):
    """As long as there is none of ours: afterwards it stays for the way back."""
    directory = tmp_path / "pyflannel" / "1"
    directory.mkdir(parents=True, mode=0o700)
    for name in pinned:
        (directory / name).touch()
    monkeypatch.setattr(survey.pins, "pin_directory", lambda: directory)
    assert survey._is_other_release("peers-8-40-65536") is other
