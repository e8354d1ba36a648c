"""`pyflannel doctor`: names the mistakes that people run into, each with what to type."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from pyflannel.cli import status
from pyflannel.cli.common import Parser
from pyflannel.core.errors import EXIT_CONFIG, EXIT_OK, FlannelError, UsageError
from pyflannel.core.options import DaemonOptions
from pyflannel.docker import checks
from pyflannel.docker import options as docker_options
from pyflannel.docker.checks import Finding, State
from pyflannel.docker.facts import gather
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.kernel.lock import is_held
from pyflannel.kernel.netlink import KernelNetlink

SUBJECTS: Final = ("docker",)
_SIGNS: Final = {State.OK: "ok     ", State.PROBLEM: "PROBLEM", State.UNKNOWN: "unknown"}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 78 if there is a problem."""
    parser = Parser(
        "pyflannel doctor",
        "Looks for what keeps containers from reaching each other. Changes nothing.\n"
        "Exit code 78 if there is a problem.",
    )
    parser.add_argument("subject", nargs="?", choices=SUBJECTS, default=SUBJECTS[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--root", metavar="DIR", default="/", help="look at files below it (/)")
    for name, default in (
        ("docker-opts-file", docker_options.DOCKER_ENV),
        ("subnet-file", docker_options.FLANNEL_ENV),
    ):
        parser.add_argument(f"--{name}", metavar="PATH", default=default, help=f"({default})")
    given = parser.parse_args(argv)
    if not Path(given.root).is_dir():
        raise UsageError(f"--root {given.root}: there is no such directory")
    found = asyncio.run(_docker(given.root, given.docker_opts_file, given.subnet_file))
    problems = [finding for finding in found if finding.state is State.PROBLEM]
    if given.json:
        print(json.dumps({"findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        print("\n".join(map(render, found)))
        print(f"{len(problems)} problems" if problems else "nothing is wrong")
    return EXIT_CONFIG if problems else EXIT_OK


async def _docker(root: str, options_file: str, subnet_file: str) -> list[Finding]:
    netlink = KernelNetlink()
    try:
        facts = await gather(
            netlink, Path(root), options_file=options_file, subnet_file=subnet_file
        )
    finally:
        await netlink.close()
    if root == "/" and (facts.subnet is None or facts.subnet.subnet is None):
        facts = replace(facts, daemon=await asyncio.to_thread(_waits_for, subnet_file))
    return checks.findings(facts)


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


def render(finding: Finding) -> str:
    """For people: one line, and for a problem what comes of it and the way out."""
    lines = [f"{_SIGNS[finding.state]}  {finding.check}: {shown(finding.seen, MOST_IN_LOG)}"]
    if finding.consequence:
        lines.append(f"         so: {shown(finding.consequence, MOST_IN_LOG)}")
    if finding.remedy:
        lines.append(f"         do: {shown(finding.remedy, MOST_IN_LOG)}")
    return "\n".join(lines)
