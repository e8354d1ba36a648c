"""Completion: everything that the parsers know is offered, and values that are looked up."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.cli import completion, parsers, pyflannel, status, values
from pyflannel.cli.tree import leaves, tree
from pyflannel.core.errors import DeviceUnavailable
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import LeaseAttrs
from pyflannel.core.options import FLAGS
from pyflannel.lab import state
from pyflannel.store.etcd import codec
from pyflannel.store.etcd import store as etcd_store
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PLACES = completion.places()
LEAVES = {" ".join(["pyflannel", *words]): parser for words, parser in leaves(tree())}
FREE = {"SECONDS", "BYTES", "N", "PORT", "POD", "TIME", "IP", "CMD", "CIDR", "K=CMD", "ARG"}
FREE |= {"PREFIX", "TEXT", "NAME", "ADDRESS:PORT"}
"""Values that cannot be guessed."""


def complete(lines, path=None):
    """What bash offers for each line."""
    calls = "\n".join(
        f"COMP_LINE='{line}' COMP_POINT={len(line)}; COMPREPLY=(); _pyflannel\n"
        'printf "%s\\t" "${COMPREPLY[@]}"; echo'
        for line in lines
    )
    env = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    done = subprocess.run(
        ["bash"],
        input=completion.script("bash") + calls,
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    assert done.stderr == ""
    return [row.rstrip("\t").split("\t") if row.strip() else [] for row in done.stdout.splitlines()]


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_and_argument_has_its_place(name):
    place, parser = PLACES[name], LEAVES[name]
    assert {each.name for each in place.options} == set(parsers.names(parser))
    taking = {each.name for each in place.options if each.value}
    optional = {n for each in parser.options if each.nargs == "?" for n in each.option_strings}
    assert taking == parsers.with_value([parser]) | optional
    assert len(place.arguments) == len(parser.arguments)


def test_every_value_is_known_or_free():
    wanted = {
        value.removesuffix("...")
        for name in LEAVES
        for value in (*(o.value for o in PLACES[name].options), *PLACES[name].arguments)
    }
    wanted = {value for value in wanted if "|" not in value} - {"", "-"}
    assert wanted == values.KNOWN | values.FILES | values.DIRECTORIES | FREE


def test_bash_offers_actions_and_options_at_every_place():
    lines, wanted = [], []
    for words, place in PLACES.items():
        lines += [f"{words} -", f"{words} --json --etcd-prefix --x -"]
        options = [each.name for each in place.options]
        wanted += [options, options if place.options else []]
        if place.actions:
            lines.append(f"{words} ")
            wanted.append(list(place.actions))
    found = complete(lines)
    for line, offered, right in zip(lines, found, wanted, strict=True):
        if "--etcd-prefix" in line and not any(o == "--etcd-prefix" for o in right):
            continue  # its value is an option there
        assert offered == right, line


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pyflannel sta", ["static", "status"]),
        ("pyflannel --json leas", ["leases"]),
        ("pyflannel help conf", ["config"]),
        ("pyflannel lab up --store=s", ["static"]),
        ("pyflannel trace --protocol ", ["icmp", "tcp", "udp"]),
        ("pyflannel --nodes 3 lab up --und", ["--underlay", "--underlay-mtu"]),
        ("pyflannel doctor do", ["docker"]),
        ("pyflannel doctor docker do", []),
        ("pyflanneld -datap", ["--datapath"]),
        ("pyflanneld -datapath e", ["ebpf"]),
        ("/usr/bin/pyflanneld-start --datapath=e", ["ebpf"]),
        ("pyflannel config set /etc/host", None),
        ("pyflannel doctor --root /et", ["/etc"]),
        ("pyflannel-mk-docker-opts -f /etc/hostna", ["/etc/hostname"]),
    ],
)
def test_bash_completes_words_in_every_order(line, offered):
    (found,) = complete([line])
    assert found == offered if offered is not None else "/etc/hosts" in found


def test_bash_asks_for_what_has_to_be_looked_up(tmp_path):
    """With the line so far, which may name an etcd; and strips what bash takes for a word."""
    stub = tmp_path / "pyflannel"
    stub.write_text(
        "#!/bin/sh\n"
        'test "$1 $2" = "completion values" || exit 1\n'
        'cat >"$0.asked"; echo fd00:5:1::/64; echo 10.5.7.0/24\n'
    )
    stub.chmod(0o755)
    line = "pyflannel leases release --etcd-prefix /x "
    found = complete([line, f"{line}10", f"{line}fd00:5:"], tmp_path)
    assert found == [["fd00:5:1::/64", "10.5.7.0/24"], ["10.5.7.0/24"], ["1::/64"]]
    asked = (tmp_path / "pyflannel.asked").read_text().splitlines()
    assert asked == ["leases", "release", "--etcd-prefix", "/x"]


def test_bash_completes_interfaces_without_python(tmp_path):
    (found,) = complete(["pyflannel config check --node --iface l"])
    assert "lo" in found


@pytest.mark.parametrize("shell", completion.INTO)
def test_every_command_action_and_option_is_in_each_script(shell, capsys):
    assert pyflannel.run(["completion", shell]) == 0
    text = capsys.readouterr().out
    for words, place in PLACES.items():
        assert words in text
        for each in place.options:
            assert (each.name if shell != "fish" else each.name.lstrip("-")) in text
        assert all(name in text for name in place.actions)
    assert all(flag.name in text for flag in FLAGS)


# Values.


@pytest.fixture
def etcd(monkeypatch):
    etcd = FakeEtcd()
    monkeypatch.setattr(etcd_store, "EtcdStore", lambda _options: FakeStore(etcd))
    return etcd


def test_leases_are_those_under_the_prefix_of_the_line(etcd):
    for prefix, number in (("/a", 200), ("/a", 7), ("/b", 9)):
        key = SubnetKey(v4=IPv4Network(f"10.5.{number}.0/24"))
        attrs = LeaseAttrs(public_ip=IPv4Address(f"192.0.2.{number}"))
        etcd.put(codec.lease_key(prefix, key), codec.encode_attrs(attrs))
    words = ["leases", "release", "--etcd-prefix", "/a", "--dry-run"]
    assert values.values("SUBNET", words) == ["10.5.7.0/24", "10.5.200.0/24"]
    assert values.values("SUBNET", ["--etcd-prefix=/b"]) == ["10.5.9.0/24"]


def test_peers_are_those_of_the_daemon_that_the_line_names(monkeypatch):
    asked = []
    peers = [{"subnet": "10.5.7.0/24"}, {"subnet": None, "ipv6_subnet": "fd00:5::/64"}, {}]
    monkeypatch.setattr(status, "ask", lambda path: asked.append(path) or {"peers": peers})
    words = ["ping", "--status-socket", "/x"]
    assert values.values("TARGET", words) == ["10.5.7.0/24", "fd00:5::/64"]
    assert asked == ["/x"]


def test_nodes_are_those_of_the_lab_that_the_line_names(monkeypatch):
    class Directory:
        def __init__(self, name):
            self.name = name

        def load(self):
            names = {"other": ["switch", "node1", "node10", "node2", "pod1"], "default": []}
            return type("State", (), {"processes": dict.fromkeys(names[self.name])})

    monkeypatch.setattr(state, "StateDirectory", Directory)
    assert values.values("NODE", ["lab", "exec", "--name=other"]) == ["1", "2", "10"]
    places = values.values("PLACE", ["lab", "exec", "--name", "other"])
    assert {"2", "node2", "pod2", "switch"} <= set(places)
    assert values.values("NODE", []) == []


def test_what_is_known_without_asking():
    assert "vxlan" in values.values("TYPE", [])
    assert "ebpf" in values.values("DATAPATH", [])
    assert "route-deleted" in values.values("FAULT", [])
    assert "lo" in values.values("INTERFACE", [])


@pytest.mark.parametrize("error", [OSError("x"), DeviceUnavailable("a", "b", 1), TimeoutError()])
def test_what_fails_is_silent_and_empty(error, monkeypatch, capsys):
    def fail(_path):
        raise error

    monkeypatch.setattr(status, "ask", fail)
    monkeypatch.setattr(sys, "stdin", io.StringIO("ping\n"))
    assert pyflannel.run(["completion", "values", "PEER"]) == 0
    assert capsys.readouterr().out.strip() == ""
    assert values.values("NOSUCH", []) == []
