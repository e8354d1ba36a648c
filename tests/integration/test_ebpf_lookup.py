"""The peer table of the eBPF programs: each packet's peer is the one with the longest prefix.

A packet whose peer they do not find is carried by user space, so nothing else would show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import ipv4_packet
from pyflannel.datapath.select import IMPLEMENTATIONS
from tests.contract.datapath_rigs import DeviceRig, Wire
from tests.fuzz.differential import LEFT, TC_ACT_REDIRECT, Programs

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

NETWORK = IPv4Network("8.0.0.0/7")
POD = IPv4Address("8.0.0.2")
"""The kernel takes the protocol of a test run from its first half (tests/fuzz/differential.py)."""
INNERMOST = IPv4Address("9.170.170.170")
LENGTHS = range(9, 33)
"""Nested around that address. They belong to the peers in turn."""


@pytest.fixture
def rig() -> Iterator[DeviceRig]:
    wire = Wire()
    try:
        with DeviceRig(wire) as rig:
            rig.start(
                IMPLEMENTATIONS["ebpf"].make,
                PeerTable(),
                network=NETWORK,
                tun_address=IPv4Address("8.0.0.0"),
            )
            yield rig
    finally:
        wire.close()


def peer_name(length: int) -> str:
    return ("a", "b", "stranger")[length % 3]


def give(rig: DeviceRig, lengths: list[int]) -> None:
    """A table with these of the nested prefixes."""
    rig.path.replace_table(
        PeerTable(
            Peer(
                IPv4Network((int(INNERMOST), length), strict=False),
                rig.addresses[peer_name(length)],
            )
            for length in lengths
        )
    )


def outside_of(length: int) -> IPv4Address:
    """An address in the prefix of this length and in no longer one."""
    return INNERMOST if length == 32 else IPv4Address(int(INNERMOST) ^ 1 << (31 - length))


@pytest.mark.parametrize(
    "lengths", [[24], [32], [9], list(LENGTHS), [32, 9], [28, 24, 16]], ids=str
)
def test_the_longest_prefix_is_found_without_user_space(rig: DeviceRig, lengths: list[int]) -> None:
    programs = Programs.of(rig)

    def way(destination: IPv4Address) -> str:
        data = ipv4_packet(source=POD, destination=destination, protocol=253, payload=bytes(44))
        verdict, sent = programs.run("overlay_out", data)
        if verdict == LEFT:
            return "user space"
        assert verdict == TC_ACT_REDIRECT
        outer = IPv4Address(sent[30:34])
        return next(name for name, address in rig.addresses.items() if address == outer)

    def ways() -> dict[int, str]:
        return {length: way(outside_of(length)) for length in LENGTHS}

    def wanted(there: list[int]) -> dict[int, str]:
        # A table's prefix holds the addresses that are outside of the longer ones around them.
        longest = {
            length: max((each for each in there if each <= length), default=0) for length in LENGTHS
        }
        return {
            length: peer_name(found) if found else "user space" for length, found in longest.items()
        }

    assert ways() == wanted([])
    give(rig, lengths)
    assert ways() == wanted(lengths)
    give(rig, lengths[1:])
    assert ways() == wanted(lengths[1:])
    give(rig, [*lengths, 20])
    assert ways() == wanted([*lengths, 20])
