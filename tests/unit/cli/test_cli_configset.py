"""`pyflannel config set`, over an etcd that has a config and leases already."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.cli import config, configset
from pyflannel.core.errors import ConfigError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.etcd import codec
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PREFIX = "/coreos.com/network"
KEY = codec.config_key(PREFIX)
OLD = b'{"Network": "10.5.0.0/16"}'
NEW = b'{"Network": "10.5.0.0/17", "Backend": {"Type": "vxlan"}}'


@pytest.fixture
def etcd(monkeypatch):
    etcd = FakeEtcd()
    store = FakeStore(etcd)

    def with_store(_options, work):
        return asyncio.run(work(store))

    monkeypatch.setattr(configset, "with_store", with_store)
    monkeypatch.setattr(config, "with_store", with_store)
    etcd.put(KEY, OLD)
    for number in (7, 200):
        key = SubnetKey(v4=IPv4Network(f"10.5.{number}.0/24"))
        attrs = LeaseAttrs(public_ip=IPv4Address(f"192.0.2.{number}"))
        etcd.put(codec.lease_key(PREFIX, key), codec.encode_attrs(attrs))
    return etcd


@pytest.fixture
def new(tmp_path):
    path = tmp_path / "new.json"
    path.write_bytes(NEW)
    return str(path)


@pytest.fixture
def terminal(monkeypatch):
    """Makes a terminal of the standard streams, at which a user types a text."""
    outside, inside = pty.openpty()
    with os.fdopen(inside) as typed, os.fdopen(os.dup(inside), "w", buffering=1) as shown:

        def types(text):
            monkeypatch.setattr(sys, "stdin", typed)
            monkeypatch.setattr(sys, "stdout", shown)
            os.write(outside, text.encode())

        yield types
        monkeypatch.undo()
    os.close(outside)


def test_a_change_is_shown_with_the_leases_that_do_not_fit(etcd, new, capsys):
    assert config.main(["set", new]) == 0
    said = re.sub(" +", " ", capsys.readouterr().out)
    assert 'Network "10.5.0.0/16" -> "10.5.0.0/17"' in said
    assert 'Backend.Type "udp" -> "vxlan"' in said
    assert "1 of 2 leases do not fit" in said
    assert "10.5.200.0/24 of 192.0.2.200" in said
    assert etcd.get(KEY).value == NEW


def test_a_dry_run_shows_it_and_writes_nothing(etcd, new, capsys):
    assert config.main(["set", "--dry-run", new]) == 0
    assert "do not fit" in capsys.readouterr().out
    assert etcd.get(KEY).value == OLD


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("YES\n", 0), ("\n", 1), ("no\n", 1)])
def test_on_a_terminal_one_is_asked(etcd, new, terminal, typed, code):
    terminal(typed)
    assert config.main(["set", new]) == code
    assert etcd.get(KEY).value == (OLD if code else NEW)


def test_yes_is_an_answer_to_that(etcd, new, terminal):
    terminal("n\n")
    assert config.main(["--yes", "set", new]) == 0
    assert etcd.get(KEY).value == NEW


def test_the_first_config_is_written_without_a_question(etcd, new, terminal):
    etcd.delete(KEY)
    terminal("n\n")
    assert config.main(["set", new]) == 0
    assert etcd.get(KEY).value == NEW


def test_the_same_config_is_not_written_again(etcd, tmp_path, capsys):
    path = tmp_path / "same.json"
    path.write_bytes(OLD)
    revision = etcd.get(KEY).mod_revision
    assert config.main(["set", str(path)]) == 0
    assert "already" in capsys.readouterr().out
    assert etcd.get(KEY).mod_revision == revision


def test_what_another_user_wrote_meanwhile_is_not_overwritten(etcd, new, monkeypatch):
    def slow():
        etcd.put(KEY, b"{}")
        return True

    monkeypatch.setattr(configset, "_confirmed", slow)
    with pytest.raises(ConfigError, match="meanwhile"):
        config.main(["set", new])
    assert etcd.get(KEY).value == b"{}"


def test_one_that_is_forced_says_what_comes_of_it(etcd, tmp_path, capsys):
    path = tmp_path / "bad.json"
    path.write_text('{"Network": 5}')
    assert config.main(["set", str(path)]) == 78
    assert etcd.get(KEY).value == OLD
    assert config.main(["set", "--force", str(path)]) == 0
    assert "a node that starts ends with 78" in capsys.readouterr().out
