"""What the programs count of each peer.

Each CPU has a place of its own for each number, and a peer's counts are found under the number that
it has here. What is read is the sum over all CPUs that the machine may ever have: hundreds where
a hypervisor leaves room for more. So a peer is read when it is asked for, in one system call.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from pyflannel.datapath.base import MOST_COUNTED, PEER_COUNTERS

TRAFFIC: Final = struct.Struct("=QQQQ")
"""`struct traffic` of a CPU: the first of `PEER_COUNTERS`, in their order."""
NAMES: Final = PEER_COUNTERS[:4]
NOTHING: Final = (0, 0, 0, 0)


class Counts(Protocol):
    """The part of `bpf.Map` that is needed of a per-CPU map; a value is that of all CPUs."""

    def get(self, key: bytes, value_bytes: int) -> bytes | None:
        """The value under a key."""
        ...

    def items(self, value_bytes: int) -> dict[bytes, bytes]:
        """All entries."""
        ...


class PeerTraffic:
    """Gives peers their numbers, and tells what was counted since.

    Args:
        counts: the programs' map, with what an earlier run has left in it.
        cpus: that the machine may have.
        numbers: of the peers that the earlier run had, by address.
    """

    def __init__(self, counts: Counts, cpus: int, numbers: Mapping[bytes, int]) -> None:
        self._counts = counts
        self._bytes = TRAFFIC.size * cpus
        self._numbers = dict(numbers)
        self._left = {
            int.from_bytes(key, sys.byteorder): _sums(value)
            for key, value in counts.items(self._bytes).items()
            if value != bytes(self._bytes)
        }
        """What the earlier run had counted, by number; those with nothing are left out."""
        self._before = {n: self._left.get(n, NOTHING) for n in numbers.values()}
        """What had been counted under a number when its peer got it; of those in use since the
        start."""

    def give_numbers(self, addresses: Collection[bytes]) -> None:
        """Numbers the peers: who has a number keeps it, who is gone gives it back."""
        wanted = set(addresses)
        numbers = {each: n for each, n in self._numbers.items() if each in wanted}
        used = set(numbers.values())
        free = (number for number in range(1, MOST_COUNTED + 1) if number not in used)
        new = sorted(wanted - numbers.keys())
        for address, number in zip(new, free, strict=False):
            numbers[address] = number
            was_used = number in self._before
            self._before[number] = (
                self._read(number) if was_used else self._left.get(number, NOTHING)
            )
        self._numbers = numbers

    def number(self, address: bytes) -> int:
        """Under what the programs count a peer; 0 if they do not."""
        return self._numbers.get(address, 0)

    def of(self, address: bytes) -> Mapping[str, int] | None:
        """What was counted of a peer, by `NAMES`; `None` if it is not counted."""
        number = self.number(address)
        if not number:
            return None
        counted = zip(NAMES, self._read(number), self._before[number], strict=True)
        return {name: now - before for name, now, before in counted}

    def _read(self, number: int) -> tuple[int, ...]:
        found = self._counts.get(struct.pack("=I", number), self._bytes)
        return _sums(found) if found is not None else NOTHING


def _sums(values: bytes) -> tuple[int, ...]:
    """Over all CPUs."""
    each = memoryview(values).cast("Q").tolist()
    return tuple([sum(each[place :: len(NAMES)]) for place in range(len(NAMES))])
