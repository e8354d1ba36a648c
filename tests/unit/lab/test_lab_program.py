"""What one types to start this pyflannel."""

from __future__ import annotations

import pytest

from pyflannel.lab.program import program


@pytest.fixture
def tree(tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/pyflannel").touch(mode=0o755)
    return tmp_path


def typed(tree, path, directory):
    return program(str(tree / ".venv/bin/python"), path=str(path), directory=directory)


def test_its_name_where_it_is_in_path(tree):
    assert typed(tree, tree / ".venv/bin", tree) == "pyflannel"


def test_its_way_from_here_where_it_is_below(tree):
    assert typed(tree, "/nowhere", tree) == ".venv/bin/pyflannel"


def test_its_whole_path_elsewhere(tree):
    assert typed(tree, "/nowhere", tree / "docs") == str(tree / ".venv/bin/pyflannel")


def test_another_one_in_path_is_not_meant(tree):
    (tree / "other").mkdir()
    (tree / "other/pyflannel").touch(mode=0o755)
    assert typed(tree, tree / "other", tree) == ".venv/bin/pyflannel"


def test_its_name_where_it_was_started_as_a_module(tree):
    (tree / ".venv/bin/pyflannel").unlink()
    assert typed(tree, "/nowhere", tree) == "pyflannel"
