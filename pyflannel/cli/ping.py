"""`pyflannel ping`: reaches a peer or a pod layer by layer, and says where the way ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from ipaddress import ip_address, ip_network
from typing import Final

from pyflannel.cli import status
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.core.errors import (
    EXIT_OK,
    DeviceUnavailable,
    FlannelError,
    KernelError,
    NotPermitted,
    UsageError,
)
from pyflannel.core.ip import IPAddress, IPNetwork, family_of
from pyflannel.diagnose.layers import Ask, Layer, Outcome, Verdict, verdict
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.probe import echo
from pyflannel.probe.ask import Answers, ask, connect
from pyflannel.records import dataclass
from pyflannel.report.codec import decode
from pyflannel.report.model import NodeReport, PeerReport
from pyflannel.report.text import wrapped

ABOUT: Final = """The layers: the node beside the tunnel, its overlay address, a packet of the whole
MTU, its bridge, the pod, a TCP port.

TARGET is an address of a pod, a peer's subnet (10.5.7.0/24), its public IP or its host name. The
packets start at this node, so of its own forward chains they see nothing: pyflannel doctor and
pyflannel trace do. Exit code 0 if all that was asked answers, 1 if something does not, 3 if there
is no daemon, no such peer, or it may not be asked.
"""
EXIT_WRONG: Final = 1
EXIT_CANNOT: Final = 3
PROBE_PORT: Final = 9
"""Discard (RFC 863): usually closed, and a refusal shows as well that TCP passes."""
MOST_SIZE: Final = 65_535
"""Bytes of an IPv4 packet (RFC 791 §3.1)."""
LADDER_STEPS: Final = 8
"""Halvings until the largest size is known to some eight bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to reach."""

    peer: PeerReport
    pod: IPAddress | None
    """`None` if the peer itself is meant."""
    overlay: IPAddress
    bridge: IPAddress
    public: IPAddress | None


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    given = branch().parser.parse_args(argv)
    _check(given)
    try:
        report = decode(status.ask(given.status_socket, status.subnet_file()))
        target = find(report, given.target, six=given.six)
        return asyncio.run(_reach(report, target, given))
    except (DeviceUnavailable, NotPermitted, KernelError) as error:
        print(f"pyflannel: {shown(error, MOST_IN_LOG)}", file=sys.stderr)
        return EXIT_CANNOT


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel ping",
        "reach a peer or a pod, layer by layer",
        ABOUT,
        examples=(
            "pyflannel ping 10.5.34.2",
            "pyflannel ping 10.5.34.0/24 --size 1400 --count 10",
            "pyflannel ping 10.5.34.2 --port 80 --json",
        ),
    )
    parser.add_argument("target", metavar="TARGET", help="a pod, or a peer by any of its names")
    parser.add_argument(
        "--size", type=int, metavar="BYTES", help="of the large packet (default: the MTU)"
    )
    parser.add_argument("--count", type=int, default=3, metavar="N", help="echoes a layer")
    parser.add_argument("--tcp", action="store_true", help=f"TCP, too (port {PROBE_PORT})")
    parser.add_argument("--port", type=int, metavar="PORT", help="TCP to this port")
    parser.add_argument("-6", dest="six", action="store_true", help="IPv6 where a peer has both")
    parser.add_argument("--json", action="store_true", help="print JSON")
    status.add_socket_option(parser)
    return Branch(parser)


def _check(given: argparse.Namespace) -> None:
    least = max(echo.SMALLEST.values())
    if given.size is not None and not least <= given.size <= MOST_SIZE:
        raise UsageError(f"--size {given.size}: expected {least} to {MOST_SIZE} bytes")
    if given.count < 1:
        raise UsageError(f"--count {given.count}: expected at least 1")
    if given.port is not None and not 0 < given.port < 65_536:
        raise UsageError(f"--port {given.port}: expected a port, 1 to 65535")


class NoSuchPeer(FlannelError):
    """No peer has that name."""

    exit_code = EXIT_CANNOT


def find(report: NodeReport, text: str, *, six: bool = False) -> Target:
    """The peer or pod that a word means.

    Args:
        report: of this node, with its peers.
        text: an address in a peer's subnet, a subnet, a public IP or a host name.
        six: IPv6 where the word means a peer with both.

    Raises:
        NoSuchPeer: it means none; says what is known.
    """
    for peer in report.peers:
        subnets = [ip_network(each) for each in (peer.subnet, peer.ipv6_subnet) if each]
        names = {peer.subnet, peer.ipv6_subnet, peer.public_ip, peer.public_ipv6, peer.host}
        if text in names - {None}:
            wanted = [each for each in subnets if text == str(each)] or sorted(
                subnets,
                key=lambda each: (each.version == 6) != six,
            )
            if wanted:
                return _target(peer, wanted[0], None)
        try:
            address = ip_address(text)
        except ValueError:
            continue
        for subnet in subnets:
            if address.version == subnet.version and address in subnet:
                return _target(peer, subnet, address)
    lease = report.lease
    own = lease is not None and text in {lease.public_ip, lease.public_ipv6, lease.subnet}
    known = ", ".join(str(peer.subnet or peer.ipv6_subnet) for peer in report.peers[:5])
    hint = "it is this node" if own else f"known peers: {known}" if known else "there are no peers"
    raise NoSuchPeer(f"{shown(text)} is no peer, and no address in a peer's subnet ({hint})")


def _target(peer: PeerReport, subnet: IPNetwork, pod: IPAddress | None) -> Target:
    first = subnet.network_address
    public = peer.public_ip if subnet.version == 4 else peer.public_ipv6
    own = {first, first + 1}
    return Target(
        peer=peer,
        pod=None if pod in own else pod,
        overlay=first,
        bridge=first + 1,
        public=ip_address(public) if public else None,
    )


async def _reach(report: NodeReport, target: Target, given: argparse.Namespace) -> int:
    peer = target.peer
    unprogrammed = peer.reason if peer.state in {"ignored", "failing"} else ""
    layers = [] if unprogrammed else [each async for each in _layers(report, target, given)]
    found = verdict(layers, carrier(report), unprogrammed)
    if given.json:
        shown_layers = [asdict(layer) for layer in layers]
        print(json.dumps({"layers": shown_layers, "verdict": asdict(found)}, indent=2))
    else:
        print(render(found))
    return EXIT_OK if found.well else EXIT_WRONG


async def _layers(
    report: NodeReport, target: Target, given: argparse.Namespace
) -> AsyncIterator[Layer]:
    tunnel = report.probes is None or report.probes.probed == "tunnel"
    steps = _steps(report, target, given, tunnel=tunnel)
    async for layer in steps:
        if not given.json:
            print(line(layer), flush=True)
        yield layer


async def _steps(
    report: NodeReport, target: Target, given: argparse.Namespace, *, tunnel: bool
) -> AsyncIterator[Layer]:
    count = given.count
    if target.public is not None:
        yield _echo(Ask.BESIDE, target.public, await ask(target.public, count=count))
    size = given.size or mtu(report, target.overlay)
    if tunnel:
        answers = await ask(target.overlay, count=count)
        yield _echo(Ask.TUNNEL, target.overlay, answers)
        if answers.ok:
            yield await _large(Ask.LARGE, target.overlay, size, count)
    bridge = await ask(target.bridge, count=count)
    if bridge.ok or not tunnel:
        yield _echo(Ask.BRIDGE, target.bridge, bridge)
    else:
        yield Layer(
            ask=Ask.BRIDGE,
            target=str(target.bridge),
            outcome=Outcome.NOT_TRIED,
            detail="no answer; a node without containers has none",
        )
    last = target.pod or (target.bridge if bridge.ok else target.overlay)
    if target.pod is not None:
        answers = await ask(target.pod, count=count)
        yield _echo(Ask.POD, target.pod, answers)
        if answers.ok:
            yield await _large(Ask.POD_LARGE, target.pod, size, count)
    if given.tcp or given.port is not None:
        port = given.port or PROBE_PORT
        ok, detail = await connect(last, port)
        outcome = Outcome.OK if ok else Outcome.LOST
        yield Layer(ask=Ask.TCP, target=f"{last} port {port}", outcome=outcome, detail=detail)


def _echo(asked: Ask, address: IPAddress, answers: Answers) -> Layer:
    if answers.ok:
        best = min(answers.rtts_s) * 1000
        lost = f", {answers.lost} of {answers.sent} lost" if answers.lost else ""
        return Layer(
            ask=asked, target=str(address), outcome=Outcome.OK, detail=f"{best:.2f} ms{lost}"
        )
    why = f": {answers.refused}" if answers.refused else ""
    return Layer(
        ask=asked,
        target=str(address),
        outcome=Outcome.LOST,
        detail=f"{answers.lost} of {answers.sent}{why}",
    )


async def _large(asked: Ask, address: IPAddress, size: int, count: int) -> Layer:
    """The whole size; if that does not pass, the largest that does, by halves."""
    answers = await ask(address, size=size, count=count, first_ends=True)
    if answers.ok:
        return Layer(
            ask=asked,
            target=f"{address}, {size} bytes",
            outcome=Outcome.OK,
            detail=f"{min(answers.rtts_s) * 1000:.2f} ms",
            passed=size,
        )
    low, high = echo.SMALLEST[family_of(address)], size
    for _ in range(LADDER_STEPS):
        middle = (low + high) // 2
        tried = await ask(address, size=middle, count=2, first_ends=True)
        low, high = (middle, high) if tried.ok else (low, middle)
    why = f" ({answers.refused})" if answers.refused else ""
    return Layer(
        ask=asked,
        target=f"{address}, {size} bytes",
        outcome=Outcome.LOST,
        detail=f"{answers.lost} of {answers.sent}{why}; {low} bytes pass",
        passed=low,
    )


def mtu(report: NodeReport, address: IPAddress) -> int:
    """Bytes that this node's overlay promises to carry in the family of an address."""
    network = report.network
    if network is None:
        return echo.SMALLEST[family_of(address)]
    six = address.version == 6
    sizes = [each.mtu for name, each in network.devices.items() if ("v6" in name) == six]
    return min([network.mtu, *filter(None, sizes)])


def carrier(report: NodeReport) -> str:
    """What the overlay's packets look like between the nodes; empty if there is no tunnel."""
    network = report.network
    if network is None or network.backend == "host-gw":
        return ""
    if network.backend == "ipip":
        return "IP protocol 4"
    backend = report.config.effective.get("Backend") if report.config is not None else None
    named = backend.get("Port") if isinstance(backend, dict) else None
    return f"UDP port {network.port or named or 8472}"


def line(layer: Layer) -> str:
    """A layer for people."""
    return f"{layer.ask:<24} {layer.target:<32} {layer.outcome}  {layer.detail}".rstrip()


def render(found: Verdict) -> str:
    """The conclusion for people."""
    lines = wrapped(f"{'fine' if found.well else 'so'}: {found.text}")
    if found.remedy:
        lines += wrapped(f"do: {found.remedy}")
    return "\n".join(lines)
