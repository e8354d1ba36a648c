"""A node's probes over a fake network and a fake clock."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.kind import Probed
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.probe.judge import Cause, State
from pyflannel.probe.prober import UNSEEN, PeerView, Prober
from pyflannel.probe.targets import Target, targets
from pyflannel.testing.fakeclock import FakeClock
from tests.support.echoes import FakeEchoes


class Node:
    """A node with peers, whose prober runs."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.net = FakeEchoes(self.clock)
        self.peers: list[Target] = []
        """Those that were added."""
        self.no_socket = False
        self.prober = Prober(
            10.0, self.clock, self.open, lambda _family: 1450, random.Random(1).random
        )

    def open(self, family: Family) -> FakeEchoes:
        assert family is Family.V4
        if self.no_socket:
            raise KernelError("open", "raw IPv4 socket", errno.EPERM, "is CAP_NET_RAW missing?")
        return self.net

    def add(self, *numbers: int, probed: Probed = Probed.TUNNEL) -> None:
        for number in numbers:
            high, low = divmod(number, 250)
            key = SubnetKey(IPv4Network(f"10.{high}.{low}.0/24"))
            attrs = LeaseAttrs(public_ip=IPv4Address(f"192.0.{high}.{low}"))
            found = list(targets(Lease(key=key, attrs=attrs), probed, (Family.V4,)))
            self.peers += found
            self.prober.update({key: found})

    def view(self, number: int = 1) -> PeerView:
        high, low = divmod(number, 250)
        return self.prober.view(SubnetKey(IPv4Network(f"10.{high}.{low}.0/24")))


@pytest.fixture
@asynccontextmanager
async def node() -> AsyncIterator[Node]:
    """A node whose prober runs."""
    node = Node()
    task = asyncio.create_task(node.prober.run())
    try:
        await node.clock.advance(0)
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert node.net.ident in {0, 7}


async def test_a_peer_that_answers_is_up_with_its_round_trip_and_its_size(node: Node):
    node.add(1)
    await node.clock.advance(30)
    view = node.view()
    assert (view.state, view.mtu, view.loss) == (State.UP, 1450, 0)
    assert view.rtt_s == pytest.approx(0.01, abs=1e-4)
    assert view.underlay_rtt_s == pytest.approx(0.01, abs=1e-4)
    assert node.clock.time() - view.heard < 12


async def test_one_that_never_answers_stays_unknown(node: Node):
    node.add(1)
    node.net.silent = {"10.0.1.0", "10.0.1.1", "192.0.0.1"}
    await node.clock.advance(3_600)
    assert node.view().state is State.UNKNOWN
    report = node.prober.report()
    assert (report.failing, report.answered) == ({}, 0)
    # Nor is it asked more often for that.
    assert len(node.net.sent) < 3_600 / 9 * 1.4


async def test_a_thousand_peers_cost_two_or_three_looks_a_second(node: Node):
    """To wake up costs a node more than the probes that leave then."""
    node.add(*range(1, 1_001))
    node.net.answers = False
    await node.clock.advance(400)  # the first turns follow each other at once
    looks, packets = node.net.looks, len(node.net.sent)
    await node.clock.advance(100)
    assert node.net.looks - looks <= 100 / 0.4
    # And no peer is asked less often for it.
    assert len(node.net.sent) - packets >= 100 * 1_000 / 49.2


@pytest.mark.parametrize(
    ("before", "after", "cause", "words"),
    [
        (set(), {"10.0.1.0", "10.0.1.1"}, Cause.TUNNEL, "the tunnel is broken"),
        (set(), {"10.0.1.0", "10.0.1.1", "192.0.0.1"}, Cause.AWAY, "the node is away"),
        (
            {"192.0.0.1"},
            {"10.0.1.0", "10.0.1.1", "192.0.0.1"},
            Cause.UNCLEAR,
            "the underlay does not answer ping",
        ),
    ],
)
async def test_a_failure_is_told_within_a_quarter_of_a_minute_and_is_one_of_three(
    node, before, after, cause, words
):
    node.add(1)
    node.net.silent = before
    await node.clock.advance(100)
    assert node.view().state is State.UP
    node.net.silent = after
    await node.clock.advance(16)
    view = node.view()
    assert (view.state, view.cause) == (State.DOWN, cause)
    assert words in view.reason
    assert words in node.prober.report().failing["10.0.1.0/24"].text
    node.net.silent = before
    await node.clock.advance(13)
    assert node.view().state is State.UP
    assert node.prober.report().failing == {}


async def test_a_single_loss_is_nothing(node: Node):
    node.add(1)
    await node.clock.advance(60)
    for _ in range(20):
        count = len(node.net.sent)
        node.net.silent = {"10.0.1.0"}
        while len(node.net.sent) == count:
            await node.clock.advance(0.1)
        node.net.silent = set()
        await node.clock.advance(20)
        assert node.view().state is State.UP


async def test_where_kernels_take_the_first_address_for_a_broadcast_the_bridge_counts(node: Node):
    node.add(1)
    await node.clock.advance(30)
    node.net.silent = {"10.0.1.0"}
    await node.clock.advance(300)
    assert node.view().state is State.UP


@pytest.mark.parametrize("limit", [200, 1400])
async def test_a_path_for_small_packets_alone_is_found_with_its_border(node, limit):
    node.add(1)
    await node.clock.advance(30)
    node.net.carries = {"10.0.1.0": limit, "10.0.1.1": limit}
    await node.clock.advance(220)
    view = node.view()
    assert view.state is State.SMALL_ONLY
    assert limit - 8 <= view.mtu <= limit
    assert node.prober.report().failing["10.0.1.0/24"].state == "small-only"
    node.net.carries = {}
    await node.clock.advance(40)
    assert (node.view().state, node.view().mtu) == (State.UP, 1450)


async def test_a_size_that_the_own_device_refuses_says_nothing_of_the_way(node: Node):
    node.net.device_mtu = 1430
    node.add(1)
    await node.clock.advance(600)
    assert (node.view().state, node.view().mtu) == (State.UP, None)


async def test_a_machine_that_stood_still_blames_no_peer(node: Node):
    node.add(1, 2, 3)
    await node.clock.advance(60)
    node.net.silent = {each for _, each, _ in node.net.sent}
    for _ in range(20):
        # A stretch without one turn of the loop, in which the answers were lost.
        while not node.prober._sent:
            await node.clock.advance(0.1)
        node.clock._elapsed += 30
        await node.clock.advance(0)
        assert node.prober.report().states["up"] == 3
    assert node.prober.report().void >= 20
    node.net.silent = set()


async def test_peers_come_and_go_and_one_with_another_address_begins_anew(node: Node):
    node.add(1, 2)
    await node.clock.advance(30)
    gone, moved = node.peers
    node.prober.update({gone.key: (), moved.key: [moved]})
    await node.clock.advance(1)
    assert node.prober.view(gone.key) == UNSEEN
    assert node.view(2).state is State.UP  # as it was told before
    there = replace(moved, underlay=IPv4Address("192.0.2.99"))
    node.prober.update({moved.key: [there]})
    node.net.silent = {"10.0.2.0", "10.0.2.1"}
    await node.clock.advance(60)
    assert node.view(2).state is State.UNKNOWN


async def test_a_refusal_of_the_kernel_is_part_of_the_reason(node: Node):
    node.add(1)
    await node.clock.advance(30)
    node.net.refuses = errno.EPERM
    await node.clock.advance(16)
    assert "EPERM" in node.view().reason


async def test_without_the_right_to_a_raw_socket_nothing_is_asked_and_it_is_tried_again(node: Node):
    node.no_socket = True
    node.add(1)
    await node.clock.advance(30)
    assert "CAP_NET_RAW" in node.prober.report().refused
    assert node.view().state is State.UNKNOWN
    node.no_socket = False
    await node.clock.advance(80)
    assert node.prober.report().refused == ""
    assert node.view().state is State.UP


async def test_a_thousand_peers_cost_few_packets_also_when_half_of_them_fail(node: Node):
    node.add(*range(1_000))
    await node.clock.advance(120)
    assert node.prober.report().states["up"] == 1_000
    node.net.sent.clear()
    await node.clock.advance(100)
    assert len(node.net.sent) / 100 < 30
    node.net.sent.clear()
    node.net.silent = {str(a) for each in node.peers[:500] for a in each.overlay}
    await node.clock.advance(180)
    assert len(node.net.sent) / 180 < 51
    assert node.prober.report().states["down"] == 500
    assert len(node.prober.report().failing) == 100


async def test_what_is_said_of_a_failure_names_peer_and_code(node, caplog):
    with caplog.at_level("INFO", logger="pyflannel"):
        node.add(1)
        node.add(2)
        node.net.silent = {"10.0.2.0", "10.0.2.1"}
        await node.clock.advance(60)
        assert caplog.records == []
        node.net.silent |= {"10.0.1.0", "10.0.1.1"}
        await node.clock.advance(600)
        (line,) = caplog.records
        assert line.levelname == "WARNING"
        assert line.pyflannel_fields["peer"] == "10.0.1.0/24"
        assert line.pyflannel_fields["code"] == "PF171"
