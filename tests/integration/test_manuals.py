"""The manual pages and the completion: whole, clean, and from the same source as `--help`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.cli import completion
from pyflannel.cli.parsers import default_of, sentence, term
from pyflannel.cli.pyflannel import COMMANDS
from pyflannel.cli.tree import tree
from pyflannel.core.options import FLAGS
from tools.manuals import SHELLS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TREE = tree()


@pytest.fixture(scope="module")
def share(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, ROOT / "tools/manuals.py", directory], check=True)
    return directory


def shown(page: Path) -> str:
    """A page as man shows it. Any complaint of troff or its macros is an error."""
    command = ["groff", "-ww", "-man", "-Tutf8", "-P-cbou", "-rLL=200n", page]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    text = done.stdout.replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-")
    return " ".join(text.split())


PAGES = [
    *("pyflanneld", "pyflannel", "pyflannel-mk-docker-opts", "pyflanneld-start"),
    *(f"pyflannel-{name}" for name in TREE),
]


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_clean_and_says_what_it_is_about(share, name):
    text = shown(share / f"man/man8/{name}.8")
    head = text.split("NAME", 1)[1]
    assert f"{name} - " in head
    assert "SEE ALSO" in text


def test_the_daemons_page_has_every_flag_with_its_default_and_variable(share):
    text = shown(share / "man/man8/pyflanneld.8")
    for flag in FLAGS:
        assert f"--{flag.name}" in text, flag.name
        if flag.env:
            assert f"Variable: {flag.variable()}." in text, flag.name
    assert 'Default: "/run/flannel/subnet.env".' in text


def test_the_tools_page_has_every_command(share):
    text = shown(share / "man/man8/pyflannel.8")
    for name, command in COMMANDS.items():
        assert f"{name} " in text
        assert sentence(command.summary) in text
    made = {path.stem for path in (share / "man/man8").iterdir()}
    assert made == {*PAGES, "pyflannel-mk-docker-opts"}


@pytest.mark.parametrize("name", TREE)
def test_a_commands_page_has_every_action_option_and_example(share, name):
    text = shown(share / f"man/man8/pyflannel-{name}.8")
    branch = TREE[name]
    for parser in branch.actions.values() or [branch.parser]:
        assert sentence(parser.summary) in text
        for action in (*parser.options, *parser.arguments):
            row = f"{term(action)} {sentence(action.help)}"
            default = default_of(action)
            assert row + (f" Default: {default}." if default else "") in text
        for flag in parser.go_flags:
            assert f"--{flag.name}" in text
        for example in parser.examples:
            assert " ".join(example.split()) in text


def test_the_completions_are_where_debians_shells_look(share):
    for shell, place in SHELLS.items():
        assert (share / place).read_text() == completion.script(shell)
    for name in ("pyflanneld", "pyflanneld-start", "pyflannel-mk-docker-opts"):
        for path in (
            f"bash-completion/completions/{name}",
            f"fish/vendor_completions.d/{name}.fish",
        ):
            assert (share / path).read_text() == (share / path).resolve().read_text()
