"""Options and arguments in every order, and help in every spelling."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

import pytest

from pyflannel.cli import common, config, lab, pyflannel, start
from pyflannel.cli.order import command_first, options_first
from pyflannel.core.errors import UsageError

FILE = str(Path(__file__).parents[3] / "config" / "vxlan.json")
COMMANDS = {"lab", "leases"}
WITH_VALUE = {"--name"}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], []),
        (["lab"], ["lab"]),
        (["--json", "leases"], ["leases", "--json"]),
        (["--name", "lab", "leases"], ["leases", "--name", "lab"]),
        (["-name", "lab", "leases"], ["leases", "-name", "lab"]),
        (["--name=x", "lab", "up"], ["lab", "--name=x", "up"]),
        (["--secret", "hunter2", "lab"], ["--secret", "hunter2", "lab"]),
        (["--", "lab"], ["--", "lab"]),
        (["--name"], ["--name"]),
        (["-", "lab"], ["-", "lab"]),
        (["--maybe", "1", "lab"], ["lab", "--maybe", "1"]),
        (["--maybe", "lab", "1"], ["lab", "--maybe", "1"]),
        (["--maybe"], ["--maybe"]),
    ],
)
def test_the_command_comes_to_the_front(words, wanted):
    assert command_first(words, COMMANDS, WITH_VALUE, {"--maybe"}) == wanted


@pytest.mark.parametrize(
    "order", list(itertools.permutations([["--json"], ["--name", "x"], ["a"]]))
)
def test_options_come_before_arguments(order):
    found, left = options_first([word for part in order for word in part], WITH_VALUE)
    assert (sorted(found), found[-1], left) == (["--json", "--name", "a", "x"], "a", [])


def test_what_comes_after_the_last_argument_is_another_programs():
    words = ["--pod", "2", "--name", "x", "ip", "--json", "route"]
    found, left = options_first(words, WITH_VALUE, arguments=1)
    assert found == ["--pod", "--name", "x", "2"]
    assert left == ["ip", "--json", "route"]


@pytest.mark.parametrize("place", range(3))
def test_config_check_takes_options_anywhere(place, capsys):
    words = ["check", FILE]
    words.insert(place, "--json")
    assert config.main(words) == 0
    assert capsys.readouterr().out.startswith("{")


def test_config_set_takes_force_before_the_file():
    given = config.branch().actions["set"].parse_args(["--force", FILE])
    assert (given.force, given.file) == (True, FILE)


@pytest.mark.parametrize(
    "argv",
    [
        ["--etcd-endpoints=http://h:1", "--json", "leases"],
        ["--etcd-endpoints", "http://h:1", "leases", "--json"],
        ["-etcd-endpoints=http://h:1", "leases", "--json"],
        ["leases", "--json", "--etcd-endpoints=http://h:1"],
    ],
)
def test_options_may_stand_before_the_command(argv, monkeypatch):
    seen = []
    monkeypatch.setattr(pyflannel, "guarded", lambda _name, _module, rest: seen.append(rest) or 0)
    assert pyflannel.run(argv) == 0
    options, rest = common.split_etcd(seen[0])
    assert (options.endpoints, rest) == (("http://h:1",), ["--json"])


def output(call, capsys):
    with contextlib.suppress(SystemExit):
        assert call() == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["config"], ["config", "set"], ["static", "check"], ["leases"], ["lab"], ["lab", "up"]],
)
def test_help_is_the_same_in_every_spelling(words, capsys):
    spellings = [[*words, "--help"], [*words, "-h"], ["help", *words], ["--help", *words]]
    pages = {output(lambda w=w: pyflannel.run(w), capsys) for w in spellings}
    assert len(pages) == 1
    assert f"usage: pyflannel {' '.join(words)}" in pages.pop()


def test_help_of_nothing_is_the_list_of_commands(capsys):
    for words in (["help"], ["-h"], ["--help"], ["help", "--help"]):
        assert output(lambda w=words: pyflannel.run(w), capsys) == pyflannel.usage()


def test_the_value_of_an_unknown_option_is_not_shown(capsys):
    for argv in (["--sekret", "hunter2"], ["lab", "--sekret", "hunter2"]):
        assert pyflannel.run(argv) == 2
        said = capsys.readouterr().err
        assert "--sekret" in said
        assert "hunter2" not in said


@pytest.mark.parametrize(
    "argv",
    [
        ["up", "--daemon-arg", "--ip-masq", "--nodes", "2"],
        ["up", "--daemon-arg=--ip-masq", "--nodes", "2"],
        ["--nodes", "2", "up", "--daemon-arg", "--ip-masq"],
    ],
)
def test_a_daemons_flag_may_be_a_word_of_its_own(argv):
    spec = lab.spec_from_options(lab._parse(argv))
    assert (spec.daemon_args, spec.nodes) == (("--ip-masq",), 2)


def test_exec_leaves_a_commands_options_to_it():
    options = lab._parse(["exec", "--name", "x", "2", "--pod", "ip", "-br", "--json", "--", "a"])
    assert (options.node, options.name, options.pod) == ("2", "x", True)
    assert options.argv == ["ip", "-br", "--json", "--", "a"]


@pytest.mark.parametrize(
    "words", list(itertools.permutations(["--iface=x", "--check-only", "-v=1"]))
)
def test_check_only_may_stand_anywhere(words):
    checking, rest = start.split_check(words)
    assert checking
    assert rest == [word for word in words if word != "--check-only"]


def test_check_only_may_be_taken_back_and_has_to_be_a_truth_value():
    assert start.split_check(["--check-only=false", "-v=1"]) == (False, ["-v=1"])
    with pytest.raises(UsageError, match="check-only"):
        start.split_check(["--check-only=maybe"])
    assert "pyflannel.gocompat.flags" in sys.modules
