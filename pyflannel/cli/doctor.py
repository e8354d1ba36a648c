"""`pyflannel doctor`: names the mistakes that people run into, each with what to type."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import cluster, status
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.core.errors import (
    EXIT_OK,
    DeviceUnavailable,
    FlannelError,
    NotPermitted,
    UsageError,
)
from pyflannel.core.options import DaemonOptions
from pyflannel.diagnose import checks as node_checks
from pyflannel.diagnose import finding
from pyflannel.diagnose.aroundgather import gather_around
from pyflannel.diagnose.gather import gather as gather_node
from pyflannel.diagnose.kubegather import gather_kube
from pyflannel.docker import checks
from pyflannel.docker import options as docker_options
from pyflannel.docker.facts import gather
from pyflannel.docker.model import Checked, DockerFacts, State
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.kernel.lock import is_held
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.report import problems
from pyflannel.report.codec import decode
from pyflannel.report.model import SCHEMA, NodeReport, Severity
from pyflannel.report.text import wrapped

if TYPE_CHECKING:
    from pyflannel.diagnose.datapaths import DatapathFacts

PART_OF: Final = {
    "store": frozenset(code for code in problems.CODES if code < "PF121")
    | {finding.NO_POD_CIDR, finding.NODE_MISSING, finding.API_DENIED},
    "peers": frozenset({problems.PEER_DOWN, problems.PEER_SMALL_ONLY, problems.CUT_OFF})
    | {problems.PEER_IGNORED, problems.NOT_APPLIED}
    | {finding.RP_FILTER, finding.ROUTED_ELSEWHERE, finding.OTHER_UNDERLAY, finding.SHARED_ADDRESS},
    "kubernetes": frozenset(
        code for code in finding.CODES if finding.NO_POD_CIDR <= code <= finding.BRIDGED_UNSEEN
    ),
}
"""Subjects that are a part of `node`, with their codes."""
SUBJECTS: Final = ("node", *PART_OF, "docker", "datapath")
ABOUT: Final = """Changes nothing.

Subject node (the default) looks at the daemon, the kernel, routes, devices and every firewall chain
that packets of the overlay meet; store and peers are the parts of it that are about etcd and the
lease, and about the other nodes; kubernetes is the node object, what makes the interfaces of
pods, and services. docker looks at what keeps docker out of the leased subnet;
datapath starts each data path of backend udp in a network namespace of its own, and says what the
kernel granted.

--cluster compares what nodes say of each other: over their health ports, where those are open
(--healthz-port, or FLANNELD_HEALTHZ_PORT), by --via 'ssh {host}', or from files that --from names.
A node that cannot be asked is unknown, one with flannel's own daemon too.

Exit code 0 if nothing is wrong, 1 if something is, 3 if it may not look. What only may be wrong is
said, and is 0. For datapath 1 means that --datapath auto takes none faster than python.
"""
FAST: Final = ("ebpf", "native")
"""Data paths that do not cost a process's wake-up for each packet."""
EXIT_WRONG: Final = 1
EXIT_CANNOT_LOOK: Final = 3
_SIGNS: Final = {State.OK: "ok     ", State.PROBLEM: "PROBLEM", State.UNKNOWN: "unknown"}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    given = branch().parser.parse_args(argv)
    if not Path(given.root).is_dir():
        raise UsageError(f"--root {given.root}: there is no such directory")
    if given.cluster:
        nodes = cluster.collect(
            given.status_socket, given.collected or "", given.via or "", given.healthz_port
        )
        return cluster.show(nodes, render_finding, as_json=given.json)
    if given.collected or given.via:
        raise UsageError("--from and --via go with doctor --cluster")
    if given.subject == "docker":
        return _show_docker(given.root, given.docker_opts_file, given.subnet_file, given.json)
    if given.subject == "datapath":
        return _show_datapaths(as_json=given.json)
    if given.root != "/":
        raise UsageError("--root is for subject docker: pyflannel doctor docker --root DIR")
    try:
        report, silence = _report(given.status_socket, given.subnet_file)
    except NotPermitted as error:
        print(f"pyflannel: {shown(error, MOST_IN_LOG)}", file=sys.stderr)
        return EXIT_CANNOT_LOOK
    found = asyncio.run(_node(report, silence, given.subnet_file))
    wanted = about(found, given.subject, given.peer or "")
    return show_node(wanted, given.subject, as_json=given.json)


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel doctor",
        "what keeps containers from reaching each other",
        ABOUT,
        examples=(
            "pyflannel doctor",
            "pyflannel doctor peers --peer 10.5.34.0/24",
            "pyflannel doctor docker --json",
            "pyflannel doctor --cluster --healthz-port 9471",
            "pyflannel doctor --cluster --via 'ssh {host}'",
        ),
    )
    parser.add_argument(
        "subject",
        nargs="?",
        metavar="SUBJECT",
        choices=SUBJECTS,
        default=SUBJECTS[0],
        help=f"{', '.join(SUBJECTS)} (default: {SUBJECTS[0]})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--root", metavar="DIR", default="/", help="docker: look below it")
    parser.add_argument(
        "--peer", metavar="PEER", help="what is about this peer: its subnet or public IP"
    )
    parser.add_argument("--cluster", action="store_true", help="compare nodes")
    parser.add_argument(
        "--from", dest="collected", metavar="DIR", help="cluster: NODE.json of status --json"
    )
    parser.add_argument("--via", metavar="CMD", help="cluster: how to reach one: 'ssh {host}'")
    parser.add_argument(
        "--healthz-port",
        metavar="PORT",
        type=cluster.port,
        default=os.environ.get("FLANNELD_HEALTHZ_PORT") or "0",
        help="cluster: the other daemons' health port; 0 asks none",
    )
    status.add_socket_option(parser)
    for name, default in (
        ("docker-opts-file", docker_options.DOCKER_ENV),
        ("subnet-file", status.subnet_file()),
    ):
        parser.add_argument(f"--{name}", metavar="PATH", default=default, help="the daemon's")
    return Branch(parser)


def about(found: Sequence[finding.Finding], subject: str, peer: str = "") -> list[finding.Finding]:
    """Those that are about a subject, and about a peer if one is named.

    That no daemon answers, and what could not be looked at, is about everything.
    """
    always = {finding.NO_DAEMON, finding.NOT_SEEN}
    codes = PART_OF.get(subject)
    return [
        one
        for one in found
        if (codes is None or one.code in codes | always)
        and (not peer or peer in f"{one.subject} {one.text}" or one.code in always)
    ]


def show_node(
    found: Sequence[finding.Finding], subject: str = SUBJECTS[0], *, as_json: bool
) -> int:
    """Prints the findings about a node; returns the exit code."""
    wrong = [one for one in found if one.severity is not Severity.INFO]
    if as_json:
        answer = {"schema": SCHEMA, "subject": subject, "findings": [asdict(one) for one in found]}
        print(json.dumps(answer, indent=2))
    else:
        for one in found:
            print(render_finding(one))
        count = len(wrong)
        print(f"{count} problem{'s' * (count > 1)}" if count else "nothing is wrong")
    return EXIT_WRONG if wrong else EXIT_OK


def render_finding(one: finding.Finding) -> str:
    """For people: what is so, what it was seen by, what comes of it, and the way out."""
    head = f"{one.severity.upper()} {one.code} {one.subject}"
    lines = [shown(head, MOST_IN_LOG), *wrapped(one.text)]
    lines += [f"  seen: {shown(each, MOST_IN_LOG)}" for each in one.evidence if each]
    if one.consequence:
        lines += wrapped(f"so: {one.consequence}")
    if one.remedy:
        lines += wrapped(f"do: {one.remedy}")
    return "\n".join(lines)


def _report(path: str, subnet_file: str) -> tuple[NodeReport | None, str]:
    """What the daemon says of itself, or why it says nothing.

    Raises:
        NotPermitted: it may not be asked.
    """
    try:
        answer = status.ask(path, subnet_file)
    except DeviceUnavailable as error:
        return None, str(error)
    if answer.get("schema") != SCHEMA:
        return None, "the daemon is of another release; restart pyflanneld"
    return decode(answer), ""


async def examine(socket: str, subnet_file: str) -> list[finding.Finding]:
    """What subject `node` finds.

    Raises:
        FlannelError: it may not look.
    """
    report, silence = _report(socket, subnet_file)
    return await _node(report, silence, subnet_file)


async def _node(report: NodeReport | None, silence: str, subnet_file: str) -> list[finding.Finding]:
    netlink = KernelNetlink()
    try:
        facts = await gather_node(netlink, KINDS, report, silence, subnet_file)
        around = await gather_around(netlink, KINDS, facts, DaemonOptions().state_dir)
        docker_facts = await gather(netlink, subnet_file=subnet_file)
        kube = gather_kube(report, environment=os.environ)
        return node_checks.findings(facts, around, of_docker(docker_facts), kube)
    finally:
        await netlink.close()


def _show_datapaths(*, as_json: bool) -> int:
    from pyflannel.diagnose import datapaths

    try:
        facts = datapaths.look()
    except NotPermitted as error:
        print(f"pyflannel: {shown(error, MOST_IN_LOG)}", file=sys.stderr)
        return EXIT_CANNOT_LOOK
    if as_json:
        print(json.dumps({"schema": SCHEMA, "subject": "datapath", **asdict(facts)}, indent=2))
    else:
        print(render_datapaths(facts))
    return EXIT_OK if facts.chosen in FAST else EXIT_WRONG


def render_datapaths(facts: DatapathFacts) -> str:
    """For people: what `auto` takes and why, and then each data path with what it can do."""
    lines = [f"auto: {facts.chosen or 'none'}", *wrapped(facts.why)]
    for path in facts.paths:
        lines.append(f"{path.name}: {'no' if path.obstacle else 'yes'}")
        lines += wrapped(path.obstacle) if path.obstacle else []
        width = max(map(len, path.can), default=0)
        lines += [f"  {name:{width}}  {shown(how, MOST_IN_LOG)}" for name, how in path.can.items()]
    return "\n".join(lines)


def of_docker(facts: DockerFacts) -> list[finding.Finding]:
    """What keeps a docker that runs here out of the leased subnet; nothing where none runs."""
    if facts.arguments is None:
        return []
    return [
        finding.Finding(
            code=checks.CODE_OF[one.check],
            severity=Severity.ERROR if one.check in DOCKER_CUTS else Severity.WARNING,
            subject="docker",
            text=one.seen,
            evidence=(f"pyflannel doctor docker: {one.check}",),
            consequence=one.consequence,
            remedy=one.remedy,
        )
        for one in checks.checked(facts)
        if one.state is State.PROBLEM and one.check in checks.CODE_OF
    ]


DOCKER_CUTS: Final = frozenset({"direct routing"})
"""What keeps containers apart now; the others do at docker's next start, or in part."""


def _show_docker(root: str, options_file: str, subnet_file: str, as_json: bool) -> int:  # noqa: FBT001
    found = asyncio.run(_docker(root, options_file, subnet_file))
    wrong = [one for one in found if one.state is State.PROBLEM]
    if as_json:
        print(json.dumps({"findings": [asdict(one) for one in found]}, indent=2))
    else:
        print("\n".join(map(render, found)))
        print(f"{len(wrong)} problems" if wrong else "nothing is wrong")
    return EXIT_WRONG if wrong else EXIT_OK


async def _docker(root: str, options_file: str, subnet_file: str) -> list[Checked]:
    netlink = KernelNetlink()
    try:
        facts = await gather(
            netlink, Path(root), options_file=options_file, subnet_file=subnet_file
        )
    finally:
        await netlink.close()
    if root == "/" and (facts.subnet is None or facts.subnet.subnet is None):
        facts = replace(facts, daemon=await asyncio.to_thread(_waits_for, subnet_file))
    return checks.checked(facts)


def _waits_for(subnet_file: str) -> str:
    """What the daemon with this subnet file waits for; empty if there is none."""
    if not is_held(subnet_file):
        return ""
    path = os.environ.get("FLANNELD_STATUS_SOCKET") or DaemonOptions().status_socket
    try:
        report = status.ask(path)
    except FlannelError as error:
        return str(error)
    return str(report.get("waiting_for") or report.get("phase") or "see pyflannel status")


def render(one: Checked) -> str:
    """For people: one line, and for a problem what comes of it and the way out."""
    lines = [f"{_SIGNS[one.state]}  {one.check}: {shown(one.seen, MOST_IN_LOG)}"]
    if one.consequence:
        lines.append(f"         so: {shown(one.consequence, MOST_IN_LOG)}")
    if one.remedy:
        lines.append(f"         do: {shown(one.remedy, MOST_IN_LOG)}")
    return "\n".join(lines)
