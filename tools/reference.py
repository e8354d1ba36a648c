"""Writes the reference in docs/reference/ from its sources: python tools/reference.py [DIRECTORY].

Commands come from their parsers, flags and variables from the daemon's table, keys of the network
config from what config and backends declare, files from the defaults and from the package's script.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.parsers import Parser, default_of, sentence, term
from pyflannel.cli.pyflannel import COMMANDS
from pyflannel.cli.tree import tree
from pyflannel.core.configkeys import ALL_TOGETHER, AT_RESTART, KEYS
from pyflannel.core.kind import every
from pyflannel.core.options import FLAGS, DaemonOptions
from pyflannel.core.settings import Setting
from pyflannel.core.sysconfig import NAMES, OPTIONS
from pyflannel.docker.options import UNIT_FILE
from pyflannel.gocompat import flags as goflag

ROOT: Final = Path(__file__).parents[1]
DIRECTORY: Final = ROOT / "docs" / "reference"
MADE: Final = "Made by `tools/reference.py`.\n"

_NO: Final = (
    "`status`: works with problems; `doctor`, `ping`, `trace`, `lab ping`, `lab status`, "
    "`lab heal`, `lab demo`: something is wrong or does not answer; `config set`: the question "
    "was answered with no; `mk-docker-opts`: as the script"
)
_CANNOT: Final = (
    "`status`, `peers`, `doctor`, `ping`, `trace`: not ready, no daemon, or it may not be asked"
)
EXIT_CODES: Final = (
    ("0", "asked to stop, or done", ""),
    ("1", "done, and the answer is no", _NO),
    ("2", "bad command line", "`mk-docker-opts`: a file cannot be read, as the script"),
    ("3", "cannot look", _CANNOT),
    ("69", "a needed service or device is not available", ""),
    ("70", "a defect of pyflannel", ""),
    ("77", "not permitted", ""),
    ("78", "bad configuration", ""),
    ("130", "ended by Ctrl-C", "`pyflannel`"),
)
VARIABLES: Final = (
    ("CREDENTIALS_DIRECTORY", "systemd's; its file `etcd-password` is the etcd user's password"),
    ("KUBERNETES_SERVICE_HOST", "the cluster's, in a pod: where the API server is"),
    ("KUBERNETES_SERVICE_PORT", "its port"),
    ("NO_COLOR", "not empty: no colours"),
    ("NODE_NAME", "with `--kube-subnet-mgr`: which node this is"),
    ("POD_NAME", "with `--kube-subnet-mgr`: the pod whose node this is"),
    ("POD_NAMESPACE", "the namespace of that pod"),
    ("PYFLANNEL_EBPF_ATTACH", "`tcx` or `clsact`: how the eBPF data path is attached"),
    ("PYFLANNEL_LAB_DIR", "where labs keep their files (`pyflannel lab`)"),
    (
        "PYFLANNEL_NATIVE_OFF",
        "offloads that the native data path does without, for measurements",
    ),
    ("PYFLANNEL_NATIVE_GATHER_US", "microseconds it waits for more packets, for measurements"),
    ("PYFLANNEL_NATIVE_QUEUES", "its number of queues, for measurements"),
    ("PYFLANNEL_NATIVE_SPIN_US", "microseconds it polls before it sleeps, for measurements"),
    ("PYFLANNEL_NATIVE_THREADS", "its number of threads, for measurements"),
)
"""What is read from the environment beside the flags' variables, by those who run pyflannel."""
WRITTEN: Final = (
    ("subnet_file", "the leased subnet, for docker and CNI plugins"),
    ("docker_opts_file", "docker's options for it"),
    ("status_socket", "the socket that `pyflannel status` asks"),
    ("state_dir", "what must outlive a reboot: `lease.json`, `vtep-mac.json`, `docker-setup.json`"),
)


def pages() -> dict[str, str]:
    """Every page, by its file name."""
    return {
        "commands.md": "".join(_commands()),
        "flags.md": "".join(_flags()),
        "network-config.md": "".join(_config()),
        "exit-codes.md": "".join(_exit_codes()),
        "files.md": "".join(_files()),
    }


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        f"| {' | '.join(each.replace('|', chr(92) + '|') for each in line)} |\n" for line in lines
    )


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


# Commands.


def _commands() -> Iterator[str]:
    yield f"""\
# Commands

{MADE}
Options and arguments may stand in any order. `pyflannel help COMMAND`, `COMMAND -h` and
`COMMAND --help` print the same. Each command has a manual page: `man pyflannel-config`.

"""
    yield _table(("command", ""), ((f"`{n}`", c.summary) for n, c in COMMANDS.items()))
    for name, branch in tree().items():
        yield f"\n## {name}\n\n"
        if not branch.actions:
            yield from _command(branch.parser)
            continue
        about = branch.parser.about.partition("actions:")[0].strip()
        yield f"{sentence(branch.parser.summary)}" + (f" {_flat(about)}\n" if about else "\n")
        for action, parser in branch.actions.items():
            yield f"\n### {name} {action}\n\n"
            yield from _command(parser)


def _command(parser: Parser) -> Iterator[str]:
    yield f"{sentence(parser.summary)}\n"
    for part in parser.about.split("\n\n"):
        if part:
            yield f"\n{_flat(part)}\n"
    rows = [
        (_code(term(each)), each.help or "", _code(default_of(each)))
        for each in (*parser.arguments, *parser.options)
        if each.dest != "help"
    ]
    yield "\n" + _table(("", "", "default"), rows) if rows else ""
    for title, table in parser.flags.items():
        names = ", ".join(f"`--{flag.name}`" for flag in table)
        yield f"\n{sentence(title)[:-1]}: {names}; see [flags](flags.md).\n"
    lines = "".join(f"{example}\n" for example in parser.examples)
    yield f"\n```sh\n{lines}```\n"


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


# Flags.


def _flags() -> Iterator[str]:
    yield f"""\
# Flags of pyflanneld

{MADE}
As in Go: one dash or two, a boolean takes its value only behind `=`. The command line
wins over the variable; an empty variable counts as unset. *pyflannel* marks flags that
flannel does not have.

"""
    rows = []
    for flag in sorted(FLAGS, key=lambda flag: flag.name):
        default = "" if flag.default in ("", (), False, 0) else goflag.show(flag, flag.default)
        text = flag.help + (f": {', '.join(flag.choices)}" if flag.choices else "")
        since = " *pyflannel*" if flag.since == "pyflannel" else ""
        variable = _code(flag.variable()) if flag.env else ""
        rows.append((f"`--{flag.name}`{since}", text, _code(default.strip('"')), variable))
    yield _table(("flag", "", "default", "variable"), rows)
    yield """\

## Variables of distributions' flannel packages

`pyflanneld-start`, which the unit runs, makes flags of them. They win over `FLANNELD_*`.

"""
    renamed = [(f"`{n.variable}`", f"`{n.older}`", f"`--{n.flag}`") for n in NAMES]
    renamed.append((f"`{OPTIONS}`", "", "further flags"))
    yield _table(("variable", "older name", "becomes"), renamed)
    yield "\n## Other variables\n\n"
    yield _table(("variable", ""), ((f"`{name}`", text) for name, text in VARIABLES))


# Network config.


def _config() -> Iterator[str]:
    yield f"""\
# The network config

{MADE}
JSON under `<etcd-prefix>/config`; with Kubernetes `net-conf.json`. Keys in any case, as
flannel reads them; an unknown key is a warning. `pyflannel config check FILE`
says what is wrong, `config set FILE` writes it and shows what changes for the nodes.

"""
    rows = [(f"`{k.key}`", k.effect, k.default, k.wanted, k.change) for k in KEYS]
    heads = ("key", "effect", "default", "may be", "a change needs")
    yield _table(heads, rows)
    yield "\n## Backend\n\nThe keys inside `Backend`, by its `Type`.\n"
    for kind in every(KINDS):
        yield f"\n### {kind.name}\n\n{sentence(kind.summary)}\n"
        settings = list(kind.settings.declared().values())
        if settings:
            yield "\n" + _table(heads, map(_setting, settings))
        else:
            yield "\nIt has no keys but `Type`.\n"
        sample = ROOT / "config" / f"{kind.name}.json"
        if sample.exists():
            yield f"\n`config/{sample.name}`:\n\n```json\n{sample.read_text().strip()}\n```\n"


def _setting(each: Setting[object]) -> tuple[str, ...]:
    change = ALL_TOGETHER if each.together else AT_RESTART
    return (f"`{each.key}`", each.effect, _code(json.dumps(each.default)), each.wanted, change)


# Exit codes.


def _exit_codes() -> Iterator[str]:
    yield f"""\
# Exit codes

{MADE}
Of `pyflanneld`, `pyflanneld-start` and `pyflannel`. The reason is the last line on stderr.

"""
    yield _table(("code", "meaning", "where it means more"), EXIT_CODES)


# Files.


def _files() -> Iterator[str]:
    yield f"""\
# Files

{MADE}
What the daemon writes. `--instance NAME` gives each of several daemons files of its own.

"""
    defaults = DaemonOptions()
    rows = []
    for name, text in WRITTEN:
        flag = f"--{name.replace('_', '-')}"
        rows.append((f"`{getattr(defaults, name)}`", f"`{flag}`", text))
    rows.append((f"`{UNIT_FILE}`", "–", "what `/run/docker_opts.env` leads to under the unit"))
    yield _table(("file", "flag", ""), rows)
    yield """\

How they are recognised as ours, and the locks beside them: [ownership](../ownership.md).

## What the Debian package installs

"""
    placed = [(f"`/{target}`", f"`{source}`") for source, target in packaged()]
    yield _table(("file", "made of"), placed)
    yield """\

Beside these: the commands in `/usr/bin`, their environment in `/usr/lib/pyflannel`, manual
pages, completion, samples of the network config in `/usr/share/doc/pyflannel/examples`.
"""


def packaged() -> list[tuple[str, str]]:
    """What the package's script puts where: source and target."""
    script = (ROOT / "tools/build-deb.sh").read_text()
    return re.findall(r"^place (\S+) (\S+)$", script, re.MULTILINE)


def write_all(directory: Path) -> None:
    """Writes every page."""
    for name, text in pages().items():
        (directory / name).write_text(text)


def plain_environment() -> None:
    """So that a page does not depend on who makes it."""
    for variable in [name for name in os.environ if name.startswith("FLANNELD_")]:
        del os.environ[variable]


if __name__ == "__main__":
    plain_environment()
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
