"""`pyflannel peers`: the other nodes as this node's daemon sees them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from pyflannel.cli import status
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.core.errors import EXIT_OK, DeviceUnavailable, NotPermitted
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.report.codec import decode
from pyflannel.report.model import SCHEMA, NodeReport
from pyflannel.report.paint import painted, wanted
from pyflannel.report.peers import by_trouble, table, troubled
from pyflannel.report.text import wrapped

ABOUT = """\
Those with trouble come first. What nothing was measured of is left out here and null in --json.
Bytes and drops are counted with backend udp alone: the kernel, which carries the packets of the
others, counts what passes a device, not for which peer.
Exit code 0, or 3 if there is no daemon or it may not be asked."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    given = branch().parser.parse_args(argv)
    try:
        answer = status.ask(given.status_socket, status.subnet_file())
    except (DeviceUnavailable, NotPermitted) as error:
        print(f"pyflannel: {shown(error, MOST_IN_LOG)}", file=sys.stderr)
        return status.EXIT_NOT_READY
    if answer.get("schema") != SCHEMA:
        # Such a daemon knows a number of peers, and not who they are.
        print(
            f"pyflannel: the daemon is of another release ({shown(answer.get('version'), 40)}) and "
            "has no list of peers; restart pyflanneld",
            file=sys.stderr,
        )
        return status.EXIT_NOT_READY
    if given.json:
        print(json.dumps(answer.get("peers", []), indent=2))
    else:
        text = render(decode(answer))
        print(painted(text) if wanted(os.environ, terminal=sys.stdout.isatty()) else text)
    return EXIT_OK


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel peers",
        "the other nodes, as this node's daemon sees them",
        ABOUT,
        examples=("pyflannel peers", "pyflannel peers --json"),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    status.add_socket_option(parser)
    return Branch(parser)


def render(report: NodeReport) -> str:
    """The table, and below it what is wrong with whom."""
    peers = by_trouble(report.peers)
    if not peers:
        why = "no other node has a lease" if report.ready else report.waiting_for or report.phase
        return shown(f"no peers: {why}", MOST_IN_LOG)
    lines = table(peers, report.now)
    for peer in filter(troubled, peers):
        if peer.reason:
            name = peer.subnet or peer.ipv6_subnet or ""
            lines += [shown(f"{name} {peer.state}:", MOST_IN_LOG), *wrapped(peer.reason)]
    return "\n".join(lines)
