"""Our own node object: what counts when the watch and the answer to a write disagree."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.configparse import load_network_config
from pyflannel.core.lease import LeaseAttrs
from pyflannel.store.kubernetes import wire
from pyflannel.store.kubernetes.client import NodeClient
from pyflannel.store.kubernetes.own import CATCH_UP_S, OwnNode
from pyflannel.testing.fakeclock import FakeClock
from tests.support.kubeapi import PREFIX, DirectTransport, KubeCluster

CONFIG = load_network_config('{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}', KINDS)
US = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="host-gw")


class Ours:
    """Our node, and a watch that a test plays by hand."""

    def __init__(self) -> None:
        self.cluster = KubeCluster()
        self.cluster.create("n1", "10.244.1.0/24")
        self.clock = FakeClock()
        self.names = wire.Names(PREFIX, "n1")
        client = NodeClient(DirectTransport(self.cluster), self.names)
        self.own = OwnNode(client, self.clock, set_condition=False)

    def now(self):
        """The object as it is, for the watch to show now or later."""
        return wire.parse_node(self.cluster.nodes["n1"], self.names)

    async def settle(self) -> bool:
        return await self.own.settle(CONFIG, US)

    @property
    def patches(self) -> int:
        return len(self.cluster.patches)


@pytest.fixture
def node() -> Ours:
    return Ours()


async def test_what_the_watch_shows_of_the_time_before_our_write_is_not_repaired(node: Ours):
    before = node.now()
    node.own.saw(before)
    assert await node.settle()
    node.own.saw(before)  # late
    assert await node.settle()
    assert node.patches == 1
    node.own.saw(node.now())
    assert await node.settle()
    assert node.patches == 1


async def test_what_others_do_after_our_write_is_repaired_when_the_watch_has_come_to_it(node: Ours):
    node.own.saw(node.now())
    await node.settle()
    ours = node.now()
    node.cluster.annotate("n1", public_ip=None)
    node.own.saw(ours)
    node.own.saw(node.now())
    assert await node.settle()
    assert node.patches == 2
    assert node.cluster.annotations("n1")["public-ip"] == "192.0.2.1"


async def test_an_event_that_comes_before_the_answer_is_not_waited_for(node: Ours):
    """Else the next change, which may be the last for long, would be passed over."""
    node.own.saw(node.now())
    annotate = node.own._client.annotate

    async def slow(uid, changes):
        written = await annotate(uid, changes)
        node.own.saw(node.now())
        return written

    node.own._client.annotate = slow
    await node.settle()
    node.cluster.annotate("n1", public_ip=None)
    node.own.saw(node.now())
    assert await node.settle()
    assert node.patches == 2


async def test_a_version_that_never_comes_is_not_waited_for_for_good(node: Ours):
    """The watch began anew behind it."""
    node.own.saw(node.now())
    await node.settle()
    node.cluster.annotate("n1", public_ip=None)
    node.own.saw(node.now())
    assert await node.settle()
    assert node.patches == 1
    await node.clock.advance(CATCH_UP_S)
    assert await node.settle()
    assert node.patches == 2
