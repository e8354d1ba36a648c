"""The peer table in the form that the Python data path reads, and its counters of each peer."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from pyflannel.core.lpm import PeerTable
from pyflannel.datapath.base import MOST_COUNTED, PEER_COUNTERS

Hop = tuple[str, int]
"""An address as the socket module takes it and gives it."""


class Hops(NamedTuple):
    """A peer table in the form that makes the look-up of one packet cheapest."""

    mask: int
    """Applied to an address before `get`: the mask of the prefix length if there is only one."""
    get: Callable[[int], Hop | None]
    senders: frozenset[str]
    """Addresses of all peers."""


def compiled(table: PeerTable, port: int) -> Hops:
    """The table with ready-made socket addresses; one dictionary access if it has one level."""
    inet_ntoa = socket.inet_ntoa
    hop_of: dict[int, Hop] = {
        int(peer.address): (inet_ntoa(peer.address.packed), port) for peer in table.peers
    }
    senders = frozenset(name for name, _ in hop_of.values())
    levels = [
        (mask, {network: hop_of[int(peer.address)] for network, peer in level.items()})
        for mask, level in table.levels
    ]
    if len(levels) == 1:
        mask, hops = levels[0]
        return Hops(mask, hops.get, senders)

    def get(address: int) -> Hop | None:
        for mask, hops in levels:
            hop = hops.get(address & mask)
            if hop is not None:
                return hop
        return None

    return Hops(0xFFFFFFFF, get, senders)


def counted(
    known: Mapping[str, dict[str, int]], addresses: Iterable[str]
) -> dict[str, dict[str, int]]:
    """Counters for these peers. A peer that had counters keeps them."""
    wanted = set(addresses)
    kept = {name: counts for name, counts in known.items() if name in wanted}
    new = islice((name for name in wanted if name not in kept), MOST_COUNTED - len(kept))
    return kept | {name: dict.fromkeys(PEER_COUNTERS, 0) for name in new}
