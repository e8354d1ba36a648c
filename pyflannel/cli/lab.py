"""`pyflannel lab`: a cluster in a box, from the command line.

`demo` shows what flannel does; `up`, `exec`, `ping`, `bench` and `down` are for looking closer.
Without root each of them moves into a user namespace first (`pyflannel.lab.rootless`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from pyflannel.cli import labparsers, status, web
from pyflannel.cli.common import table
from pyflannel.cli.order import options_first
from pyflannel.cli.parsers import with_value
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

branch = labparsers.branch

_MODULE: Final = "pyflannel.cli.lab"


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
        answer: overview.LabsJson = {"labs": labs}
        print(json.dumps(answer, indent=2))
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
        report: overview.StatusJson = {
            "name": lab.spec.name,
            "nodes": nodes,
            "broken": shown_faults,
            "hidden": hidden,
        }
        print(json.dumps(report, indent=2))
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


def _web(options: argparse.Namespace) -> int:
    return web.serve(options, overview.questions(Lab.open(options.name), status.ask))


def _bench(options: argparse.Namespace) -> int:
    lab = Lab.open(options.name)
    source, target = lab.node(options.source), lab.node(options.target)
    if source is target:
        raise UsageError("--from and --to: expected two different nodes")
    result = bench.run(source, target, seconds=options.seconds)
    print(json.dumps(result.to_json(), indent=2) if options.json else "\n".join(result.lines()))
    return EXIT_OK


def _demo(options: argparse.Namespace) -> int:
    return demo.run(nodes=options.nodes, datapath=options.datapath, picture=options.svg)


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
    "web": _web,
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


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    branch = labparsers.branch()
    name, rest = branch.choose(argv)
    parser = branch.actions[name]
    # What follows NODE or `--` is the command's own, whatever it looks like.
    arguments = 1 if name == "exec" else None
    ours, theirs = options_first(_joined(rest), with_value([parser]), arguments=arguments)
    if theirs[:1] == ["--"]:
        if name != "exec":
            raise UsageError(f"pyflannel lab {name}: takes no command after --")
        theirs = theirs[1:]
    options = parser.parse_args(ours)
    options.command = name
    if name == "exec":
        options.argv = theirs
    return options


def _joined(words: Sequence[str]) -> list[str]:
    """With the values of --daemon-arg, which are options themselves, in its own word."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == labparsers.DAEMON_ARG:
            joined[-1] = f"{labparsers.DAEMON_ARG}={word}"
        else:
            joined.append(word)
    return joined


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
    if options.command in {"down", "list", "logs", "web"} or getattr(options, "list", False):
        return  # reading files and ending one's own processes needs no rights
    holder = StateDirectory(options.name).load().processes.get("switch")
    if holder is not None and holder.alive():
        rootless.enter_of(holder, _MODULE, argv)


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
