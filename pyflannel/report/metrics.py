"""A node's report as metrics: values in, values out, by Prometheus' conventions.

Units are seconds and bytes, `_total` is a counter, a time is `_timestamp_seconds`, so that its age
can be computed even of a last value. Labels come from small closed sets but for a peer's `subnet`
and `public_ip`; those series end with the peer's lease. What was not measured has no series, never
a zero; a number of things by state has every state, so that nothing is ever absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pyflannel.records import dataclass
from pyflannel.report.model import NodeReport, PeerReport, Severity
from pyflannel.report.peers import by_trouble
from pyflannel.report.problems import problems
from pyflannel.report.scraped import TOLD, config_labels

MOST_PEERS: Final = 250
"""Peers with series of their own, those with trouble first. Each has up to about ten, and each node
tells of each: 250 nodes make half a million, which one Prometheus holds with ease; their number
grows with the square."""
STATES: Final = ("up", "small-only", "down", "unknown", "ignored", "failing")
"""Of a peer, as in `PeerReport.state`."""
_LEASE: Final = ("subnet", "ipv6_subnet", "public_ip", "public_ipv6", "backend")
_PEER: Final = ("subnet", "public_ip")
_VERDICTS: Final = {"up": 1.0, "small-only": 1.0, "down": 0.0}


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with its series."""

    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]
    """Labels and value."""
    labels: tuple[str, ...] = ()
    """The label names that each sample has."""

    @property
    def is_counter(self) -> bool:
        """Whether it only grows while the daemon runs; else it is a gauge."""
        return self.name.endswith("_total")


def families(report: NodeReport, *, most_peers: int = MOST_PEERS) -> list[Family]:
    """Every metric that has a series.

    Args:
        report: with its peers.
        most_peers: that have series of their own.
    """
    found = [*_node(report), *_peers(by_trouble(report.peers)[:most_peers])]
    return [family for family in found if family.samples]


def described() -> list[Family]:
    """Every metric that there may be, for the reference."""
    return [*_node(NodeReport()), *_peers(())]


def _one(name: str, text: str, value: float | bool | None) -> Family:  # noqa: FBT001 - a value
    return Family(name, text, [] if value is None else [({}, float(value))])


def _node(report: NodeReport) -> Iterator[Family]:
    store, lease, network = report.store, report.lease, report.network
    yield Family(
        "pyflannel_build_info",
        "1; the release is the label.",
        [({"version": report.version}, 1.0)],
        ("version",),
    )
    yield Family(
        "pyflannel_node_info",
        "1; this node's lease is in the labels.",
        [] if lease is None else [({name: getattr(lease, name) or "" for name in _LEASE}, 1.0)],
        _LEASE,
    )
    effective = report.config.effective if report.config is not None else None
    yield Family(
        "pyflannel_config_info",
        "1; what nodes must agree on, of the network config in force, is in the labels.",
        [(config_labels(effective), 1.0)] if effective else [],
        tuple(TOLD),
    )
    yield _one("pyflannel_ready", "1 once subnet.env has been written.", report.ready)
    yield _one(
        "pyflannel_leases",
        "Leases that this node follows, its own among them.",
        store.peers + (lease is not None) if store is not None else None,
    )
    yield _one(
        "pyflannel_store_connected",
        "1 if the last request to the store of the leases, or its watch, went well.",
        store.connected if store is not None else None,
    )
    yield _one(
        "pyflannel_lease_expiry_timestamp_seconds",
        "When this node's lease ends unless it is renewed; none for a reservation.",
        lease.expires if lease is not None and not lease.reservation else None,
    )
    heals = dict(network.repaired) if network is not None else {}
    heals["files"] = report.files.restored
    if report.rules is not None:
        heals["rules"] = report.rules.repairs
    yield Family(
        "pyflannel_heals_total",
        "Objects put right because another program had changed them.",
        [({"object": kind}, float(count)) for kind, count in sorted(heals.items())],
        ("object",),
    )
    wrong = problems(report)
    severities = Counter(problem.severity for problem in wrong)
    yield Family(
        "pyflannel_problems",
        "What pyflannel status finds wrong now: error, warning, info.",
        [({"severity": each.value}, float(severities[each])) for each in Severity],
        ("severity",),
    )
    codes = Counter((problem.code, problem.severity.value) for problem in wrong)
    yield Family(
        "pyflannel_problems_by_code",
        "The same by code; absent while there is none.",
        [
            ({"code": code, "severity": severity}, float(count))
            for (code, severity), count in sorted(codes.items())
        ],
        ("code", "severity"),
    )
    probes = report.probes
    yield _one(
        "pyflannel_probe_interval_seconds",
        "Between two probes of a peer; 0 if none are sent.",
        probes.interval_s if probes is not None else None,
    )
    results: dict[str, int] = {}
    if probes is not None:
        results = {"answered": probes.answered, "lost": probes.lost, "void": probes.void}
    yield Family(
        "pyflannel_probes_total",
        "Echoes to peers: answered, lost, void (this machine stood still).",
        [({"result": name}, float(count)) for name, count in results.items()],
        ("result",),
    )
    states = Counter(peer.state for peer in report.peers)
    yield Family(
        "pyflannel_peers",
        f"Other nodes: {', '.join(STATES)}.",
        [({"state": state}, float(states[state])) for state in sorted({*STATES, *states})],
        ("state",),
    )


def _peers(peers: Sequence[PeerReport]) -> Iterator[Family]:
    labelled = [
        (
            {
                "subnet": peer.subnet or peer.ipv6_subnet or "",
                "public_ip": peer.public_ip or peer.public_ipv6 or "",
            },
            peer,
        )
        for peer in peers
    ]
    yield Family(
        "pyflannel_peer_info",
        "Another node that has a lease.",
        [(names, 1.0) for names, _ in labelled],
        _PEER,
    )
    yield Family(
        "pyflannel_peer_up",
        "Whether a peer answers probes through the tunnel; absent until it has once.",
        [(names, _VERDICTS[peer.state]) for names, peer in labelled if peer.state in _VERDICTS],
        _PEER,
    )
    yield Family(
        "pyflannel_peer_rtt_seconds",
        "Round trip of a probe through the tunnel.",
        [(names, peer.rtt_s) for names, peer in labelled if peer.rtt_s is not None],
        _PEER,
    )
    yield Family(
        "pyflannel_peer_loss_ratio",
        "Share of the last 20 probes through the tunnel that were not answered.",
        [(names, peer.loss) for names, peer in labelled if peer.loss is not None],
        _PEER,
    )
    yield Family(
        "pyflannel_peer_last_heard_timestamp_seconds",
        "When a peer last answered a probe through the tunnel.",
        [(names, peer.last_heard) for names, peer in labelled if peer.last_heard is not None],
        _PEER,
    )
    yield Family(
        "pyflannel_peer_mtu_bytes",
        "Largest packet that a probe saw arrive.",
        [(names, float(peer.mtu)) for names, peer in labelled if peer.mtu is not None],
        _PEER,
    )
    yield Family(
        "pyflannel_peer_bytes_total",
        "Bytes of overlay packets from and to a peer: in, out.",
        [
            ({**names, "direction": direction}, float(count))
            for names, peer in labelled
            for direction, count in (("in", peer.bytes_in), ("out", peer.bytes_out))
            if count is not None
        ],
        (*_PEER, "direction"),
    )
    yield Family(
        "pyflannel_peer_packets_total",
        "Overlay packets from and to a peer.",
        [
            ({**names, "direction": direction}, float(count))
            for names, peer in labelled
            for direction, count in (("in", peer.packets_in), ("out", peer.packets_out))
            if count is not None
        ],
        (*_PEER, "direction"),
    )
    yield Family(
        "pyflannel_peer_drops_total",
        "Packets from or to a peer that were dropped.",
        [
            ({**names, "reason": reason}, float(count))
            for names, peer in labelled
            for reason, count in (peer.drops or {}).items()
        ],
        (*_PEER, "reason"),
    )
