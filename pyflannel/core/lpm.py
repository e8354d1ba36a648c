"""The peer table of the udp backend: overlay prefix → underlay address of its owner.

A table is a value: it is built once and replaced as a whole, never edited under a running packet.
`PeerTable.lookup` is longest-prefix match, the same answer that every data path must give.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """One row: packets for `subnet` go to `address`, and packets from there come from `address`."""

    subnet: IPv4Network
    address: IPv4Address


class PeerTable:
    """Longest-prefix match over the peers' subnets.

    One dictionary per prefix length in use, asked from the longest to the shortest. A network has
    one length in practice, so a look-up is one mask and one dictionary access however many peers
    there are.
    """

    __slots__ = ("_levels", "peers")

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self.peers: tuple[Peer, ...] = tuple(sorted(set(peers)))
        """The rows, in order; the canonical form that native tables are filled from."""
        levels: dict[int, dict[int, Peer]] = {}
        for peer in self.peers:
            levels.setdefault(peer.subnet.prefixlen, {})[int(peer.subnet.network_address)] = peer
        self._levels: tuple[tuple[int, dict[int, Peer]], ...] = tuple(
            ((0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF, levels[length])
            for length in sorted(levels, reverse=True)
        )

    @property
    def levels(self) -> tuple[tuple[int, dict[int, Peer]], ...]:
        """`(mask, {network: peer})`, longest prefix first, all as host-order integers."""
        return self._levels

    def lookup(self, destination: int) -> Peer | None:
        """The peer that owns a destination, given as a host-order 32-bit integer."""
        for mask, level in self._levels:
            peer = level.get(destination & mask)
            if peer is not None:
                return peer
        return None

    def __len__(self) -> int:
        return len(self.peers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PeerTable) and self.peers == other.peers

    def __hash__(self) -> int:
        return hash(self.peers)
