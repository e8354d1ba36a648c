"""What a node does with Kubernetes: waiting, publishing, repairing, following its own object."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import NetworkConfigChanged
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.lease import Changes, Identity, LeaseAttrs, LeaseTable, Snapshot
from pyflannel.store.kubernetes import manager as managers
from pyflannel.store.kubernetes.manager import KubernetesLeaseStore
from pyflannel.testing.fakeclock import FakeClock
from tests.support.kubeapi import PREFIX, DirectTransport, KubeCluster

VTEP = '{"VNI":1,"VtepMAC":"32:83:56:a9:ae:b8"}'
US = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=VTEP)
CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
PUBLISHED = {
    "backend-data": VTEP,
    "backend-type": "vxlan",
    "kube-subnet-manager": "true",
    "public-ip": "192.0.2.1",
}
REMEDIED_S = 2.0
"""So long after the remedy a node is ready, at most."""


class Node:
    """A store and what the agent does with it."""

    def __init__(self, directory: Path, cluster: KubeCluster, **options) -> None:
        self.clock = FakeClock()
        self.cluster = cluster
        self.config_file = directory / "net-conf.json"
        if not self.config_file.exists():
            self.put_config(CONFIG)
        self.transport = DirectTransport(cluster, options.pop("token", ""))
        self.told: list[str] = []
        self.attrs = options.pop("attrs", US)
        self.store = KubernetesLeaseStore(
            self.transport,
            net_config=str(self.config_file),
            kinds=KINDS,
            clock=self.clock,
            rng=random.Random(1),
            tell=self.told.append,
            **{"prefix": PREFIX, "node_name": "n1", **options},
        )
        self.moves: list[SubnetKey] = []
        self.updates: list[object] = []
        self.table = LeaseTable(network=IPv4Network("10.244.0.0/16"), network6=None)
        self.tasks: list[asyncio.Task[None]] = []

    def put_config(self, config: object) -> None:
        fresh = self.config_file.with_suffix(".new")
        fresh.write_text(config if isinstance(config, str) else json.dumps(config))
        fresh.rename(self.config_file)

    def start(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._run())
        self.tasks.append(task)
        return task

    async def _run(self) -> None:
        while True:
            await self.store.network_config()
            await self.store.previous(self.attrs)
            with suppress(NetworkConfigChanged):
                lease = await self.store.acquire(self.attrs)
                break
        self.table.set_own(Identity.of(lease))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leases())
            group.create_task(self._keep())
            self.store.ready()

    async def _leases(self) -> None:
        async for update in self.store.watch_leases():
            self.updates.append(update)
            self.table.apply(update)

    async def _keep(self) -> None:
        async for lease in self.store.keep():
            self.moves.append(lease.key)
            self.table.set_own(Identity.of(lease))

    @property
    def peers(self) -> dict[str, str]:
        return {str(k.v4): str(v.attrs.public_ip) for k, v in self.table.peers.items()}

    @property
    def subnet(self) -> str:
        return self.store.lease.key.describe() if self.store.lease is not None else ""

    @property
    def waits_for(self) -> str:
        return self.told[-1] if self.told else ""

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.store.close()


@pytest.fixture
def cluster() -> KubeCluster:
    made = KubeCluster()
    made.create("n1", "10.244.1.0/24")
    return made


def peer(cluster: KubeCluster, number: int, cidr: str = "", **annotations: str | None) -> None:
    cluster.create(f"n{number}", cidr or f"10.244.{number}.0/24")
    there = {
        "kube_subnet_manager": "true",
        "backend_type": "vxlan",
        "backend_data": f'{{"VNI":1,"VtepMAC":"02:00:00:00:00:{number:02x}"}}',
        "public_ip": f"192.0.2.{number}",
    }
    cluster.annotate(f"n{number}", **there | annotations)


@asynccontextmanager
async def started(directory: Path, cluster: KubeCluster, **options: object) -> AsyncIterator[Node]:
    """A node that runs, and leaves no task behind."""
    node = Node(directory, cluster, **options)
    node.start()
    try:
        await node.clock.advance(0.5)
        yield node
    finally:
        await node.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def node(tmp_path, cluster):
    return started(tmp_path, cluster)


class TestStart:
    async def test_the_podcidr_is_the_subnet_and_the_annotations_are_flannels(self, node, cluster):
        assert node.subnet == "10.244.1.0/24"
        assert cluster.annotations("n1") == PUBLISHED
        (first, _) = cluster.patches
        assert list(first["metadata"]) == ["annotations", "uid"]
        assert node.waits_for == ""
        assert node.store.standing().held is True

    async def test_what_a_start_asks_for(self, node, cluster):
        """One GET, one list in a watch, two patches; nothing at rest."""
        await node.clock.advance(25)
        assert cluster.log == [
            "get nodes",
            "watch nodes",
            "patch nodes/status",
            "patch nodes/status",
        ]

    async def test_a_restart_writes_nothing_at_all(self, tmp_path, cluster):
        for _ in range(2):
            cluster.patches.clear()
            async with started(tmp_path, cluster) as node:
                await node.clock.advance(60)
        assert cluster.patches == []

    async def test_a_restart_with_an_overwrite_writes_nothing_either(self, tmp_path, cluster):
        """flannel v0.28.9 sends an empty patch each time."""
        cluster.annotate("n1", public_ip_overwrite="198.51.100.7")
        for _ in range(2):
            cluster.patches.clear()
            async with started(tmp_path, cluster):
                assert cluster.annotations("n1")["public-ip"] == "198.51.100.7"
        assert cluster.patches == []

    async def test_what_a_former_run_published_is_known(self, tmp_path, cluster):
        for _ in range(2):
            async with started(tmp_path, cluster) as node:
                former = await node.store.previous(US)
                assert former is not None
                assert former.backend_data == VTEP
                assert node.store.published() == [IPv4Address("192.0.2.1")]

    async def test_a_prefix_with_a_slash_has_its_own_annotations(self, tmp_path, cluster):
        """flannel v0.28.9 writes them and looks for others, so the MAC is a new one each time."""
        async with started(tmp_path, cluster, prefix="org.com/9-") as node:
            every = cluster.nodes["n1"]["metadata"]["annotations"]
            assert every["org.com/9-backend-data"] == VTEP
            former = await node.store.previous(US)
            assert former is not None
            assert former.backend_data == VTEP

    async def test_the_name_is_that_of_the_pods_node(self, tmp_path, cluster):
        cluster.pods["kube-flannel", "kube-flannel-ds-x"] = {"spec": {"nodeName": "n1"}}
        async with started(
            tmp_path, cluster, node_name="", pod=("kube-flannel", "kube-flannel-ds-x")
        ) as node:
            assert node.subnet == "10.244.1.0/24"

    async def test_dual_stack(self, cluster, tmp_path):
        cluster.delete("n1")
        cluster.create("n1", "10.244.1.0/24", cidrs=["fd00:10:0:1::/64"])
        both = CONFIG | {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
        (tmp_path / "net-conf.json").write_text(json.dumps(both))
        attrs = replace(US, public_ipv6=IPv6Address("2001:db8::1"), backend_v6_data=VTEP)
        async with started(tmp_path, cluster, attrs=attrs) as node:
            assert node.subnet == "10.244.1.0/24 + fd00:10:0:1::/64"
            assert cluster.annotations("n1") == PUBLISHED | {
                "backend-v6-data": VTEP,
                "public-ipv6": "2001:db8::1",
            }

    async def test_a_role_that_may_not_get_nodes_is_enough(self, tmp_path, cluster):
        cluster.role.discard(("get", "nodes"))
        async with started(tmp_path, cluster) as node:
            assert node.subnet == "10.244.1.0/24"


def no_podcidr(cluster: KubeCluster) -> Callable[[], None]:
    cluster.delete("n1")
    cluster.create("n1")
    return lambda: cluster.assign("n1", "10.244.1.0/24")


def not_registered(cluster: KubeCluster) -> Callable[[], None]:
    cluster.delete("n1")
    return lambda: cluster.create("n1", "10.244.1.0/24") and None


def away(cluster: KubeCluster) -> Callable[[], None]:
    cluster.stop()
    return cluster.start


def may_not(*rule: str) -> Callable[[KubeCluster], Callable[[], None]]:
    def prepare(cluster: KubeCluster) -> Callable[[], None]:
        cluster.role.discard(rule)
        if rule[0] == "list":
            cluster.role.discard(("watch", "nodes"))
            return lambda: cluster.role.update({rule, ("watch", "nodes")})
        return lambda: cluster.role.add(rule)

    return prepare


def not_known(cluster: KubeCluster) -> Callable[[], None]:
    cluster.anonymous = ""

    def remedy() -> None:
        cluster.anonymous = "system:serviceaccount:kube-flannel:flannel"

    return remedy


WAITS = {
    "no podCIDR": (no_podcidr, "--allocate-node-cidrs"),
    "node not registered": (not_registered, "kubelet"),
    "API server away": (away, "connection refused"),
    "list forbidden": (may_not("list", "nodes"), 'cannot watch resource "nodes"'),
    "patch forbidden": (may_not("patch", "nodes/status"), "cannot patch"),
    "token refused": (not_known, "does not accept our token"),
}


class TestWaiting:
    """None of it ends the daemon; flannel v0.28.9 ends at once, after 31 s or after 10 min."""

    @pytest.mark.parametrize("case", WAITS)
    @pytest.mark.parametrize("waited", [3.0, 90.0])
    async def test_it_says_for_what_and_is_ready_within_two_seconds_of_the_remedy(
        self, tmp_path, cluster, case, waited
    ):
        prepare, words = WAITS[case]
        remedy = prepare(cluster)
        async with started(tmp_path, cluster) as node:
            await node.clock.advance(waited)
            assert node.subnet == ""
            assert words in node.waits_for
            assert node.store.standing().held is None
            remedy()
            await node.clock.advance(REMEDIED_S)
            assert node.subnet == "10.244.1.0/24"
            assert node.waits_for == ""

    async def test_the_reason_is_one_line_in_ten_minutes(self, tmp_path, cluster, caplog):
        no_podcidr(cluster)
        async with started(tmp_path, cluster) as node:
            await node.clock.advance(500)
            lines = [r for r in caplog.records if r.levelname in {"WARNING", "ERROR"}]
            assert len(lines) == 1
            assert "--cluster-cidr" in str(lines[0].__dict__)

    async def test_a_pod_that_has_no_node_yet_is_waited_for(self, tmp_path, cluster):
        cluster.pods["ns", "p"] = {"spec": {}}
        async with started(tmp_path, cluster, node_name="", pod=("ns", "p")) as node:
            await node.clock.advance(5)
            assert "ns/p" in node.waits_for
            cluster.pods["ns", "p"] = {"spec": {"nodeName": "n1"}}
            await node.clock.advance(REMEDIED_S)
            assert node.subnet == "10.244.1.0/24"

    @pytest.mark.parametrize("bad", ["{", "{}", '{"Network":"10.244.0.0/33"}'])
    async def test_a_bad_net_conf_is_waited_out(self, cluster, tmp_path, bad):
        (tmp_path / "net-conf.json").write_text(bad)
        async with started(tmp_path, cluster) as node:
            await node.clock.advance(5)
            assert "net-conf.json" in node.waits_for
            node.put_config(CONFIG)
            await node.clock.advance(REMEDIED_S)
            assert node.subnet == "10.244.1.0/24"

    async def test_a_podcidr_outside_the_network_is_not_published(self, tmp_path, cluster):
        """flannel v0.28.9 annotates first, and peers route to a node that never comes up."""
        cluster.delete("n1")
        cluster.create("n1", "10.50.1.0/24")
        async with started(tmp_path, cluster) as node:
            await node.clock.advance(5)
            assert 'doesn\'t contain "10.50.1.0/24" PodCIDR of the "n1" node' in node.waits_for
            assert cluster.annotations("n1") == {}
            node.put_config(CONFIG | {"Network": "10.50.0.0/16"})
            await node.clock.advance(REMEDIED_S)
            assert node.subnet == "10.50.1.0/24"

    async def test_without_a_podcidr_of_each_family_nothing_is_published(self, cluster, tmp_path):
        both = CONFIG | {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
        (tmp_path / "net-conf.json").write_text(json.dumps(both))
        async with started(tmp_path, cluster) as node:
            await node.clock.advance(5)
            assert "IPv6" in node.waits_for
            assert cluster.annotations("n1") == {}


class TestOwnNode:
    @pytest.mark.parametrize(
        "harm",
        [
            dict.fromkeys(("backend_data", "backend_type", "kube_subnet_manager", "public_ip")),
            {"public_ip": "192.0.2.99"},
            {"kube_subnet_manager": "false"},
        ],
    )
    async def test_annotations_that_were_changed_come_back_at_once(
        self, node, cluster, harm, caplog
    ):
        cluster.annotate("n1", "rancher", **harm)
        await node.clock.advance(0.1)
        assert cluster.annotations("n1") == PUBLISHED
        assert "rancher" in str([r.__dict__ for r in caplog.records])

    async def test_a_client_that_fights_back_is_answered_ever_more_slowly(self, node, cluster):
        cluster.patches.clear()
        for _ in range(300):
            cluster.annotate("n1", "importer", public_ip=None)
            await node.clock.advance(0.5)
        assert 5 < len(cluster.patches) < 10
        await node.clock.advance(managers.IDLE_S * 2 + 60)
        assert cluster.annotations("n1") == PUBLISHED

    async def test_our_own_writes_are_not_taken_for_another_clients(self, node, cluster, caplog):
        for last in range(2, 12):
            attrs = replace(US, public_ip=IPv4Address(f"192.0.2.{last}"))
            publishing = asyncio.create_task(node.store.publish(attrs))
            await node.clock.advance(1)
            assert publishing.result().attrs == attrs
        assert len(cluster.patches) == 12
        assert "changed" not in caplog.text

    async def test_a_node_that_is_deleted_and_registered_again_moves(self, node, cluster):
        """flannel v0.28.9: no annotations, no route from anybody, pods of the old range."""
        cluster.delete("n1")
        await node.clock.advance(5)
        assert node.store.standing().held is False
        assert "not registered" in node.store.standing().reason
        assert node.moves == []
        assert node.subnet == "10.244.1.0/24"
        cluster.create("n1")
        await node.clock.advance(5)
        assert "podCIDR" in node.store.standing().reason
        cluster.assign("n1", "10.244.3.0/24")
        await node.clock.advance(1)
        assert [key.describe() for key in node.moves] == ["10.244.3.0/24"]
        assert node.table.new_rejections() == [], "it was taken for another node's"
        assert cluster.annotations("n1") == PUBLISHED
        conditions = {c["type"] for c in cluster.nodes["n1"]["status"]["conditions"]}
        assert conditions == {"Ready", "NetworkUnavailable"}
        assert node.store.standing() == replace(
            node.store.standing(), held=True, reason="", since=None
        )

    async def test_the_same_while_the_api_server_is_away(self, node, cluster):
        cluster.stop()
        await node.clock.advance(5)
        cluster.delete("n1")
        cluster.create("n1", "10.244.3.0/24")
        cluster.compact()
        cluster.start()
        await node.clock.advance(10)
        assert [key.describe() for key in node.moves] == ["10.244.3.0/24"]
        assert cluster.annotations("n1") == PUBLISHED

    async def test_a_write_never_reaches_another_object(self, node, cluster):
        """Deleted and registered between a sighting and a write."""
        cluster.watches.clear()  # nothing of it is heard
        cluster.delete("n1")
        cluster.create("n1", "10.244.9.0/24")
        publishing = asyncio.create_task(node.store.publish(replace(US, backend_data="{}")))
        await node.clock.advance(0)
        assert cluster.annotations("n1") == {}
        await node.clock.advance(2)
        await publishing
        assert cluster.annotations("n1")["backend-data"] == "{}"


class TestOverwrite:
    async def test_it_is_followed_while_running(self, node, cluster):
        cluster.annotate("n1", public_ip_overwrite="198.51.100.7")
        await node.clock.advance(0.1)
        assert cluster.annotations("n1")["public-ip"] == "198.51.100.7"
        assert node.store.lease.attrs.public_ip == IPv4Address("198.51.100.7")
        cluster.annotate("n1", public_ip_overwrite=None)
        await node.clock.advance(0.1)
        assert cluster.annotations("n1") == PUBLISHED

    async def test_a_bad_one_is_named_and_the_last_good_one_stays(self, tmp_path, cluster, caplog):
        cluster.annotate("n1", public_ip_overwrite="198.51.100.7")
        async with started(tmp_path, cluster) as node:
            cluster.annotate("n1", public_ip_overwrite="not an ip")
            await node.clock.advance(0.1)
            assert cluster.annotations("n1")["public-ip"] == "198.51.100.7"
            (reason,) = node.store.report().rejected.values()
            assert "flannel.alpha.coreos.com/public-ip-overwrite" in reason
            cluster.annotate("n1", public_ip_overwrite="198.51.100.8")
            await node.clock.advance(0.1)
            assert cluster.annotations("n1")["public-ip"] == "198.51.100.8"
            assert node.store.report().rejected == {}

    async def test_a_bad_one_at_the_start_is_never_published(self, tmp_path, cluster):
        cluster.annotate("n1", public_ip_overwrite="not an ip")
        async with started(tmp_path, cluster):
            assert cluster.annotations("n1")["public-ip"] == "192.0.2.1"

    async def test_node_public_ip_is_a_wish_about_the_interface(self, tmp_path, cluster):
        cluster.annotate("n1", node_public_ip="192.0.2.50")
        async with started(tmp_path, cluster) as node:
            assert node.store.wished() == (IPv4Address("192.0.2.50"),)
            cluster.annotate("n1", node_public_ip="192.0.2.51")
            await node.clock.advance(0.1)
            assert node.store.wished() == (IPv4Address("192.0.2.51"),)
            assert node.store.report().rejected == {}
            cluster.annotate("n1", node_public_ip="192.0.2.")
            await node.clock.advance(0.1)
            assert node.store.wished() == (IPv4Address("192.0.2.51"),), "the last good one"
            assert "node-public-ip" in str(node.store.report().rejected)
            cluster.annotate("n1", node_public_ip=None)
            await node.clock.advance(0.1)
            assert node.store.wished() == ()
            assert node.store.report().rejected == {}


class TestCondition:
    def condition(self, cluster: KubeCluster) -> dict[str, str]:
        found = {c["type"]: c for c in cluster.nodes["n1"]["status"]["conditions"]}
        return found.get("NetworkUnavailable", {})

    async def test_it_is_cleared_when_the_node_is_ready_and_ready_stays(self, node, cluster):
        assert self.condition(cluster)["status"] == "False"
        assert self.condition(cluster)["reason"] == "FlannelIsUp"
        assert cluster.nodes["n1"]["status"]["conditions"][0]["type"] == "Ready"

    async def test_a_failure_is_tried_again(self, tmp_path, cluster):
        """flannel v0.28.9 tries once."""
        cluster.inject("patch nodes/status", 500)
        cluster.inject("patch nodes/status", 500)
        cluster.inject("patch nodes/status", 500)
        async with started(tmp_path, cluster) as node:
            await node.clock.advance(10)
            assert self.condition(cluster)["status"] == "False"

    async def test_a_cloud_that_sets_it_again_is_answered(self, node, cluster):
        cluster._patch_node(
            "n1",
            {
                "status": {
                    "conditions": [
                        {"type": "NetworkUnavailable", "status": "True", "reason": "NoRoute"}
                    ]
                }
            },
            "cloud",
        )
        await node.clock.advance(1)
        assert self.condition(cluster)["status"] == "False"

    async def test_it_is_left_alone_where_that_is_asked_for(self, tmp_path, cluster):
        async with started(tmp_path, cluster, set_condition=False) as node:
            await node.clock.advance(5)
            assert self.condition(cluster) == {}


class TestPeers:
    async def test_they_come_change_and_go(self, tmp_path, cluster):
        peer(cluster, 2)
        async with started(tmp_path, cluster) as node:
            assert node.peers == {"10.244.2.0/24": "192.0.2.2"}
            cluster.annotate("n2", public_ip="192.0.2.22")
            peer(cluster, 3)
            await node.clock.advance(0)
            assert node.peers == {"10.244.2.0/24": "192.0.2.22", "10.244.3.0/24": "192.0.2.3"}
            cluster.delete("n2")
            await node.clock.advance(0)
            assert node.peers == {"10.244.3.0/24": "192.0.2.3"}

    async def test_heartbeats_cause_no_update(self, tmp_path, cluster):
        peer(cluster, 2)
        async with started(tmp_path, cluster) as node:
            before = len(node.updates)
            for _ in range(50):
                cluster.heartbeat("n2")
                cluster.heartbeat("n1")
            await node.clock.advance(1)
            assert len(node.updates) == before

    async def test_one_created_again_during_an_outage_is_another(self, tmp_path, cluster):
        peer(cluster, 2)
        async with started(tmp_path, cluster) as node:
            cluster.stop()
            await node.clock.advance(3)
            cluster.delete("n2")
            peer(cluster, 2, "10.244.7.0/24")
            cluster.compact()
            cluster.start()
            await node.clock.advance(10)
            assert node.peers == {"10.244.7.0/24": "192.0.2.2"}

    async def test_a_bad_one_delays_no_other_and_is_reported(self, tmp_path, cluster, caplog):
        peer(cluster, 2, backend_data="{")
        async with started(tmp_path, cluster) as node:
            peer(cluster, 3)
            await node.clock.advance(0)
            assert node.peers == {"10.244.3.0/24": "192.0.2.3"}
            assert "backend-data" in node.store.report().rejected["node n2"]
            for _ in range(20):
                cluster.heartbeat("n2")
            await node.clock.advance(1)
            assert sum("is not followed" in r.getMessage() for r in caplog.records) == 1

    async def test_a_slow_consumer_gets_a_snapshot(self, tmp_path, cluster, monkeypatch):
        monkeypatch.setattr(managers, "MOST_PENDING", 3)
        async with started(tmp_path, cluster) as node:
            for number in range(2, 40):
                peer(cluster, number)
            await node.clock.advance(0)
            assert len(node.peers) == 38
            assert any(isinstance(update, Snapshot) for update in node.updates[1:])

    async def test_changes_come_together(self, node, cluster):
        peer(cluster, 2)
        await node.clock.advance(0)
        assert isinstance(node.updates[-1], Changes)


async def test_the_config_is_followed(node, cluster):
    texts: list[bytes | None] = []

    async def follow() -> None:
        async for text in node.store.watch_config():
            texts.append(text)

    node.tasks.append(asyncio.create_task(follow()))
    node.put_config("{")
    await node.clock.advance(3)
    assert texts == []
    node.put_config(CONFIG | {"EnableNFTables": True})
    await node.clock.advance(1)
    assert len(texts) == 1


async def test_families_are_those_of_the_config_that_is_valid_at_last(cluster, tmp_path):
    """A config that gets IPv6 while a podCIDR is waited for."""
    cluster.delete("n1")
    cluster.create("n1")
    async with started(tmp_path, cluster) as node:
        node.put_config(CONFIG | {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"})
        await node.clock.advance(3)
        cluster.assign("n1", "10.244.1.0/24", "fd00:10:0:1::/64")
        await node.clock.advance(REMEDIED_S)
        assert node.store.lease.subnet(Family.V6) is not None
