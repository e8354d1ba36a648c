"""The peers of a node as a table for people.

A column without a value in any row is left out, and of the others as many stand in a line as 80
columns hold, the most telling first; JSON has everything. Nothing measured is an
empty cell, never a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pyflannel.foreign import shown
from pyflannel.report.model import PeerReport
from pyflannel.report.words import duration

WIDTH: Final = 80
MOST_IN_CELL: Final = 39
"""Characters: the longest IPv6 address has as many."""
_GAP: Final = "  "
_CALM: Final = frozenset({"up", "unknown"})
"""States that need no look. Never answered is unknown, and no problem."""

_Cell = Callable[[PeerReport, float], str]


def troubled(peer: PeerReport) -> bool:
    """Whether there is something wrong with a peer."""
    return peer.state not in _CALM


def by_trouble(peers: Sequence[PeerReport]) -> list[PeerReport]:
    """Those with trouble first, else in the given order."""
    return sorted(peers, key=lambda peer: not troubled(peer))


def table(peers: Sequence[PeerReport], now: float, *, width: int = WIDTH) -> list[str]:
    """A heading and a line a peer; nothing for no peers.

    Args:
        peers: in the order to show.
        now: seconds since the epoch, when they were reported.
        width: columns of a line. Subnet, public IP and state stand there even if it is too small.
    """
    chosen: list[list[str]] = []
    used = 0
    for title, cell, always in _COLUMNS:
        cells = [shown(cell(peer, now), MOST_IN_CELL) for peer in peers]
        if not any(cells):
            continue
        size = max(map(len, (title, *cells)))
        if not always and used + size > width:
            continue
        used += size + len(_GAP)
        chosen.append([text.ljust(size) for text in (title, *cells)])
    return [_GAP.join(line).rstrip() for line in zip(*chosen, strict=True)]


def _subnet(peer: PeerReport, _now: float) -> str:
    return peer.subnet or peer.ipv6_subnet or ""


def _public_ip(peer: PeerReport, _now: float) -> str:
    return peer.public_ip or peer.public_ipv6 or ""


def _state(peer: PeerReport, _now: float) -> str:
    return peer.state


def _heard(peer: PeerReport, now: float) -> str:
    return "" if peer.last_heard is None else f"{duration(now - peer.last_heard)} ago"


def _rtt(peer: PeerReport, _now: float) -> str:
    if peer.rtt_s is None:
        return ""
    # A hundredth of a millisecond counts on one link, and nowhere else.
    return f"{peer.rtt_s * 1000:.{2 if peer.rtt_s < 0.001 else 1}f} ms"


def _loss(peer: PeerReport, _now: float) -> str:
    return "" if peer.loss is None else f"{peer.loss * 100:.0f} %"


def _drops(peer: PeerReport, _now: float) -> str:
    return "" if peer.drops is None else str(sum(peer.drops.values()))


def _in(peer: PeerReport, _now: float) -> str:
    return _bytes(peer.bytes_in)


def _out(peer: PeerReport, _now: float) -> str:
    return _bytes(peer.bytes_out)


def _mtu(peer: PeerReport, _now: float) -> str:
    return "" if peer.mtu is None else str(peer.mtu)


def _host(peer: PeerReport, _now: float) -> str:
    return peer.host or ""


def _bytes(count: int | None) -> str:
    """With the largest decimal unit that leaves at least one before the point: `1.5 GB`."""
    if count is None:
        return ""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    # 999.95 and more would be rounded to four digits.
    while size >= 999.95 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


_COLUMNS: Final[tuple[tuple[str, _Cell, bool], ...]] = (
    ("SUBNET", _subnet, True),
    ("PUBLIC IP", _public_ip, True),
    ("STATE", _state, True),
    ("HEARD", _heard, False),
    ("RTT", _rtt, False),
    ("LOSS", _loss, False),
    ("DROPS", _drops, False),
    ("IN", _in, False),
    ("OUT", _out, False),
    ("MTU", _mtu, False),
    ("HOST", _host, False),
)
"""Heading, cell, whether it always stands there; the most telling first."""
