"""What the programs count of peers, as it is added up: over a map that is none of the kernel's."""

from __future__ import annotations

import errno
import struct

import pytest

from pyflannel.datapath.base import MOST_COUNTED
from pyflannel.datapath.ebpf import bpf
from pyflannel.datapath.ebpf.traffic import NAMES, TRAFFIC, PeerTraffic

MANY_CPUS = 128


class Counts:
    """A per-CPU map: for each number and CPU what that CPU counted."""

    def __init__(self, cpus):
        self.cpus = cpus
        self.counted = {}
        self.asked = []

    def add(self, number, cpu, *counts):
        places = self.counted.setdefault(number, [(0,) * len(NAMES)] * self.cpus)
        places[cpu] = tuple(map(sum, zip(places[cpu], counts, strict=True)))

    def get(self, key, value_bytes):
        (number,) = struct.unpack("=I", key)
        self.asked.append(number)
        value = self._packed(number)
        assert len(value) == value_bytes
        return value

    def items(self, value_bytes):
        assert value_bytes == TRAFFIC.size * self.cpus
        return {struct.pack("=I", n): self._packed(n) for n in range(MOST_COUNTED + 1)}

    def _packed(self, number):
        places = self.counted.get(number, [(0,) * len(NAMES)] * self.cpus)
        return b"".join(TRAFFIC.pack(*each) for each in places)


def address(n):
    return n.to_bytes(4, "big")


@pytest.mark.parametrize("cpus", [1, 2, 3, 64, MANY_CPUS])
def test_a_peer_has_the_sum_over_all_cpus(cpus):
    counts = Counts(cpus)
    traffic = PeerTraffic(counts, cpus, {})
    traffic.give_numbers([address(7), address(9)])
    number = traffic.number(address(9))
    for cpu in range(cpus):
        counts.add(number, cpu, 1, 1 << 40, cpu, 3)
    wanted = (cpus, cpus << 40, sum(range(cpus)), 3 * cpus)
    assert traffic.of(address(9)) == dict(zip(NAMES, wanted, strict=True))
    assert set(traffic.of(address(7)).values()) == {0}


def test_what_was_counted_of_others_under_a_number_is_left_out():
    counts = Counts(2)
    counts.add(5, 0, 10, 10, 10, 10)
    counts.add(1, 1, 3, 3, 3, 3)
    # An earlier run had this peer as number 5, and another one, which is gone, as 1.
    traffic = PeerTraffic(counts, 2, {address(50): 5})
    traffic.give_numbers([address(50), address(60)])
    assert (traffic.number(address(50)), traffic.number(address(60))) == (5, 1)
    counts.add(5, 1, 1, 2, 3, 4)
    counts.add(1, 0, 4, 3, 2, 1)
    assert list(traffic.of(address(50)).values()) == [1, 2, 3, 4]
    assert list(traffic.of(address(60)).values()) == [4, 3, 2, 1]
    traffic.give_numbers([address(50), address(61)])
    assert traffic.number(address(61)) == 1
    assert set(traffic.of(address(61)).values()) == {0}
    assert traffic.of(address(60)) is None


def test_one_too_many_is_not_counted():
    traffic = PeerTraffic(Counts(1), 1, {})
    traffic.give_numbers([address(n) for n in range(MOST_COUNTED + 1)])
    assert traffic.of(address(MOST_COUNTED)) is None


@pytest.mark.parametrize("value_bytes", [8, TRAFFIC.size * MANY_CPUS, bpf.BATCH_BYTES * 2])
def test_a_whole_map_is_read_in_pieces_of_little_memory(monkeypatch, value_bytes):
    asked = []

    def exchange(_command, attr):
        fields = list(bpf._BATCH.unpack_from(attr))
        asked.append(fields[4])
        fields[4] = 0
        return -1, errno.ENOENT, bpf._BATCH.pack(*fields)

    monkeypatch.setattr(bpf, "_exchange", exchange)
    definition = bpf.MapDefinition(6, 4, TRAFFIC.size, MOST_COUNTED + 1, 0)
    assert bpf.Map(1000, "traffic", definition).items(value_bytes) == {}
    assert asked == [max(1, min(bpf.BATCH_ENTRIES, bpf.BATCH_BYTES // value_bytes))]


@pytest.mark.parametrize(
    ("listing", "cpus"), [("0\n", 1), ("0-1\n", 2), ("0-127\n", 128), ("0,2-3,8-11\n", 7)]
)
def test_cpus_are_counted_as_the_kernel_does(listing, cpus):
    assert bpf.cpus_in(listing) == cpus
