"""The manual pages and the completion: whole, clean, and from the same source as `--help`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.cli.pyflannel import COMMANDS
from pyflannel.core.options import FLAGS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def share(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, ROOT / "tools/manuals.py", directory], check=True)
    return directory


def shown(page: Path) -> str:
    """A page as man shows it; whatever troff or its macros complain about is an error."""
    command = ["groff", "-ww", "-man", "-Tutf8", "-P-cbou", "-rLL=200n", page]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    text = done.stdout.replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-")
    return " ".join(text.split())


@pytest.mark.parametrize(
    "name", ["pyflanneld", "pyflannel", "pyflannel-mk-docker-opts", "pyflanneld-start"]
)
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


def test_the_tools_page_has_every_command_with_its_own_help(share):
    text = shown(share / "man/man8/pyflannel.8")
    for name, command in COMMANDS.items():
        assert command.summary in text, name
    assert "only say what would be removed" in text


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["pyflannel", "sta"], ["static", "status"]),
        (["pyflannel", "doc"], ["doctor", "docker-setup"]),
        (["pyflanneld", "--datap"], ["--datapath"]),
        (["pyflanneld", "--datapath", "e"], ["ebpf"]),
    ],
)
def test_bash_completes_commands_flags_and_values(share, line, offered):
    script = share / "bash-completion/completions/pyflannel"
    words = " ".join(f"'{word}'" for word in line)
    program = (
        f". {script}; COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; "
        f'_{line[0]}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert sorted(done.stdout.split()) == sorted(offered)
