"""Writes the man pages and the shell completion below a directory: tools/manuals.py DIRECTORY.

Everything in them comes from where `--help` takes it: the table of flags in `core/options.py`, the
table of commands in `cli/pyflannel.py`, and each command's own parsers. So they cannot disagree.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyflannel
from pyflannel.cli import completion
from pyflannel.cli.parsers import Branch, Parser, default_of, sentence, term
from pyflannel.cli.pyflannel import COMMANDS
from pyflannel.cli.tree import tree
from pyflannel.core.options import FLAGS
from pyflannel.core.sysconfig import NAMES, OPTIONS
from pyflannel.docker import options as docker_options
from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import Flag, Kind

EXIT_STATUS: Final = (
    ("0", "asked to stop, or done"),
    ("2", "bad command line"),
    ("69", "a needed service or device is not available"),
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
OTHERS: Final = ("pyflanneld", "pyflanneld-start", "pyflannel-mk-docker-opts")
"""Programs that the same script completes."""
SHELLS: Final = {
    "bash": "bash-completion/completions/pyflannel",
    "zsh": "zsh/vendor-completions/_pyflannel",
    "fish": "fish/vendor_completions.d/pyflannel.fish",
}
"""Where Debian's shells look, below /usr/share."""
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


def tool_page() -> str:
    """pyflannel(8): every command, each with a page of its own."""
    rows = [(name, sentence(command.summary)) for name, command in COMMANDS.items()]
    body = [
        ".SH DESCRIPTION",
        "The operator's tool. Every command has --help; those that print data have --json.",
        "Options and arguments may stand in any order. Each command has a page:",
        ".BR pyflannel\\-COMMAND (8).",
        ".SH COMMANDS",
        *tagged(rows),
        ".SH EXIT STATUS",
        *tagged(EXIT_STATUS),
    ]
    return page("pyflannel", 8, "look after a flannel node", "pyflannel COMMAND [OPTION]...", body)


def command_page(name: str, branch: Branch) -> str:
    """pyflannel-COMMAND(8): what it does, and each of its actions."""
    parser = branch.parser
    own = parser.about.partition("\n\nactions:")[0] if branch.actions else parser.about
    own = "" if own.startswith("actions:") else own
    body = [".SH DESCRIPTION", roff(sentence(parser.summary)), *_paragraphs(own)]
    if branch.actions:
        body.append(".SH ACTIONS")
        for action, each in branch.actions.items():
            body += [f".SS {roff(action)}", f".B {roff(_usage(each))}"]
            body += [".PP", roff(sentence(each.summary)), *_paragraphs(each.about)]
            body += [*tagged(_rows(each)), *_examples(each)]
    else:
        body += [".SH OPTIONS", *tagged(_rows(parser)), *_examples(parser)]
    parsers = branch.actions.values() if branch.actions else [parser]
    tables = {title: table for each in parsers for title, table in each.flags.items()}
    for title, table in tables.items():
        body += [f".SH {roff(title.partition(',')[0].upper())}", *tagged(map(flag_row, table))]
    if parser.more is not None:
        title, _, rest = parser.more().partition(":\n")
        body += [f".SH {roff(title.partition(' ')[0].upper())}", ".nf", roff(rest), ".fi"]
    body += [".SH EXIT STATUS", *tagged(EXIT_STATUS)]
    return page(f"pyflannel-{name}", 8, parser.summary, _usage(parser), body)


def _usage(parser: Parser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _paragraphs(text: str) -> list[str]:
    return [line for part in text.split("\n\n") if part for line in (".PP", roff(part))]


def _rows(parser: Parser) -> list[tuple[str, str]]:
    """Arguments and options, each with what its help says."""
    rows = []
    for each in (*parser.arguments, *parser.options):
        default = default_of(each)
        text = sentence(each.help or "") + (f" Default: {default}." if default else "")
        rows.append((term(each), text))
    return rows


def _examples(parser: Parser) -> list[str]:
    lines = "\n".join(map(roff, parser.examples))
    return [".PP", "Examples:", ".PP", ".nf", ".RS", lines, ".RE", ".fi"]


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


def write_all(directory: Path) -> None:
    """Writes everything; `directory` becomes /usr/share."""
    pages = {
        "pyflanneld": daemon_page(),
        "pyflannel": tool_page(),
        "pyflannel-mk-docker-opts": docker_options_page(),
        "pyflanneld-start": start_page(),
    }
    pages |= {f"pyflannel-{name}": command_page(name, each) for name, each in tree().items()}
    for name, text in pages.items():
        _write(directory / "man" / "man8" / f"{name}.8", text)
    # bash and fish look a file up by the command's name.
    for shell, place in SHELLS.items():
        path = directory / place
        _write(path, completion.script(shell))
        for name in OTHERS if shell != "zsh" else ():
            link = path.with_name(f"{name}{path.suffix}")
            link.unlink(missing_ok=True)
            link.symlink_to(path.name)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    # What a page says does not depend on who makes it.
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    for variable in [name for name in os.environ if name.startswith("FLANNELD_")]:
        del os.environ[variable]
    write_all(Path(sys.argv[1]))
