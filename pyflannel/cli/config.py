"""`pyflannel config set|get|check`: the network config, checked before a node depends on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import configset
from pyflannel.cli.backends import keys_text
from pyflannel.cli.common import NODE_FLAGS, split_etcd, with_store, without_flags, words_of
from pyflannel.cli.parsers import ETCD, Branch, Parser, group
from pyflannel.cli.shapes import ConfigJson, problems_json
from pyflannel.cli.streams import write_bytes
from pyflannel.core.config import NetworkConfig, effective
from pyflannel.core.configparse import Parsed, parse_network_config
from pyflannel.core.errors import EXIT_CONFIG, EXIT_OK, ConfigError, UsageError
from pyflannel.core.fields import Problem
from pyflannel.core.options import EtcdOptions
from pyflannel.core.trust import command_warning
from pyflannel.foreign import MOST_IN_LOG, escape, shown
from pyflannel.gocompat.flags import Kind
from pyflannel.store.etcd import codec

ABOUT: Final = """It is the JSON under <etcd-prefix>/config, and every daemon reads it when it
starts. Exit code 78 if the config has an error."""
SET: Final = """\
Every daemon reads it when it starts. If etcd holds another one already, what changes is shown,
with the leases that would not fit; on a terminal you are asked before it is replaced.

Exit code 78 if the config has an error; nothing is written then, unless --force is given. Exit
code 1 if you say no."""
GET: Final = """\
Byte for byte, or with --json as the daemons understand it: every key with its value, and what is
wrong. Exit code 78 if etcd holds none."""
CHECK: Final = """Needs no etcd. Prints the config as the daemons understand it.

With --node it is compared with this machine as well: the interface and what the backend asks of
it, and what Network and all leases overlap (connected prefixes, addresses, next hops, etcd). The
daemon's options are those of its unit, or given here. Leases are read from etcd; if it does not
answer, that is a warning.

With --kubernetes it is read as a net-conf.json is, where subnets are the nodes' podCIDRs.

Exit code 78 if there is an error."""


def branch() -> Branch:
    """The command line."""
    prog = "pyflannel config"

    def keys() -> str:
        return keys_text(KINDS)

    write = Parser(
        f"{prog} set",
        "check FILE and write it to etcd",
        SET,
        flags=ETCD,
        more=keys,
        examples=(
            "pyflannel config set network.json --etcd-endpoints=http://192.0.2.10:2379",
            "pyflannel config set network.json --dry-run",
            """echo '{"Network": "10.5.0.0/16"}' | pyflannel config set -""",
        ),
    )
    write.add_argument("--force", action="store_true", help="write it although it has errors")
    write.add_argument("--yes", action="store_true", help="replace another config without asking")
    write.add_argument("--dry-run", action="store_true", help="only say what would change")
    read = Parser(
        f"{prog} get",
        "print what etcd holds",
        GET,
        flags=ETCD,
        examples=(
            "pyflannel config get >network.json",
            "pyflannel config get --json --etcd-prefix=/other/network",
        ),
    )
    check = Parser(
        f"{prog} check",
        "say what is wrong with FILE",
        CHECK,
        flags={"with --node, as pyflanneld's": NODE_FLAGS, **ETCD},
        more=keys,
        examples=(
            "pyflannel config check network.json",
            "pyflannel config check --kubernetes /etc/kube-flannel/net-conf.json",
            "pyflannel config get | pyflannel config check - --json",
            "pyflannel config check network.json --node --etcd-endpoints=http://192.0.2.10:2379",
        ),
    )
    check.add_argument("--node", action="store_true", help="compare it with this machine")
    check.add_argument(
        "--kubernetes", action="store_true", help="read it as a net-conf.json of Kubernetes"
    )
    for each in (write, check):
        each.add_argument("file", metavar="FILE", help="'-' is standard input")
    for each in (read, check):
        each.add_argument("--json", action="store_true", help="print JSON")
    return group(prog, "the network config in etcd", ABOUT, (write, read, check), more=keys)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options, rest = split_etcd(argv)
    here = branch()
    action, words = here.choose(rest)
    if action == "check":
        return _check_file(here.actions[action], words, options)
    given = here.actions[action].parse_args(words)
    if action == "get":
        found = with_store(options, lambda store: store.get(codec.config_key(options.prefix)))
        if not found.kvs:
            where = shown(codec.config_key(options.prefix))
            raise ConfigError(f"no network config under {where}; write one with config set")
        return _show(found.kvs[0].value, as_json=given.json)
    raw = _read(given.file)
    parsed = parse_network_config(raw, KINDS)
    _print_problems(_problems(parsed))
    if parsed.config is None and not given.force:
        print("pyflannel config: nothing was written", file=sys.stderr)
        return EXIT_CONFIG
    return configset.run(options, raw, parsed.config, yes=given.yes, dry_run=given.dry_run)


def _check_file(parser: Parser, words: Sequence[str], etcd: EtcdOptions) -> int:
    node_words = words_of(words, {flag.name: flag.kind is not Kind.BOOL for flag in NODE_FLAGS})
    given = parser.parse_args(without_flags(NODE_FLAGS, words))
    if node_words and not given.node:
        raise UsageError(f"{node_words[0].partition('=')[0]} goes with config check --node")
    raw = _read(given.file)
    if not given.node:
        return _check(raw, as_json=given.json, kubernetes=given.kubernetes)
    # Looking at a machine is more to import than looking at a file.
    from pyflannel.cli import nodecheck

    on_node = partial(nodecheck.check, words=node_words, etcd=etcd)
    return _check(raw, as_json=given.json, kubernetes=given.kubernetes, on_node=on_node)


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"read {name}: {error.strerror}") from error


def _show(raw: bytes, *, as_json: bool) -> int:
    if as_json:
        return _check(raw, as_json=True)
    if sys.stdout.isatty():
        text = raw.decode("utf-8", "backslashreplace").rstrip("\n")
        print("\n".join(map(escape, text.split("\n"))))
    else:
        write_bytes(raw.rstrip(b"\n") + b"\n")  # for a program, or a file: as it is
    return EXIT_OK


def _check(
    raw: bytes,
    *,
    as_json: bool,
    kubernetes: bool = False,
    on_node: Callable[[NetworkConfig], Sequence[Problem]] | None = None,
) -> int:
    parsed = parse_network_config(raw, KINDS, allots=not kubernetes)
    problems = list(parsed.problems if kubernetes else _problems(parsed))
    if on_node is not None and parsed.config is not None:
        problems += on_node(parsed.config)
    if as_json:
        report: ConfigJson = {
            "config": effective(parsed.config) if parsed.config is not None else None,
            "problems": problems_json(problems),
        }
        print(json.dumps(report, indent=2))
    else:
        _print_problems(problems)
        if parsed.config is not None:
            print(json.dumps(effective(parsed.config), indent=2))
    return EXIT_CONFIG if any(problem.is_error for problem in problems) else EXIT_OK


def _problems(parsed: Parsed) -> tuple[Problem, ...]:
    """Those of the config itself, and what a node says to it that reads it from etcd."""
    warning = command_warning(parsed.config) if parsed.config is not None else None
    return parsed.problems if warning is None else (*parsed.problems, warning)


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(f"{problem.severity}: {shown(problem, MOST_IN_LOG)}", file=sys.stderr)
