"""`pyflannel`: the operator's tool. One module per subcommand, imported when it is asked for."""

from __future__ import annotations

import signal
import sys
from pathlib import PurePath

IS_PROGRAM = __name__ == "__main__" or PurePath(sys.argv[0]).name == "pyflannel"
if IS_PROGRAM:
    # Ctrl-C during the imports ends the process without a traceback out of one of them. `guarded`
    # gives the signal back to Python before a command begins.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import pyflannel
from pyflannel.cli import streams
from pyflannel.cli.order import HELP, command_first
from pyflannel.core.errors import EXIT_DEFECT, EXIT_UNAVAILABLE, EXIT_USAGE, FlannelError
from pyflannel.foreign import MOST_IN_LOG, shown, shown_lines
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: where it lives, and what `--help` says of it."""

    module: str
    summary: str


COMMANDS: Final[dict[str, Command]] = {
    "lab": Command("pyflannel.cli.lab", "a cluster in a box, made of network namespaces"),
    "config": Command("pyflannel.cli.config", "the network config in etcd"),
    "static": Command(
        "pyflannel.cli.static", "the static network file, config and nodes without etcd"
    ),
    "leases": Command("pyflannel.cli.leases", "who has which subnet"),
    "status": Command("pyflannel.cli.status", "this node, as its daemon sees it"),
    "peers": Command("pyflannel.cli.peers", "the other nodes, as this node's daemon sees them"),
    "ping": Command("pyflannel.cli.ping", "reach a peer or a pod, layer by layer"),
    "trace": Command("pyflannel.cli.trace", "the way of a packet between two pods, hop by hop"),
    "web": Command("pyflannel.cli.web", "this node's status as a page, live"),
    "cleanup": Command("pyflannel.cli.cleanup", "remove every trace of a stopped daemon"),
    "doctor": Command("pyflannel.cli.doctor", "what keeps containers from reaching each other"),
    "bundle": Command("pyflannel.cli.bundle", "what a bug report needs, without secrets"),
    "docker-setup": Command("pyflannel.cli.dockersetup", "start docker in the leased subnet"),
    "completion": Command(
        "pyflannel.cli.completion", "what a shell needs to complete these commands"
    ),
    "mk-docker-opts": Command(
        "pyflannel.cli.dockeropts", "docker's options from subnet.env (mk-docker-opts.sh)"
    ),
}


EXAMPLES: Final = (
    "pyflannel lab demo",
    "pyflannel config check network.json",
    "pyflannel status",
    "pyflannel help leases",
)


def usage() -> str:
    """What `pyflannel --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [
        "Usage: pyflannel COMMAND [OPTION]...",
        "       pyflannel help COMMAND",
        "",
        "Commands:",
    ]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "Examples:",
        *(f"  {line}" for line in EXAMPLES),
        "",
        "Every command has --help; those that print data have --json. Options and",
        "arguments may stand in any order.",
        "Exit codes: 0 done, 1 done and the answer is no, 2 bad command line,",
        "            3 cannot look, 69 something needed is not available,",
        "            77 not permitted, 78 bad configuration, 70 a defect of pyflannel.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process."""
    if not streams.make_whole():
        print("pyflannel: standard output is closed; write >/dev/null", file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    streams.watch_output()
    words = list(sys.argv[1:] if argv is None else argv)
    sys.exit(streams.finish("pyflannel", lambda: run(words)))


_WITH_VALUE: Final = """
    --etcd-cafile --etcd-certfile --etcd-discovery-srv --etcd-discovery-srv-name --etcd-endpoints
    --etcd-keyfile --etcd-password --etcd-password-file --etcd-prefix --etcd-username
    --backend --config --count --daemon-arg --datapath --deadline --docker-opts-file --etcd --from
    --healthz-port --iface --iface-can-reach --iface-regex --instance --lines --name --network
    --node-command --nodes --peer --port --protocol --public-ip --public-ipv6 --root --seconds
    --seed --silent-for --size --state-dir --status-socket --store --subnet-file --svg --to
    --underlay --underlay-mtu --unit --via -n
"""
WITH_VALUE: Final = frozenset(_WITH_VALUE.split())
"""Options whose value is the next word, in every command that has them. They may stand before the
command, which is not imported yet then."""
MAYBE_VALUE: Final = frozenset({"--node", "--watch"})
"""Options that have a value in some commands, or may have one."""


def run(argv: list[str]) -> int:
    """Runs one command and returns its exit code."""
    words = command_first(argv, {*COMMANDS, "help"}, WITH_VALUE, MAYBE_VALUE)
    if words[:1] == ["help"] and words[1:]:
        words = [*(word for word in words[1:] if word not in HELP), "--help"]
    if not words or words[0] in HELP:
        print(usage(), end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else EXIT_USAGE
    if words[0] in {"--version", "-version", "version"}:
        print(f"pyflannel {pyflannel.__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name.startswith("-"):
        option = shown(name.partition("=")[0])
        print(f"pyflannel: no command behind {option}. See pyflannel --help", file=sys.stderr)
        return EXIT_USAGE
    if name not in COMMANDS:
        from pyflannel.suggest import did_you_mean

        near = did_you_mean(name, COMMANDS)
        hint = f", did you mean {near}?" if near else ""
        print(f"pyflannel: no command {name!r}{hint} See pyflannel --help", file=sys.stderr)
        return EXIT_USAGE
    return guarded("pyflannel " + name, COMMANDS[name].module, rest)


def guarded(program: str, module: str, argv: list[str]) -> int:
    """Calls a command's `main` and turns what it raises into a last line and an exit code."""
    try:
        command: Callable[[list[str]], int] = importlib.import_module(module).main
        if IS_PROGRAM:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return command(argv)
    except FlannelError as error:
        print(f"{program}: {shown(error, MOST_IN_LOG)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except streams.OutputFailed:
        raise  # `main` says so
    except Exception as error:  # noqa: BLE001 - the border of the process
        import traceback

        print(shown_lines(traceback.format_exc()), end="", file=sys.stderr)
        print(f"{program}: defect: {shown(repr(error), MOST_IN_LOG)}", file=sys.stderr)
        return EXIT_DEFECT


if __name__ == "__main__":
    main()
