"""Measurements of the peers over the last minutes: bounded rings, and rates. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from pyflannel.records import dataclass
from pyflannel.report.model import PeerReport

SAMPLES: Final = 180
"""Of each peer: six minutes at one every 2 s."""
MOST_PEERS: Final = 512
"""Peers with a history. 180 samples of this many take 16 MB (measured)."""

Sample = tuple[float, str, float | None, float | None, float | None, float | None]
"""Time, state, round trip in seconds, loss from 0 to 1, bytes per second in and out."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Traffic with a peer, in bytes per second; `None` where it is not counted."""

    received: float | None = None
    sent: float | None = None


UNKNOWN: Final = Rates()


def name_of(peer: PeerReport) -> str:
    """The key of a peer: its subnet, which belongs to one node at a time."""
    return peer.subnet or peer.ipv6_subnet or peer.public_ip or peer.public_ipv6 or ""


class History:
    """The history of all peers of one node."""

    def __init__(self) -> None:
        self._rings: dict[str, deque[Sample]] = {}
        self._counted: dict[str, tuple[float, int | None, int | None]] = {}
        """Time, and bytes in and out, of the last report."""
        self._rates: dict[str, Rates] = {}

    def add(self, peers: Iterable[PeerReport], now: float) -> None:
        """Takes in a report.

        Args:
            peers: of the report. Known peers that are not among them are forgotten.
            now: when it was made, in seconds since the epoch. A report that is not newer than the
                last one only changes the set of peers.
        """
        known: set[str] = set()
        for peer in peers:
            name = name_of(peer)
            if len(known) >= MOST_PEERS:
                break
            known.add(name)
            ring = self._rings.setdefault(name, deque(maxlen=SAMPLES))
            if ring and ring[-1][0] >= now:
                continue
            rates = self._advance(name, peer, now)
            ring.append((now, peer.state, peer.rtt_s, peer.loss, rates.received, rates.sent))
        for name in self._rings.keys() - known:
            del self._rings[name], self._counted[name], self._rates[name]

    def rates(self, name: str) -> Rates:
        """Between the last two reports."""
        return self._rates.get(name, UNKNOWN)

    def samples(self, name: str) -> list[Sample]:
        """The oldest first; empty for a peer that is not known."""
        return list(self._rings.get(name, ()))

    def _advance(self, name: str, peer: PeerReport, now: float) -> Rates:
        before = self._counted.get(name)
        self._counted[name] = (now, peer.bytes_in, peer.bytes_out)
        rates = UNKNOWN
        if before is not None:
            then, received, sent = before
            passed = now - then
            rates = Rates(
                _rate(received, peer.bytes_in, passed), _rate(sent, peer.bytes_out, passed)
            )
        self._rates[name] = rates
        return rates


def _rate(before: int | None, after: int | None, passed: float) -> float | None:
    """Also unknown if the counter was reset, by a new data path or daemon."""
    if before is None or after is None or after < before:
        return None
    return (after - before) / passed
