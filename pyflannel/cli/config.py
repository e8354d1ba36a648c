"""`pyflannel config set|get|check`: the network config, checked before anybody depends on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.backends import help_text
from pyflannel.cli.common import Parser, split_etcd, with_store
from pyflannel.cli.order import command_first
from pyflannel.cli.streams import write_bytes
from pyflannel.core.config import NetworkConfig, Parsed, effective, parse_network_config
from pyflannel.core.errors import EXIT_CONFIG, EXIT_OK, ConfigError, UsageError
from pyflannel.core.fields import Problem
from pyflannel.core.trust import command_warning
from pyflannel.foreign import MOST_IN_LOG, escape, shown
from pyflannel.store.etcd import codec

DESCRIPTION = """The network config, the JSON under <etcd-prefix>/config.

  set FILE    check FILE ('-' is standard input) and write it to etcd
  get         print what etcd holds
  check FILE  say what is wrong with FILE; needs no etcd

Each of them has its own --help. Exit code 78 if the config has an error."""

PAGES: Final = {
    "set": """Checks FILE and writes it to etcd, where every daemon reads it when it starts.

Exit code 78 if the config has an error; nothing is written then, unless --force is given.

Example:
  pyflannel config set network.json --etcd-endpoints=http://192.0.2.10:2379
  echo '{"Network": "10.5.0.0/16"}' | pyflannel config set -""",
    "get": """Prints the network config that etcd holds, byte for byte.

With --json it is printed as the daemons understand it: every key with its value, and what is
wrong. Exit code 78 if etcd holds none.

Example:
  pyflannel config get >network.json
  pyflannel config get --json --etcd-prefix=/other/network""",
    "check": """Says what is wrong with FILE, and how the daemons understand it. Needs no etcd.

With --node it is compared with this machine as well: the interface and what the backend asks of
it, and what Network and all leases overlap (connected prefixes, addresses, next hops, etcd). The
daemon's options are those of its unit; --iface, --iface-regex, --iface-can-reach, --public-ip,
--public-ipv6, --subnet-file, --state-dir and --datapath may be given here too. Leases are read from
etcd; if it does not answer, that is a warning.

With --kubernetes it is read as a net-conf.json is, where subnets are the nodes' podCIDRs.

Exit code 78 if there is an error.

Example:
  pyflannel config check network.json
  pyflannel config check --kubernetes /etc/kube-flannel/net-conf.json
  pyflannel config get | pyflannel config check - --json
  pyflannel config check network.json --node --etcd-endpoints=http://192.0.2.10:2379""",
}
"""What each action's --help begins with."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options, rest = split_etcd(argv)
    node_words: list[str] = []
    if "--node" in rest:
        # Looking at a machine is more to import than looking at a file.
        from pyflannel.cli import nodecheck

        node_words, rest = nodecheck.split_node(rest)
    words = command_first(rest, PAGES, ())
    given = _parser(words).parse_args(words)
    if given.node and given.action != "check":
        raise UsageError("--node goes with config check")
    if given.action == "get":
        if given.file is not None:
            raise UsageError("config get takes no FILE")
        found = with_store(options, lambda store: store.get(codec.config_key(options.prefix)))
        if not found.kvs:
            where = shown(codec.config_key(options.prefix))
            raise ConfigError(f"no network config under {where}; write one with config set")
        return _show(found.kvs[0].value, as_json=given.json)
    if given.file is None:
        raise UsageError(f"config {given.action} needs a FILE ('-' is standard input)")
    raw = _read(given.file)
    if given.action == "check":
        if not given.node:
            return _check(raw, as_json=given.json, kubernetes=given.kubernetes)
        on_node = partial(nodecheck.check, words=node_words, etcd=options)
        return _check(raw, as_json=given.json, kubernetes=given.kubernetes, on_node=on_node)
    parsed = parse_network_config(raw, KINDS)
    _print_problems(_problems(parsed))
    if parsed.config is None and not given.force:
        print("pyflannel config: nothing was written", file=sys.stderr)
        return EXIT_CONFIG
    key = codec.config_key(options.prefix)
    with_store(options, lambda store: store.put(key, raw))
    print(f"written to {shown(key)}")
    return EXIT_OK


def _parser(words: Sequence[str]) -> Parser:
    """The parser of one action, whose help is about that alone; else of all of them."""
    action = words[0] if words and words[0] in PAGES else ""
    more = None if action == "get" else lambda: help_text(KINDS)
    prog, about = f"pyflannel config {action}".rstrip(), PAGES.get(action, DESCRIPTION)
    usage = None if not action else f"{prog} [OPTION]..." + ("" if action == "get" else " FILE")
    parser = Parser(prog, about, etcd=True, more=more)
    parser.usage = usage
    shown = argparse.SUPPRESS if action else None
    parser.add_argument("action", choices=tuple(PAGES), help=shown)
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help=shown if action == "get" else "'-' is stdin"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--node",
        action="store_true",
        help="check: compare with this machine" if action in ("", "check") else argparse.SUPPRESS,
    )
    if action in ("", "check"):
        parser.add_argument(
            "--kubernetes", action="store_true", help="check: as a net-conf.json of Kubernetes"
        )
    if action in ("", "set"):
        parser.add_argument(
            "--force", action="store_true", help="set: write it although it has errors"
        )
    return parser


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
        report = {
            "config": effective(parsed.config) if parsed.config is not None else None,
            "problems": [
                {
                    "severity": str(problem.severity),
                    "key": problem.key,
                    "message": problem.message,
                    "remedy": problem.remedy,
                }
                for problem in problems
            ],
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
