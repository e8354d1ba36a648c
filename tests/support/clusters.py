"""Made-up reports of nodes, for what shows them."""

from __future__ import annotations

from pyflannel.report.model import (
    LeaseReport,
    NetworkReport,
    NodeReport,
    PeerReport,
    ProbeFailure,
    ProbeReport,
    StoreReport,
    UnderlayReport,
)

NOW = 1_795_700_000.0


def peer(number: int, **more: object) -> PeerReport:
    """A peer that is well: 192.0.2.NUMBER with 10.5.NUMBER.0/24."""
    values: dict[str, object] = {
        "subnet": f"10.5.{number}.0/24",
        "public_ip": f"192.0.2.{number}",
        "host": f"node{number}",
        "backend": "udp",
        "state": "up",
        "since": NOW - 3600,
        "way": "udp/native",
        "last_heard": NOW - 1,
        "rtt_s": 0.0004 + number / 1e5,
        "loss": 0.0,
        "mtu": 1472,
        "bytes_in": 1_000_000 * number,
        "bytes_out": 500_000 * number,
        "drops": {},
    }
    return PeerReport(**(values | more))  # type: ignore[arg-type]


def report(nodes: int = 3, *, at: float = NOW, ill: bool = False) -> NodeReport:
    """What node 1 of a cluster says.

    Args:
        nodes: of the cluster, at most 254.
        at: when it says so. Traffic goes on meanwhile.
        ill: every fifth peer has some trouble, and the store does not answer.
    """
    peers = []
    failing = {}
    for number in range(2, nodes + 1):
        sent = int((at - NOW) * 10 ** (number % 7))
        one = peer(
            number,
            bytes_in=1_000_000 * number + sent,
            bytes_out=500_000 * number + sent // 2,
            last_heard=at - 1,
        )
        state = ("down", "small-only", "failing", "ignored", "unknown")[number // 5 % 5]
        if ill and number % 5 == 0:
            text = f"{one.public_ip} has not answered for 2 min"
            more: dict[str, object] = {"state": state, "reason": text, "rtt_s": None, "loss": 1.0}
            more |= {"way": "direct"} if number % 2 else {}
            one = peer(number, **more)
            if state in {"down", "small-only"}:
                failing[str(one.subnet)] = ProbeFailure(state=state, text=text, since=at - 120)
        peers.append(one)
    return NodeReport(
        version="1.2",
        now=at,
        started=NOW - 7200,
        phase="running with subnet 10.5.1.0/24",
        ready_since=NOW - 7199,
        store=StoreReport(kind="etcd", where="http://192.0.2.250:2379", connected=not ill),
        underlay=UnderlayReport(interface="eth0", index=2, mtu=1500, address="192.0.2.1"),
        lease=LeaseReport(
            subnet="10.5.1.0/24",
            public_ip="192.0.2.1",
            backend="udp",
            expires=NOW + 80_000,
            held=True,
        ),
        network=NetworkReport(backend="udp", mtu=1472, peers=len(peers)),
        probes=ProbeReport(probed="tunnel", interval_s=10.0, failing=failing),
        peers=tuple(peers),
    )
