"""What the lab says when it is not allowed to be."""

from __future__ import annotations

import pytest

from pyflannel.lab import rootless
from pyflannel.lab.errors import LabNotPermitted


@pytest.fixture
def knobs(tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    monkeypatch.setattr(rootless, "_KNOBS", {str(clone): "1"})
    monkeypatch.setattr(rootless, "_LIMIT", tmp_path / "limit")
    return tmp_path


def test_without_rights_the_ways_to_them_are_named(monkeypatch):
    monkeypatch.setattr(rootless, "has_rights", lambda: False)
    with pytest.raises(LabNotPermitted, match="CAP_SYS_ADMIN and CAP_NET_ADMIN") as raised:
        rootless.require_rights()
    assert raised.value.exit_code == 77


def test_a_distributions_switch_is_named(knobs):
    (knobs / "clone").write_text("0\n")
    assert rootless.reason() == f" ({knobs / 'clone'} is 0, not 1)"


def test_a_limit_of_none_is_named(knobs):
    (knobs / "limit").write_text("0\n")
    assert rootless.reason() == f" ({knobs / 'limit'} is 0)"


def test_nothing_is_blamed_that_allows_it(knobs):
    (knobs / "clone").write_text("1\n")
    (knobs / "limit").write_text("96365\n")
    assert rootless.reason() == ""
