"""The way to a cluster of three: cut to one member, to two, to all of them; and slow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from pyflannel.store.etcd import codec
from pyflannel.testing.etcdserver import EtcdCluster
from tests.integration.etcd_cluster.conftest import CONFIG, PREFIX, Node, running, until
from tests.integration.etcd_cluster.test_faults import PEER, off_loop, subnet
from tests.support.link import Link

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def cluster(binary, tmp_path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd", binary=binary) as running_cluster:
        running_cluster.members[0].put(codec.config_key(PREFIX), CONFIG)
        yield running_cluster


@pytest.fixture
def links(cluster) -> Iterator[list[Link]]:
    """A link to each member."""
    made = [Link(member.endpoint) for member in cluster.members]
    yield made
    for link in made:
        link.close()


@pytest.mark.parametrize(
    ("cut", "within"),
    [
        pytest.param(1, 15.0, id="its member"),
        pytest.param(2, 20.0, id="two members"),
    ],
)
async def test_what_happens_is_seen_while_a_part_of_the_members_is_out_of_reach(
    cluster, links, tmp_path, cut, within
):
    """They answer each other, and not this node; the watch notices by itself."""
    node = Node(tmp_path / "state", tuple(link.endpoint for link in links), 1)
    async with running(node):
        await until("the snapshot", lambda: node.seen, 5)
        used = node.store._turns._preferred
        for link in [*links[used:], *links[:used]][:cut]:
            link.cut()
        member = cluster.members[0]
        await off_loop(member.put, codec.lease_key(PREFIX, subnet(250)), PEER)
        await until("the peer's lease", lambda: subnet(250) in node.seen, within)
        await off_loop(member.delete, node.key)
        await until("the own key", lambda: member.get(node.key) is not None, within)
        await until("the own lease", lambda: node.manager.standing().held is True, within)


async def test_a_node_that_was_cut_off_from_all_is_well_when_it_is_back(cluster, links, tmp_path):
    """Meanwhile its key was deleted, and a peer came."""
    node = Node(tmp_path / "state", tuple(link.endpoint for link in links), 1)
    async with running(node):
        await until("the snapshot", lambda: node.seen, 5)
        for link in links:
            link.cut()
        member = cluster.members[0]
        await off_loop(member.delete, node.key)
        await off_loop(member.put, codec.lease_key(PREFIX, subnet(250)), PEER)
        await until("the reason", lambda: node.manager.report().connected is False, 20)
        for link in links:
            link.mend()
        await until("the peer's lease", lambda: subnet(250) in node.seen, 20)
        await until("no trouble", lambda: node.manager.report().connected, 10)
        await until("the own key", lambda: member.get(node.key) is not None, 10)
        await until("the own lease", lambda: node.manager.standing().held is True, 10)


async def test_a_slow_way_is_no_fault(cluster, links, tmp_path):
    """Each part takes 0.2 s, as over a satellite: nothing fails, and no endpoint is left for it."""
    for link in links:
        link.delay_s = 0.2
    node = Node(tmp_path / "state", tuple(link.endpoint for link in links), 1)
    async with running(node):
        await until("the snapshot", lambda: node.seen, 20)
        member = cluster.members[0]
        await off_loop(member.put, codec.lease_key(PREFIX, subnet(250)), PEER)
        await until("the peer's lease", lambda: subnet(250) in node.seen, 10)
        await asyncio.sleep(7)  # a silent watch is probed meanwhile
        assert node.manager.report().reconnects == 0
        assert node.manager.standing().held is True
