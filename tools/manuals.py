"""Writes the man pages and the shell completion below a directory: tools/manuals.py DIRECTORY.

Everything in them comes from where `--help` takes it: the table of flags in `core/options.py`, the
table of commands in `cli/pyflannel.py`, and each command's own usage text. So they cannot disagree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyflannel
from pyflannel.cli.pyflannel import COMMANDS
from pyflannel.core.options import FLAGS
from pyflannel.core.sysconfig import NAMES, OPTIONS
from pyflannel.docker import options as docker_options
from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import Flag, Kind

EXIT_STATUS: Final = (
    ("0", "asked to stop, or done"),
    ("2", "bad command line"),
    ("69", "a needed service or device cannot be had"),
    ("70", "a defect of pyflannel"),
    ("77", "not permitted"),
    ("78", "bad configuration"),
)
FILES: Final = (
    ("/run/flannel/subnet.env", "the leased subnet, for docker and CNI plugins"),
    ("/run/docker_opts.env", "docker's options for it"),
    ("/var/lib/pyflannel", "what must outlive a reboot"),
    ("/etc/default/pyflannel", "environment of pyflannel.service"),
)
_QUOTED: Final = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq"})


def roff(text: str) -> str:
    """Text as troff takes it literally; what is not ASCII by its code point."""
    plain = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text.translate(_QUOTED))
    lines = plain.split("\n")
    return "\n".join("\\&" + line if line.startswith(".") else line for line in lines)


def date() -> str:
    """Of the sources where a build says so, else today's."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def page(name: str, section: int, summary: str, synopsis: str, body: Iterable[str]) -> str:
    """One page; `body` is troff already."""
    head = [
        f'.TH {name.upper()} {section} "{date()}" "pyflannel {pyflannel.__version__}"',
        # Names of flags and variables are searched for, and copied.
        ".nh",
        ".SH NAME",
        f"{roff(name)} \\- {roff(summary)}",
        ".SH SYNOPSIS",
        f".B {roff(synopsis)}",
    ]
    see = [".SH SEE ALSO", ".BR pyflanneld (8),", ".BR pyflannel (8),"]
    see += [".BR pyflannel\\-mk\\-docker\\-opts (8)"]
    return "\n".join([*head, *body, *see]) + "\n"


def tagged(rows: Iterable[tuple[str, str]]) -> list[str]:
    """A list of terms in bold, each with its explanation."""
    return [line for term, text in rows for line in (".TP", f".B {roff(term)}", roff(text))]


def flag_row(flag: Flag) -> tuple[str, str]:
    """A flag's term and what is said about it."""
    value = "" if flag.kind is Kind.BOOL else " " + (flag.kind.value.upper())
    text = flag.help[:1].upper() + flag.help[1:] + "."
    if flag.choices:
        text += f" One of {', '.join(flag.choices)}."
    if flag.default not in ("", (), False, 0):
        text += f" Default: {goflag.show(flag, flag.default)}."
    if flag.env:
        text += f" Variable: {flag.variable()}."
    return f"--{flag.name}{value}", text


def daemon_page() -> str:
    """pyflanneld(8)."""
    return page(
        "pyflanneld",
        8,
        "flannel's overlay network agent",
        "pyflanneld [OPTION]...",
        [
            ".SH DESCRIPTION",
            "Leases a subnet from the network config in etcd, writes it to files for docker and",
            "CNI plugins, and joins this node to the overlay network.",
            "Flags are written as in Go: one dash or two; a boolean takes its value only behind",
            "an equals sign.",
            ".SH OPTIONS",
            *tagged(flag_row(flag) for flag in sorted(FLAGS, key=lambda flag: flag.name)),
            ".SH EXIT STATUS",
            *tagged(EXIT_STATUS),
            ".SH FILES",
            *tagged(FILES),
        ],
    )


def help_of(command: str) -> str:
    """What `pyflannel COMMAND --help` prints, at a fixed width and without colours."""
    environment = {**os.environ, "COLUMNS": "78", "NO_COLOR": "1"}
    argv = [sys.executable, "-m", "pyflannel.cli.pyflannel", command, "--help"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def tool_page() -> str:
    """pyflannel(8): every command with its usage text."""
    body = [
        ".SH DESCRIPTION",
        "The operator's tool. Every command has --help; those that print data have --json.",
        ".SH COMMANDS",
        *tagged((name, command.summary) for name, command in COMMANDS.items()),
    ]
    for name in COMMANDS:
        if name != "mk-docker-opts":
            body += [f".SS {name}", ".nf", roff(help_of(name)), ".fi"]
    body += [".SH EXIT STATUS", *tagged(EXIT_STATUS)]
    return page("pyflannel", 8, "look after a flannel node", "pyflannel COMMAND [OPTION]...", body)


def docker_options_page() -> str:
    """pyflannel-mk-docker-opts(8)."""
    name = "pyflannel-mk-docker-opts"
    text = [".SH DESCRIPTION", ".nf", roff(docker_options.usage(name).rstrip()), ".fi"]
    return page(name, 8, "docker's options from subnet.env", f"{name} [OPTION]...", text)


def start_page() -> str:
    """pyflanneld-start(8)."""
    names = [(name.variable, f"--{name.flag}. Older name: {name.older}.") for name in NAMES]
    return page(
        "pyflanneld-start",
        8,
        "pyflanneld with the variables of distributions' flannel packages",
        "pyflanneld-start [--check-only] [OPTION]...",
        [
            ".SH DESCRIPTION",
            "What pyflannel.service runs: becomes",
            ".BR pyflanneld (8)",
            "with the same options, and with flags made of the variables below. They win over",
            "FLANNELD_*, as in the packages they come from; contradictions are named on stderr.",
            ".TP",
            ".B \\-\\-check\\-only",
            "Starts nothing, but checks options, network config and node as a start would, and",
            "says what is wrong. May stand wherever a flag may.",
            ".SH ENVIRONMENT",
            *tagged(names),
            *tagged([(OPTIONS, "Further flags of the daemon.")]),
            ".SH EXIT STATUS",
            *tagged(EXIT_STATUS),
        ],
    )


def completion() -> str:
    """Completion for bash: commands, flags, and the values of flags that have a choice of them."""
    words = " ".join(f"--{flag.name}" for flag in FLAGS)
    cases = "\n".join(
        f"    *-{flag.name}) COMPREPLY=($(compgen -W '{' '.join(flag.choices)}' -- \"$word\")) ;;"
        for flag in FLAGS
        if flag.choices
    )
    return f"""\
# bash completion for pyflanneld and pyflannel
_pyflanneld() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
    case $before in
{cases}
    *-file | *-dir | *-socket) COMPREPLY=($(compgen -f -- "$word")) ;;
    *) COMPREPLY=($(compgen -W '{words}' -- "$word")) ;;
    esac
}}
_pyflannel() {{
    local word=${{COMP_WORDS[COMP_CWORD]}}
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W '{" ".join(COMMANDS)}' -- "$word"))
    else
        COMPREPLY=($(compgen -W '--help --json' -- "$word") $(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _pyflanneld pyflanneld
complete -o filenames -F _pyflannel pyflannel
"""


def write_all(directory: Path) -> None:
    """Writes everything; `directory` becomes /usr/share."""
    man = directory / "man" / "man8"
    shell = directory / "bash-completion" / "completions"
    for each in (man, shell):
        each.mkdir(parents=True, exist_ok=True)
    (man / "pyflanneld.8").write_text(daemon_page())
    (man / "pyflannel.8").write_text(tool_page())
    (man / "pyflannel-mk-docker-opts.8").write_text(docker_options_page())
    (man / "pyflanneld-start.8").write_text(start_page())
    (shell / "pyflannel").write_text(completion())
    # bash looks the file up by the command's name.
    link = shell / "pyflanneld"
    link.unlink(missing_ok=True)
    link.symlink_to("pyflannel")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
