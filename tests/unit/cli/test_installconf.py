"""`install-conf`: the file is whole, with the source's mode; failures are said as upstream's."""

from __future__ import annotations

import sys

import pytest

from pyflannel.cli import installconf


@pytest.fixture
def install(monkeypatch):
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["/opt/bin/install-conf", *map(str, words)])
        return installconf.main()

    return run


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_the_content_and_the_mode_are_the_source_s(install, tmp_path, mode):
    source, target = tmp_path / "cni-conf.json", tmp_path / "10-flannel.conflist"
    source.write_text("new")
    source.chmod(mode)
    target.write_text("of an older release")
    target.chmod(0o640)
    assert install(source, target) == 0
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == mode
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


def test_a_config_map_s_link_is_followed(install, tmp_path):
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data/cni-conf.json").write_text("new")
    (tmp_path / "cni-conf.json").symlink_to("..data/cni-conf.json")
    assert install(tmp_path / "cni-conf.json", tmp_path / "target") == 0
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("nothing", "target", "No such file"),
        ("source", "nowhere/target", "does not exist"),
        ("source", "directory", "directory"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(install, tmp_path, capsys, source, target, words):
    (tmp_path / "source").write_text("new")
    (tmp_path / "directory").mkdir()
    assert install(tmp_path / source, tmp_path / target) == 1
    said = capsys.readouterr().err
    assert said.startswith(f'error installing "{tmp_path / source}": ')
    assert words in said
    assert said.count("\n") == 1


def test_other_arguments_print_the_usage(install, capsys):
    assert install("one") == 1
    assert capsys.readouterr().err == "usage: /opt/bin/install-conf <src> <dest>\n"
