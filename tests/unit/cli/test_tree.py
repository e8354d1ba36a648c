"""The whole command line, by machine: every order, every help page, every example.

The examples are those of docs/reference/commands.md as well, which is made of the parsers.
"""

from __future__ import annotations

import re
import shlex

import pytest

from pyflannel.cli import parsers, pyflannel
from pyflannel.cli.tree import leaves, tree
from pyflannel.gocompat.flags import Kind

TREE = tree()
LEAVES = {" ".join(words): parser for words, parser in leaves(TREE)}
ALL = {name: branch.parser for name, branch in TREE.items()} | LEAVES
SAMPLES = {"IP": "192.0.2.34", "SUBNET": "10.5.34.0/24", "POD": "10.5.34.2", "TIME": "2h"}
SAMPLES |= {"K=CMD": "1=x", "CIDR": "10.0.0.0/8", "ARG": "--ip-masq", "NODE": "1"}


class Seen(BaseException):
    """A parser has got its words."""


@pytest.fixture
def parsed(monkeypatch):
    """What a command line means: which parser got it, and what it made of it."""
    real = parsers.Parser.parse_args

    def stop(parser, args):
        raise Seen(parser.prog, vars(real(parser, args)))

    def go(argv):
        with monkeypatch.context() as patch:
            patch.setattr(parsers.Parser, "parse_args", stop)
            with pytest.raises(Seen) as seen:
                pyflannel.run(argv)
        return seen.value.args

    return go


def value(action):
    if action.choices:
        return next(iter(action.choices))
    if action.metavar in SAMPLES:
        return SAMPLES[action.metavar]
    return "7" if action.type is not None else "some"


def words_of(action):
    name = action.option_strings[-1]
    return [name] if action.nargs in {0, "?"} else [name, value(action)]


def optional(parser):
    options = [each for each in parser.options if each.dest != "help"]
    found = [words_of(each) for each in options if not each.required]
    found += [[f"{name}={text}"] for name, text in (w for w in found if len(w) == 2)]
    etcd = [flag for flag in parser.go_flags if flag.name.startswith("etcd-")]
    found += [[f"--{f.name}", "v"] for f in etcd if f.kind is not Kind.BOOL]
    return found


@pytest.mark.parametrize("name", LEAVES)
def test_every_order_of_options_and_arguments_means_the_same(name, parsed):
    parser = LEAVES[name]
    rest = [[value(each)] for each in parser.arguments if each.metavar != "CMD"]
    rest += [words_of(each) for each in parser.options if each.required]
    words = [*([word] for word in name.split()), *rest]
    for option in optional(parser):
        meanings = []
        for place in range(len(words) + 1):
            if place == len(words) and name == "lab exec":
                continue  # what comes last is the command's own
            line = [*words[:place], option, *words[place:]]
            meanings.append(parsed([word for part in line for word in part]))
        assert meanings[0][0] == parser.prog
        assert all(each == meanings[0] for each in meanings), option


def test_options_with_a_value_are_known_before_the_command_is_imported():
    """Else `pyflannel --option leases status` would run the wrong one."""
    taking, bare = set(), set()
    for parser in LEAVES.values():
        mine = parsers.with_value([parser])
        taking |= mine
        bare |= set(parsers.names(parser)) - mine
    assert taking - bare == pyflannel.WITH_VALUE
    maybe = {
        name
        for parser in LEAVES.values()
        for each in parser.options
        if each.nargs == "?"
        for name in each.option_strings
    }
    assert (taking & bare) | maybe == pyflannel.MAYBE_VALUE


def page(argv, capsys):
    with pytest.raises(SystemExit) as end:
        pyflannel.run(argv)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ALL)
def test_help_in_every_spelling_is_the_page_of_that_command_alone(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = name.split()
    spellings = [[*words, "--help"], [*words, "-h"], ["help", *words], ["-h", *words]]
    spellings += [["--help", *words], [words[0], "--help", *words[1:]]]
    if len(words) > 1:
        spellings.append([words[0], "help", words[1]])
    pages = {page(argv, capsys) for argv in spellings}
    assert len(pages) == 1
    text = pages.pop()
    assert text.startswith(f"usage: pyflannel {name} ")
    prose = text.split("\n\n")[1 : 2 + len(ALL[name].about.split("\n\n"))]
    assert max(len(line) for part in prose for line in part.splitlines()) <= 80


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_explained_with_its_default(name):
    parser = ALL[name]
    text = " ".join(parser.format_help().split())
    for action in (*parser.options, *parser.arguments):
        assert action.help, action
        if default := parsers.default_of(action):
            assert f"(default: {default})" in text
    for flag in parser.go_flags:
        assert f"--{flag.name} " in text


@pytest.mark.parametrize("name", LEAVES)
def test_every_example_is_right(name, parsed, capsys):
    examples = LEAVES[name].examples
    assert examples
    own = [line for line in examples if re.search(rf"\bpyflannel {name}\b", line)]
    if name != "leases list":  # which is not typed
        assert own == list(examples)
    for line in examples:
        assert f"\n  {line}\n" in LEAVES[name].format_help()
        for command in re.sub(r" >\S+", "", line).split(" | "):
            program, *words = shlex.split(command)
            if program == "pyflannel":
                parsed(words)


def test_the_examples_of_the_whole_are_right(parsed, capsys):
    text = pyflannel.usage()
    assert max(map(len, text.splitlines())) <= 80
    for line in pyflannel.EXAMPLES:
        assert f"\n  {line}\n" in text
        words = line.split()[1:]
        if words[0] == "help":
            page(words, capsys)
        else:
            parsed(words)


def test_a_group_lists_its_actions_and_takes_none_that_it_has_not(capsys):
    for name, branch in TREE.items():
        if not branch.actions:
            continue
        for action, parser in branch.actions.items():
            assert f"  {action}" in branch.parser.format_help()
            assert parser.summary in branch.parser.format_help()
            slip = action[:-1] + "x" if len(action) < 4 else action[:-1]
            assert pyflannel.run([name, slip]) == 2
            assert f"did you mean {action}?" in capsys.readouterr().err
        if not branch.default:
            assert pyflannel.run([name]) == 2
            assert "expected one of" in capsys.readouterr().err


def test_the_summary_of_a_command_is_said_alike_everywhere():
    for name, branch in TREE.items():
        assert pyflannel.COMMANDS[name].summary == branch.parser.summary
