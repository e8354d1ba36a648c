"""Which peers have been silent for so long, as one node has seen it. Values in, values out.

Only a peer that answered this daemon through the tunnel and beside it, and has answered neither
since, was seen to be silent. One that never answered is unknown: its firewall may drop ping. And a
node that most peers do not answer sees its own trouble.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyflannel.records import dataclass
from pyflannel.report.model import NodeReport, PeerReport
from pyflannel.report.problems import cut_off
from pyflannel.report.words import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """What a node can say."""

    refused: str = ""
    """Why it can say nothing."""
    silent: Sequence[tuple[PeerReport, float]] = ()
    """Peers with the seconds since they last answered, the longest first."""
    unclear: Sequence[tuple[PeerReport, str]] = ()
    """Peers that do not answer and are left alone, with the reason."""


def silence(report: NodeReport, seconds: float) -> Silence:
    """Who was silent for that long.

    Args:
        report: of the node that was watching, with its peers.
        seconds: at least.
    """
    refused = _why_not(report, seconds)
    if refused:
        return Silence(refused=refused)
    silent: list[tuple[PeerReport, float]] = []
    unclear: list[tuple[PeerReport, str]] = []
    for peer in report.peers:
        if peer.last_heard is None or peer.underlay_heard is None:
            if peer.state in {"unknown", "down"}:
                unclear.append((peer, "it never answered ping on both ways, so nothing is known"))
            continue
        quiet = report.now - max(peer.last_heard, peer.underlay_heard)
        if peer.state == "down" and peer.cause == "away" and quiet >= seconds:
            silent.append((peer, quiet))
    return Silence(
        silent=sorted(silent, key=lambda each: -each[1]),
        unclear=unclear,
    )


def _why_not(report: NodeReport, seconds: float) -> str:
    probes = report.probes
    if probes is None or not probes.interval_s or probes.probed != "tunnel":
        return "this node's daemon does not probe its peers through a tunnel and beside it"
    if probes.refused:
        return f"this node's daemon cannot probe its peers: {probes.refused}"
    watched = report.now - report.started
    if watched < seconds:
        return (
            f"this node's daemon has been watching for {duration(watched)}; what was before its "
            f"start it does not know, so it cannot vouch for {duration(seconds)}"
        )
    if cut_off(report):
        return "most peers do not answer this node, so it is this node that is cut off"
    return ""
