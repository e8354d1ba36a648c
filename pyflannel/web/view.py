"""A node's report in the form that the page's script reads: plain JSON values, bounded. Pure.

The words are those of `pyflannel status`. Foreign texts (host names, reasons, answers of a server)
are escaped and truncated here, as in the log; the script puts them into text nodes. Times are
seconds since the epoch, and what was not measured is `None`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, TypedDict

from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.report.model import NodeReport, PeerReport
from pyflannel.report.peers import troubled
from pyflannel.report.problems import problems
from pyflannel.report.text import verdict
from pyflannel.web.history import Rates, name_of

MOST_PEERS: Final = 1000
"""Peers on the page; further ones are only counted. Peers with trouble come first."""
MOST_PROBLEMS: Final = 50


class ProblemView(TypedDict):
    """As `report.model.Problem`."""

    code: str
    severity: str
    subject: str
    since: float | None
    text: str
    remedy: str


class PeerView(TypedDict):
    """A peer, its link and its lease."""

    id: str
    """Its subnet; the key of its history."""
    subnet: str
    public_ip: str
    host: str
    backend: str
    state: str
    troubled: bool
    reason: str
    since: float | None
    way: str
    last_heard: float | None
    rtt_s: float | None
    loss: float | None
    mtu: int | None
    bytes_in: int | None
    bytes_out: int | None
    rate_in: float | None
    rate_out: float | None
    drops: dict[str, int] | None


class OwnView(TypedDict):
    """The node that the page is about, and its lease."""

    subnet: str
    public_ip: str
    backend: str
    interface: str
    expires: float | None
    reservation: bool
    held: bool | None


class View(TypedDict):
    """The page."""

    now: float
    version: str
    state: str
    """`fine`, `problems` or `not ready`."""
    phase: str
    own: OwnView
    store: str
    problems: list[ProblemView]
    more_problems: int
    peers: list[PeerView]
    more_peers: int
    counts: dict[str, int]
    """Peers by state."""


def view(report: NodeReport, rates: Callable[[str], Rates]) -> View:
    """The page about a node.

    Args:
        report: of its daemon.
        rates: of a peer, by its name.
    """
    found = problems(report)
    peers = _chosen(report)
    return {
        "now": report.now,
        "version": shown(report.version),
        "state": _state(report),
        "phase": shown(report.waiting_for or report.phase),
        "own": _own(report),
        "store": _store(report),
        "problems": [
            {
                "code": shown(each.code),
                "severity": str(each.severity),
                "subject": shown(each.subject),
                "since": each.since,
                "text": shown(each.text, MOST_IN_LOG),
                "remedy": shown(each.remedy, MOST_IN_LOG),
            }
            for each in found[:MOST_PROBLEMS]
        ],
        "more_problems": max(0, len(found) - MOST_PROBLEMS),
        "peers": [_peer(each, rates(name_of(each))) for each in peers],
        "more_peers": len(report.peers) - len(peers),
        "counts": dict(Counter(shown(each.state) for each in report.peers)),
    }


def _state(report: NodeReport) -> str:
    if not report.ready:
        return "not ready"
    return "problems" if verdict(report) is not None else "fine"


def _chosen(report: NodeReport) -> list[PeerReport]:
    """As many as there is room for, in their order."""
    if len(report.peers) <= MOST_PEERS:
        return list(report.peers)
    ill = [number for number, peer in enumerate(report.peers) if troubled(peer)]
    well = [number for number, peer in enumerate(report.peers) if not troubled(peer)]
    return [report.peers[number] for number in sorted([*ill, *well][:MOST_PEERS])]


def _own(report: NodeReport) -> OwnView:
    lease, underlay, network = report.lease, report.underlay, report.network
    return {
        "subnet": _joined(lease.subnet, lease.ipv6_subnet) if lease is not None else "",
        "public_ip": _joined(lease.public_ip, lease.public_ipv6) if lease is not None else "",
        "backend": shown(network.backend) if network is not None else "",
        "interface": shown(underlay.interface) if underlay is not None else "",
        "expires": lease.expires if lease is not None else None,
        "reservation": lease is not None and lease.reservation,
        "held": lease.held if lease is not None else None,
    }


def _store(report: NodeReport) -> str:
    store = report.store
    if store is None:
        return ""
    answers: Mapping[bool | None, str] = {
        True: "answers",
        False: "does not answer",
        None: "not asked yet",
    }
    return shown(f"{store.kind} {answers[store.connected]}")


def _peer(peer: PeerReport, rates: Rates) -> PeerView:
    return {
        "id": name_of(peer),
        "subnet": _joined(peer.subnet, peer.ipv6_subnet),
        "public_ip": _joined(peer.public_ip, peer.public_ipv6),
        "host": shown(peer.host or ""),
        "backend": shown(peer.backend),
        "state": shown(peer.state),
        "troubled": troubled(peer),
        "reason": shown(peer.reason, MOST_IN_LOG),
        "since": peer.since,
        "way": shown(peer.way or peer.backend),
        "last_heard": peer.last_heard,
        "rtt_s": peer.rtt_s,
        "loss": peer.loss,
        "mtu": peer.mtu,
        "bytes_in": peer.bytes_in,
        "bytes_out": peer.bytes_out,
        "rate_in": rates.received,
        "rate_out": rates.sent,
        "drops": {shown(name): count for name, count in peer.drops.items()}
        if peer.drops is not None
        else None,
    }


def _joined(*values: str | None) -> str:
    return shown(" ".join(value for value in values if value))
