"""`pyflannel lab`: a cluster in a box, from the command line.

`demo` shows what flannel does; `up`, `exec`, `ping`, `bench` and `down` are for looking closer.
Without root each of them moves into a user namespace first (`pyflannel.lab.rootless`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.common import table
from pyflannel.cli.order import command_first, options_first
from pyflannel.core.errors import EXIT_OK, FlannelError, UsageError
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.lab import bench, demo, overview, precheck, rootless, topology, trouble
from pyflannel.lab.cluster import Lab, describe
from pyflannel.lab.errors import LabError, NoSuchLab
from pyflannel.lab.program import program
from pyflannel.lab.state import StateDirectory
from pyflannel.lab.topology import LabSpec, Underlay

EXIT_UNANSWERED: Final = demo.EXIT_UNANSWERED
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

_OF_ETCD: Final = ("FLANNELD_ETCD_", "ETCDCTL_", "FLANNEL_ETCD")
"""Variables that say where an etcd is, and how to get in."""

_DAEMON_ARG: Final = "--daemon-arg"

_MODULE: Final = "pyflannel.cli.lab"


class _Parser(argparse.ArgumentParser):
    """argparse, with our exception in the place of its exit."""

    def error(self, message: str) -> NoReturn:
        # Of an unknown option only the name: its value may be a password.
        what, colon, words = message.partition("unrecognized arguments: ")
        if colon and not what and "-" in words:
            names = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
            message = f"unknown option {' '.join(names)}"
        raise UsageError(f"{self.prog}: {message}")


def main(argv: Sequence[str]) -> int:
    """Runs one lab command and returns its exit code."""
    try:
        options = _parse(argv)
        _gain_rights(options, argv)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, _interrupt)
        return _COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except FlannelError as error:
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        print(f"pyflannel lab: {error}", file=sys.stderr)
        return error.exit_code


def _up(options: argparse.Namespace) -> int:
    spec = spec_from_options(options)
    for warning in precheck.check(spec):
        print(f"warning: {shown(warning, MOST_IN_LOG)}", file=sys.stderr)
    lab = Lab(spec)
    lab.up()
    lab.leave_running()
    if options.json:
        print(json.dumps(describe(lab), indent=2))
        return EXIT_OK
    if lab.spec.store == "etcd":
        where = f"etcd: {lab.etcd.endpoint}, prefix {lab.spec.prefix}"
    else:
        where = f"leases: {topology.STATIC_FILE} on each node"
    print(f"lab {lab.spec.name!r} is up; {where}")
    for node in lab.nodes:
        subnet = node.subnet_env().get("FLANNEL_SUBNET", "no subnet")
        pod = node.pod_address() or "none"
        print(f"  {node.name:<8}{node.address:<14}{subnet:<20}pod {pod:<16}{node.directory}/log")
    name = "" if lab.spec.name == "default" else f" --name {lab.spec.name}"
    start = f"{program()} lab"
    print(f"next: {start} ping{name}; {start} exec{name} 1 -- ip route")
    return EXIT_OK


def _down(options: argparse.Namespace) -> int:
    directory = StateDirectory(options.name)
    try:
        directory.load()
    except NoSuchLab:
        if directory.is_roots():
            raise  # nothing was taken away, and something is up
        print(f"no lab named {options.name!r} is up")
        return EXIT_OK
    Lab(LabSpec(name=options.name)).down()
    print(f"lab {options.name!r} is gone")
    return EXIT_OK


def _ping(options: argparse.Namespace) -> int:
    lab = Lab.open(options.name)
    matrix = lab.ping_all(count=options.count, deadline=options.deadline, version=options.version)
    if options.json:
        print(json.dumps(matrix.to_json(), indent=2))
    else:
        print("\n".join(matrix.table()))
        for failure in matrix.failures():
            print(failure.silence(options.deadline))
    return EXIT_OK if matrix.ok else EXIT_UNANSWERED


def _exec(options: argparse.Namespace) -> int:
    lab = Lab.open(options.name)
    if options.node == "switch":
        space = lab.switch
    else:
        node = lab.node(topology.node_number(options.node))
        space = node.pod if options.pod or options.node.startswith("pod") else node.space
    command = options.argv or [os.environ.get("SHELL", "/bin/sh")]
    entry = space.enter(command, cwd=Path.cwd())
    try:
        # In our place: terminal, signals and exit code are the command's own.
        os.execvpe(entry[0], entry, exec_environment(lab, space.environment()))  # noqa: S606 - no shell is wanted
    except FileNotFoundError as error:
        raise LabError(f"{entry[0]} is missing (Debian: util-linux)") from error


def exec_environment(lab: Lab, found: Mapping[str, str]) -> dict[str, str]:
    """The environment for a command inside: the tools there find the lab's etcd, and no other.

    Args:
        lab: which is up.
        found: what the command would get from outside; what is said there of another etcd, a
            password perhaps, does not go along.
    """
    kept = {name: value for name, value in found.items() if not name.startswith(_OF_ETCD)}
    if lab.spec.store != "etcd":
        return kept
    endpoint = lab.etcd.endpoint
    return kept | {
        "FLANNELD_ETCD_ENDPOINTS": endpoint,
        "FLANNELD_ETCD_PREFIX": lab.spec.prefix,
        "ETCDCTL_ENDPOINTS": endpoint,
    }


def _break(options: argparse.Namespace) -> int:
    text = " ".join(options.fault)
    if options.list:
        print("\n".join(trouble.listing()))
        return EXIT_OK
    if bool(text) == options.random:
        raise UsageError("lab break: expected a FAULT or --random; --list has them all")
    name = trouble.named(text) if text else ""
    lab = Lab.open(options.name)
    number = topology.node_number(options.node) if options.node else 1
    if not name:
        rng = random.Random(options.seed)  # noqa: S311 - a riddle, no secret
        name, chosen = trouble.choose(lab, rng)
        number = number if options.node else chosen
    broken = trouble.break_it(lab, name, number, hidden=options.hide)
    lab.leave_running()
    which = "" if lab.spec.name == "default" else f" --name {lab.spec.name}"
    if options.hide:
        print("something is broken; what and where, `pyflannel lab heal` tells")
    else:
        print(broken)
    if options.hide or name in trouble.TROUBLES:
        print(f"look: {program()} lab ping{which}; {program()} lab status{which}")
        print(f"undo: {program()} lab heal{which}")
    else:
        print(f"the daemon mends it; look: {program()} lab logs{which} {number}")
    return EXIT_OK


def _heal(options: argparse.Namespace) -> int:
    lab = Lab.open(options.name)
    for broken in trouble.recorded(lab):
        print(f"was broken: {broken}")
    begin = time.monotonic()
    matrix = trouble.heal(lab)
    lab.leave_running()
    took = f"after {time.monotonic() - begin:.1f} s"
    if matrix is None:
        print(f"all is undone {took}; the lab has no pods to try it with")
        return EXIT_OK
    failures = matrix.failures()
    print(f"{len(matrix.results) - len(failures)} of {len(matrix.results)} pairs answer {took}")
    for failure in failures:
        print(f"{failure.source} to {failure.target} ({failure.address}): no answer")
    return EXIT_OK if matrix.ok else EXIT_UNANSWERED


def _list(options: argparse.Namespace) -> int:
    labs = overview.labs()
    if options.json:
        print(json.dumps({"labs": labs}, indent=2))
    elif not labs:
        print("no lab is up; `pyflannel lab up` makes one")
    else:
        rows = [[str(cell) for cell in row.values()] for row in labs]
        print(table([name.upper() for name in labs[0]], rows), end="")
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    lab = Lab.open(options.name)
    nodes = overview.nodes(lab)
    broken = trouble.recorded(lab)
    shown_faults = [str(each) for each in broken if not each.hidden]
    hidden = sum(each.hidden for each in broken)
    fine = all(node["state"] == "running" for node in nodes)
    if options.json:
        report = {"nodes": nodes, "broken": shown_faults, "hidden": hidden}
        print(json.dumps({"name": lab.spec.name, **report}, indent=2))
        return EXIT_OK if fine else EXIT_UNANSWERED
    heads = ("NODE", "UNDERLAY", "SUBNET", "POD", "STATE")
    rows = [
        (node["node"], node["public_ip"], node["subnet"] or "-", node["pod"] or "-", node["state"])
        for node in nodes
    ]
    print(table(heads, rows), end="")
    for node in nodes:
        for problem in node["problems"]:
            print(f"{node['node']}: {shown(problem, MOST_IN_LOG)}")
    for text in shown_faults:
        print(f"broken on purpose: {text}")
    if hidden:
        print(f"and {hidden} more that `pyflannel lab heal` tells")
    return EXIT_OK if fine else EXIT_UNANSWERED


def _logs(options: argparse.Namespace) -> int:
    directory = StateDirectory(options.name)
    state = directory.load()
    numbers = [k for k in range(1, topology.MAX_NODES + 1) if f"node{k}" in state.processes]
    places = {f"node{k}": directory.path / f"node{k}" / "log" for k in numbers}
    places["etcd"] = directory.path / "etcd.log"
    wanted = list(options.node)
    for at, text in enumerate(wanted):
        wanted[at] = text if text == "etcd" else f"node{topology.node_number(text)}"
        if wanted[at] not in places:
            raise UsageError(f"{text}: the lab {options.name!r} has {', '.join(places)}")
    files = [str(places[name]) for name in wanted or places if wanted or places[name].exists()]
    lines = ["-n", str(options.lines)]
    follow = ["-F"] if options.follow else []
    entry = ["tail", *lines, *follow, "--", *files]
    sys.stdout.flush()
    os.execvp(entry[0], entry)  # noqa: S606 - no shell is wanted; tail is everywhere


def _bench(options: argparse.Namespace) -> int:
    lab = Lab.open(options.name)
    source, target = lab.node(options.source), lab.node(options.target)
    if source is target:
        raise UsageError("--from and --to: expected two different nodes")
    result = bench.run(source, target, seconds=options.seconds)
    print(json.dumps(result.to_json(), indent=2) if options.json else "\n".join(result.lines()))
    return EXIT_OK


def _demo(options: argparse.Namespace) -> int:
    return demo.run(nodes=options.nodes, datapath=options.datapath)


_COMMANDS: Final = {
    "demo": _demo,
    "up": _up,
    "ping": _ping,
    "exec": _exec,
    "bench": _bench,
    "break": _break,
    "heal": _heal,
    "list": _list,
    "status": _status,
    "logs": _logs,
    "down": _down,
}


def spec_from_options(options: argparse.Namespace) -> LabSpec:
    """The lab that the options of `up` ask for."""
    return LabSpec(
        name=options.name,
        nodes=options.nodes,
        backend=options.backend,
        network=options.network,
        config=_read(options.config) if options.config else None,
        prefix=options.etcd_prefix,
        node_commands=_node_commands(options.node_command, options.nodes),
        datapath=options.datapath,
        daemon_args=tuple(options.daemon_arg),
        start_daemons=not options.no_daemons,
        underlay=Underlay(options.underlay),
        underlay_mtu=options.underlay_mtu,
        tx_checksums=not options.tx_checksums_off,
        store=options.store,
        etcd=options.etcd,
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


EXAMPLES: Final[Mapping[str, Sequence[str]]] = {
    "demo": ("demo --nodes 5",),
    "up": ("up --nodes 3 --backend vxlan", "up --name other --config config/vxlan.json"),
    "ping": ("ping --count 1 --deadline 2",),
    "exec": ("exec 1 -- ip route", "exec pod2 ping -c1 10.0.1.2", "exec switch -- tcpdump -ni any"),
    "bench": ("bench --from 1 --to 3 --seconds 5",),
    "break": ("break route-deleted --node 2", "break --random --hide"),
    "heal": ("heal",),
    "list": ("list --json",),
    "status": ("status",),
    "logs": ("logs 2 --follow",),
    "down": ("down --name other",),
}
"""What each command's help ends with, behind `pyflannel lab`."""


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The command line of `pyflannel lab`, and of each of its commands."""
    top = _Parser(
        prog="pyflannel lab",
        description="A flannel cluster in network namespaces of this machine.",
        epilog="Nothing outside the namespaces is touched, and `down` leaves nothing behind.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, *, named: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="\n  pyflannel lab ".join(["Example:", *EXAMPLES[name]]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if named:
            command.add_argument(
                "--name", default="default", help="which lab (default: %(default)s)"
            )
        return command

    show = add("demo", "show what flannel does, on three nodes, and clean up", named=False)
    show.add_argument("--nodes", type=int, default=3, metavar="N", help="default: %(default)s")
    show.add_argument("--datapath", default="", metavar="X", help="data path of the daemons")

    _add_up_options(add("up", "make a lab and leave it running"))

    ping = add("ping", "ping between all pairs of pods; ends 1 if a pair does not answer")
    ping.add_argument("--json", action="store_true", help="print JSON")
    ping.add_argument(
        "--count", type=_count, default=3, metavar="N", help="answers wanted per pair"
    )
    ping.add_argument("--deadline", type=_seconds, default=5.0, metavar="S", help="seconds to try")

    ping.add_argument(
        "-6", dest="version", action="store_const", const=6, default=4, help="over IPv6"
    )

    run = add("exec", "run a command on a node, in its pod, or on the switch")
    run.add_argument("--pod", action="store_true", help="in the node's pod")
    run.add_argument("node", metavar="NODE", help="1, node1, pod1 or switch")
    run.add_argument(
        "argv", nargs="*", metavar="-- CMD", help="the command and its arguments; a shell if none"
    )

    speed = add("bench", "measure throughput and latency between two pods of a lab")
    speed.add_argument("--json", action="store_true", help="print JSON")
    speed.add_argument("--from", dest="source", type=int, default=1, metavar="NODE")
    speed.add_argument("--to", dest="target", type=int, default=2, metavar="NODE")
    speed.add_argument(
        "--seconds", type=_seconds, default=2.0, metavar="S", help="of each of four measurements"
    )

    harm = add("break", "break something in a lab, to see it heal or to find it")
    harm.add_argument("fault", nargs="*", metavar="FAULT", help="what; --list has them all")
    harm.add_argument("--list", action="store_true", help="print all faults, break nothing")
    harm.add_argument("--random", action="store_true", help="choose one that stays broken")
    harm.add_argument("--hide", action="store_true", help="do not say what is broken, or where")
    harm.add_argument("--node", metavar="NODE", help="where (default: 1; with --random any)")
    harm.add_argument("--seed", metavar="TEXT", help="with --random: the same choice each time")

    add("heal", "undo whatever `break` did; ends 1 if a pair of pods does not answer")

    labs = add("list", "the labs of this machine that are up", named=False)
    labs.add_argument("--json", action="store_true", help="print JSON")

    state = add("status", "how each node of a lab is; ends 1 if one has a problem")
    state.add_argument("--json", action="store_true", help="print JSON")

    logs = add("logs", "what the daemons have logged, and etcd")
    logs.add_argument("node", nargs="*", metavar="NODE", help="1, node1 or etcd; all if none")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    logs.add_argument(
        "-n", "--lines", type=_count, default=20, metavar="N", help="of each (default: %(default)s)"
    )

    add("down", "take a lab away, also one that is only half made")
    return top, commands.choices


def _add_up_options(up: argparse.ArgumentParser) -> None:
    up.add_argument("--nodes", type=int, default=3, metavar="N", help="default: %(default)s")
    up.add_argument(
        "--backend",
        default="udp",
        metavar="TYPE",
        help=f"{', '.join(KINDS.names())} (default: %(default)s)",
    )
    up.add_argument("--network", default=topology.DEFAULT_NETWORK, metavar="CIDR")
    up.add_argument("--config", metavar="FILE", help="the whole network config; - is stdin")
    up.add_argument(
        "--node-command",
        action="append",
        default=[],
        metavar="K=CMD",
        help="node K runs CMD (with upstream's -etcd-endpoints, -etcd-prefix, -subnet-file and "
        "-iface appended) in the place of pyflanneld; may be given again",
    )
    up.add_argument("--datapath", default="", metavar="X", help="data path of the daemons")
    up.add_argument(
        _DAEMON_ARG,
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument for each pyflanneld, as --daemon-arg --ip-masq; may be given again",
    )
    up.add_argument("--no-daemons", action="store_true", help="stop when etcd has the config")
    up.add_argument(
        "--underlay",
        choices=[mode.value for mode in Underlay],
        default=Underlay.AS_IT_COMES.value,
        help="segmentation offload of the underlay: all, none to send, none at all",
    )
    up.add_argument("--underlay-mtu", type=int, default=1500, metavar="BYTES")
    up.add_argument(
        "--tx-checksums-off",
        action="store_true",
        help="finish checksums before the underlay, as a card without that offload",
    )
    up.add_argument(
        "--store",
        choices=topology.STORES,
        default="etcd",
        help="who keeps the leases: etcd, or a static network file on each node",
    )
    up.add_argument("--etcd", default="", metavar="PATH", help="the etcd server program")
    up.add_argument("--etcd-prefix", default=topology.DEFAULT_PREFIX, metavar="PREFIX")
    up.add_argument("--json", action="store_true", help="print JSON")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    top, commands = _parsers()
    words = command_first(argv, commands, _with_value(commands.values()))
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words and words[0].startswith("-") and words[0] not in {"-h", "--help"}:
        raise UsageError(f"pyflannel lab: no command behind {words[0].partition('=')[0]}")
    if not words or words[0] not in commands:
        return top.parse_args(words)
    name, rest = words[0], words[1:]
    values = _with_value([commands[name]])
    # What follows NODE or `--` is the command's own, whatever it looks like.
    ours, theirs = options_first(_joined(rest), values, arguments=1 if name == "exec" else None)
    if theirs[:1] == ["--"]:
        if name != "exec":
            raise UsageError(f"pyflannel lab {name}: takes no command after --")
        theirs = theirs[1:]
    options = top.parse_args([name, *ours])
    if name == "exec":
        options.argv = theirs
    return options


def _joined(words: Sequence[str]) -> list[str]:
    """With the values of --daemon-arg, which are options themselves, in its own word."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == _DAEMON_ARG:
            joined[-1] = f"{_DAEMON_ARG}={word}"
        else:
            joined.append(word)
    return joined


def _with_value(parsers: Iterable[argparse.ArgumentParser]) -> frozenset[str]:
    """The options that take a value."""
    return frozenset(
        name
        for each in parsers
        for action in each._actions  # noqa: SLF001 - argparse shows them nowhere else
        if action.nargs is None
        for name in action.option_strings
    )


def _node_commands(given: Sequence[str], nodes: int) -> Mapping[int, str]:
    commands: dict[int, str] = {}
    for text in given:
        match = re.fullmatch(r"([1-9][0-9]*)=(.*\S.*)", text, re.DOTALL)
        if match is None:
            raise UsageError(f"--node-command {text!r}: expected K=CMD, like 2=/usr/bin/flanneld")
        if int(match[1]) > nodes:
            raise UsageError(f"--node-command {text!r}: the lab has {nodes} nodes")
        commands[int(match[1])] = match[2]
    return commands


def _read(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error


def _gain_rights(options: argparse.Namespace, argv: Sequence[str]) -> None:
    if rootless.has_rights() or rootless.is_inside():
        return
    if options.command in {"up", "demo"}:
        rootless.enter_new(_MODULE, argv)
    if options.command in {"down", "list", "logs"} or getattr(options, "list", False):
        return  # reading files and ending one's own processes needs no rights
    holder = StateDirectory(options.name).load().processes.get("switch")
    if holder is not None and holder.alive():
        rootless.enter_of(holder, _MODULE, argv)


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
