"""Cells of the matrix of data paths, underlays and traffic: some at random, one that was wrong.

`make interop` tries all of them, and prints a line for each.
"""

from __future__ import annotations

import random
import time

import pytest

from tests.interop.matrix import Cell, all_cells, pairwise, try_cell
from tests.interop.nodes import KINDS, kinds
from tests.interop.traffic import TRAFFIC, wrong_checksum
from tests.interop.underlays import UNDERLAYS
from tests.support.guests import need_devices

CELLS = 3
"""Chosen anew for each run: a few seconds each on a machine that does nothing else."""
BY_NAME = {underlay.name: underlay for underlay in UNDERLAYS}


def test_a_cell_for_every_pair_of_data_paths_on_every_underlay() -> None:
    found = {(cell.left, cell.right, cell.underlay.name) for cell in all_cells()}
    some = kinds()
    pairs = len(some) * (len(some) + 1) // 2 - ("upstream" in some)
    assert len(found) == pairs * len(UNDERLAYS)
    assert {"python", "plain"} <= set(some) <= set(KINDS)


def test_few_cells_have_every_underlay_and_every_pair_of_kinds_among_them() -> None:
    chosen = pairwise(all_cells(), random.Random(1), 40)
    assert {cell.underlay.name for cell in chosen} == set(BY_NAME)
    assert {(cell.left, cell.right) for cell in chosen} == {
        (cell.left, cell.right) for cell in all_cells()
    }


HEADER = bytes.fromhex("4500001d0001000040117ccd7f0000017f000001")


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        pytest.param(HEADER + bytes.fromhex("0007000900090000") + b"x", "", id="none"),
        pytest.param(HEADER + bytes.fromhex("0007000900091234") + b"x", "protocol 17", id="UDP"),
        pytest.param(b"\x46" + HEADER[1:] + bytes(9), "IP header", id="IP"),
    ],
)
def test_a_wrong_checksum_in_a_capture_is_seen(data: bytes, wrong: str) -> None:
    if not wrong:
        header = HEADER[:10] + b"\0\0" + HEADER[12:]
        total = sum(int.from_bytes(header[at : at + 2]) for at in range(0, 20, 2))
        total = (total & 0xFFFF) + (total >> 16)
        assert HEADER[10:12] == (0xFFFF - total).to_bytes(2)
    assert wrong_checksum(data) == wrong


@pytest.mark.root
@pytest.mark.slow
def test_all_traffic_arrives_unchanged_between_all_kinds() -> None:
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    for cell in pairwise(all_cells(), random.Random(seed), CELLS):
        assert try_cell(cell) == {}, f"seed {seed}: {cell}"


STACKED = 6
"""Cells in a guest, whose processor is emulated: a minute each."""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.guest
@pytest.mark.timeout(1800)
def test_all_traffic_arrives_over_vlan_and_bond_and_in_tunnels_of_the_pods() -> None:
    need_devices("vlan", "bond", "ipip", "gre")
    assert {"IPIP inside", "GRE inside"} <= TRAFFIC.keys()
    stacked = [cell for cell in all_cells() if cell.underlay.name in {"veth", "vlan", "bond"}]
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    for cell in pairwise(stacked, random.Random(seed), STACKED):
        assert try_cell(cell) == {}, f"seed {seed}: {cell}"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif("ebpf" not in kinds(), reason="the kernel has no eBPF data path")
def test_super_packets_are_counted_as_what_they_stand_for() -> None:
    """They leave whole and are cut behind the program, so both nodes count for themselves."""
    cell = Cell("ebpf", "ebpf", BY_NAME["veth, tso off"], pods_finish=False)
    assert try_cell(cell) == {}
