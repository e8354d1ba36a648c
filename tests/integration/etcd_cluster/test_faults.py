"""A cluster of three and everything that happens to one; each row with the time it may take.

A node is well again when it sees a peer's new lease and has its own key in etcd.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from pyflannel.core.ip import SubnetKey, parse_subnet_key
from pyflannel.store.etcd import codec
from pyflannel.testing.etcdserver import EtcdCluster, EtcdError, EtcdServer
from tests.integration.etcd_cluster.conftest import CONFIG, PREFIX, WITHIN_S, Node, running, until

pytestmark = pytest.mark.slow

PEER = b'{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"host-gw"}'


@pytest.fixture
def cluster(binary, tmp_path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd", binary=binary) as running_cluster:
        running_cluster.members[0].put(codec.config_key(PREFIX), CONFIG)
        yield running_cluster


def subnet(third: int) -> SubnetKey:
    key = parse_subnet_key(f"10.0.{third}.0-24")
    assert key is not None
    return key


async def off_loop(call, *arguments):
    return await asyncio.to_thread(call, *arguments)


async def put_at_last(member: EtcdServer, key: bytes, value: bytes) -> None:
    """Writes as soon as the members have a leader again."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(TimeoutError, EtcdError):
                await off_loop(member.put, key, value)
                return


async def kill_leader(cluster):
    (await off_loop(cluster.leader)).kill()


async def freeze_leader(cluster):
    (await off_loop(cluster.leader)).freeze()


async def lose_quorum_for_a_while(cluster):
    for member in cluster.members[:2]:
        member.kill()
    await asyncio.sleep(4)
    for member in cluster.members[:2]:
        member.start(wait=False)


async def restart_all(cluster):
    for member in cluster.members:
        member.kill()
    for member in cluster.members:
        member.start(wait=False)


async def compact_during_a_cut(cluster):
    """History goes on, is compacted, and then the members come back one by one."""
    for member in cluster.members:
        member.kill()
    await asyncio.sleep(1)
    for member in cluster.members:
        member.start(wait=False)
    await off_loop(cluster.members[0].wait_ready)
    for n in range(20):
        await off_loop(cluster.members[0].put, b"/other/%d" % n, b"x")
    await off_loop(cluster.members[0].compact)


FAULTS = [
    pytest.param(kill_leader, 8.0, id="leader killed"),
    pytest.param(freeze_leader, 15.0, id="leader frozen"),
    pytest.param(lose_quorum_for_a_while, 15.0, id="quorum lost"),
    pytest.param(restart_all, 15.0, id="all restarted"),
    pytest.param(compact_during_a_cut, 15.0, id="compacted"),
]


def alive(cluster) -> EtcdServer:
    return next(m for m in cluster.members if m.answers)


@pytest.mark.parametrize(("fault", "within"), FAULTS)
async def test_a_node_is_well_again(cluster, tmp_path, fault, within):
    async with asyncio.timeout(WITHIN_S):
        node = Node(tmp_path / "state", cluster.endpoints, 1)
        async with running(node):
            await until("the snapshot", lambda: node.seen, 5)
            await fault(cluster)
            member = alive(cluster)

            def write() -> bool:
                member.put(codec.lease_key(PREFIX, subnet(250)), PEER)
                return True

            for _ in range(100):
                try:
                    await off_loop(write)
                    break
                except (EtcdError, OSError):
                    await asyncio.sleep(0.2)
            await until("the peer's lease", lambda: subnet(250) in node.seen, within)
            assert await off_loop(member.get, node.key) is not None
            await until(
                "the own lease",
                lambda: node.manager.standing().held is True,
                within,
            )


async def test_a_node_cut_off_from_its_member_does_not_stay_with_a_learner(binary, tmp_path):
    """The learner is named first, and stays when the voter is away for a while."""

    voter = EtcdServer(tmp_path / "voter", binary=binary, name="voter")
    learner = EtcdServer(
        tmp_path / "learner",
        binary=binary,
        name="learner",
        options=("--initial-cluster-state", "existing"),
    )
    with voter:
        voter.put(codec.config_key(PREFIX), CONFIG)
        voter.post("cluster/member/add", {"peerURLs": [learner.peer_url], "isLearner": True})
        learner.cluster = f"{voter.cluster},{learner.cluster}"
        learner.start(wait=False)
        try:
            async with asyncio.timeout(WITHIN_S):
                node = Node(tmp_path / "state", (learner.endpoint, voter.endpoint), 1)
                async with running(node):
                    await until("the snapshot", lambda: node.seen, 5)
                    voter.freeze()
                    await asyncio.sleep(9)
                    voter.thaw()
                    await off_loop(voter.put, codec.lease_key(PREFIX, subnet(250)), PEER)
                    await until("the peer's lease", lambda: subnet(250) in node.seen, 12)
        finally:
            learner.kill()


class TestStrangers:
    """A member that lost its data and was started as a cluster of its own."""

    async def test_it_is_not_followed_while_the_others_are_out_of_reach(self, cluster, tmp_path):
        async with asyncio.timeout(WITHIN_S):
            stranger, *others = cluster.members
            node = Node(tmp_path / "state", cluster.endpoints, 1)
            await off_loop(others[0].put, codec.lease_key(PREFIX, subnet(250)), PEER)
            async with running(node):
                await until("the peer", lambda: subnet(250) in node.seen, 5)
                stranger.kill()
                stranger.wipe()
                stranger.cluster = f"{stranger.name}={stranger.peer_url}"
                await off_loop(stranger.start)
                for member in others:
                    member.freeze()
                await asyncio.sleep(12)
                assert subnet(250) in node.seen
                assert await off_loop(stranger.get, node.key) is None
                assert "another cluster" in node.manager.report().reason
                for member in others:
                    member.thaw()
                await put_at_last(others[0], codec.lease_key(PREFIX, subnet(251)), PEER)
                await until("a new peer", lambda: subnet(251) in node.seen, 15)

    async def test_the_next_run_does_not_follow_it_either(self, cluster, tmp_path):
        async with asyncio.timeout(WITHIN_S):
            stranger, *others = cluster.members
            node = Node(tmp_path / "state", cluster.endpoints, 1)
            async with running(node):
                pass
            stranger.kill()
            stranger.wipe()
            stranger.cluster = f"{stranger.name}={stranger.peer_url}"
            await off_loop(stranger.start)
            await off_loop(stranger.put, codec.config_key(PREFIX), CONFIG)
            for member in others:
                member.kill()
            again = Node(tmp_path / "state", cluster.endpoints, 1)
            starting = asyncio.create_task(again.start())
            await asyncio.sleep(5)
            assert not starting.done()
            for member in others:
                member.start(wait=False)
            await asyncio.wait_for(starting, 20)
            await again.store.close()

    async def test_without_memory_endpoints_that_disagree_are_named(self, binary, tmp_path):
        with (
            EtcdServer(tmp_path / "one", binary=binary) as one,
            EtcdServer(tmp_path / "other", binary=binary) as other,
        ):
            for server in (one, other):
                server.put(codec.config_key(PREFIX), CONFIG)
            async with asyncio.timeout(WITHIN_S):
                node = Node(tmp_path / "state", (one.endpoint, other.endpoint), 1)
                starting = asyncio.create_task(node.start())
                await asyncio.sleep(2)
                assert not starting.done()
                with pytest.raises(Exception, match="different clusters") as caught:
                    await node.store.get(b"/x")
                assert one.endpoint in str(caught.value)
                assert other.endpoint in str(caught.value)
                other.kill()
                await asyncio.wait_for(starting, 15)
                await node.store.close()

    async def test_a_cluster_that_was_emptied_is_followed(self, binary, tmp_path):
        """All endpoints name the new one: that is what a restore looks like."""

        with EtcdServer(tmp_path / "one", binary=binary) as server:
            server.put(codec.config_key(PREFIX), CONFIG)
            async with asyncio.timeout(WITHIN_S):
                node = Node(tmp_path / "state", (server.endpoint,), 1)
                async with running(node):
                    server.kill()
                    server.wipe()
                    await off_loop(server.start)
                    await off_loop(server.put, codec.config_key(PREFIX), CONFIG)
                    for _ in range(200):
                        if await off_loop(server.get, node.key) is not None:
                            break
                        await asyncio.sleep(0.1)
                    else:
                        pytest.fail("the own key is not back")

    async def test_what_was_written_before_we_were_back_is_seen(self, binary, tmp_path):
        """Emptied, its cluster id is the same; and it is further than our watch by then."""
        with EtcdServer(tmp_path / "one", binary=binary) as server:
            server.put(codec.config_key(PREFIX), CONFIG)
            async with asyncio.timeout(WITHIN_S):
                node = Node(tmp_path / "state", (server.endpoint,), 1)
                peer = subnet(251)
                async with running(node):
                    await until("the first snapshot", lambda: node.seen, 10)
                    # In the loop, so that the node does nothing meanwhile.
                    server.kill()
                    server.wipe()
                    server.start()
                    server.put(codec.lease_key(PREFIX, peer), PEER)
                    for _ in range(20):
                        server.put(codec.config_key(PREFIX), CONFIG)
                    await until("the peer", lambda: peer in node.seen, 20)
