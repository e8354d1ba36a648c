"""`pyflannel trace`: the way of a packet between two pods over this node, and where it ends."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from ipaddress import ip_address
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import status
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.core.errors import (
    EXIT_OK,
    DeviceUnavailable,
    FlannelError,
    NotPermitted,
    UsageError,
)
from pyflannel.core.ip import IPAddress
from pyflannel.diagnose.gather import gather
from pyflannel.diagnose.way import Hop, Outcome, ends, way
from pyflannel.diagnose.waygather import gather_way
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.report.codec import decode
from pyflannel.report.model import NodeReport

ABOUT: Final = """\
Every hop with the kernel's object that decides there (a device, chains, a route, a neighbour, an
FDB entry), and where it ends. Both are addresses of the overlay; one is a pod of this node, and
the other end's half is told by the same command there. Nothing is sent and nothing is changed:
the rules are evaluated for the first packet of a connection.

Exit code 0 if nothing here ends it, 1 if something does, 3 if it may not look."""
EXIT_ENDS: Final = 1
EXIT_CANNOT: Final = 3
_SIGNS: Final = {
    Outcome.PASSES: "ok",
    Outcome.LEAVES: "->",
    Outcome.MAY_END: "may",
    Outcome.ENDS: "END",
}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    given = branch().parser.parse_args(argv)
    source, destination = _address(given.source), _address(given.destination)
    if source.version != destination.version:
        raise UsageError(f"{source} and {destination} are of different families")
    protocol = given.protocol or ("icmp" if given.port is None else "tcp")
    try:
        report = decode(status.ask(given.status_socket, status.subnet_file()))
        hops = asyncio.run(_look(report, source, destination, protocol, given.port))
    except (DeviceUnavailable, NotPermitted, FlannelError) as error:
        print(f"pyflannel: {shown(error, MOST_IN_LOG)}", file=sys.stderr)
        return EXIT_CANNOT
    last = ends(hops)
    if given.json:
        print(
            json.dumps({"hops": [asdict(hop) for hop in hops], "ends": last is not None}, indent=2)
        )
    else:
        print(render(hops))
    return EXIT_ENDS if last is not None else EXIT_OK


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel trace",
        "the way of a packet between two pods, hop by hop",
        ABOUT,
        examples=(
            "pyflannel trace 10.5.7.2 10.5.34.2",
            "pyflannel trace 10.5.7.2 10.5.34.2 --port 80",
            "pyflannel trace 10.5.7.2 10.5.34.2 --protocol udp --port 53 --json",
        ),
    )
    parser.add_argument("source", metavar="POD", help="address of the pod that sends")
    parser.add_argument("destination", metavar="POD", help="address of the other one")
    parser.add_argument(
        "--protocol",
        choices=("icmp", "tcp", "udp"),
        help="of the packet (default: icmp, or tcp with --port)",
    )
    parser.add_argument("--port", type=int, metavar="PORT", help="destination port")
    parser.add_argument("--json", action="store_true", help="print JSON")
    status.add_socket_option(parser)
    return Branch(parser)


def _address(text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise UsageError(f"{shown(text)} is no address of a pod") from None


async def _look(
    report: NodeReport,
    source: IPAddress,
    destination: IPAddress,
    protocol: str,
    port: int | None,
) -> list[Hop]:
    netlink = KernelNetlink()
    try:
        node = await gather(netlink, KINDS, report, "", status.subnet_file())
        facts = await gather_way(
            netlink, node, report, source, destination, protocol=protocol, dport=port
        )
    finally:
        await netlink.close()
    return way(facts)


def render(hops: Sequence[Hop]) -> str:
    """For people: a line a hop, and its text below where it is not a matter of course."""
    lines = []
    for number, hop in enumerate(hops, 1):
        head = f"{number:>2} {_SIGNS[hop.outcome]:<4} {hop.place:<18} {hop.decides}"
        lines.append(shown(head, MOST_IN_LOG).rstrip())
        if hop.text and hop.outcome is not Outcome.PASSES:
            lines.append(f"{'':<27}{shown(hop.text, MOST_IN_LOG)}")
    last = ends(hops)
    where = f"it ends at {last.place}: {last.text}" if last is not None else ""
    may = [hop for hop in hops if hop.outcome is Outcome.MAY_END]
    if not where and may:
        where = f"nothing here surely ends it; {len(may)} hop{'s' * (len(may) > 1)} may"
    return "\n".join([*lines, shown(where or "nothing on this node ends it", MOST_IN_LOG)])
