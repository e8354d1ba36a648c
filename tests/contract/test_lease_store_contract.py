"""What every store of leases promises, over all of them: etcd, Kubernetes and the static file.

The promises stand in `pyflannel/store/base.py`. A rig makes a store over something that the test
can change from outside, in the words of the promises: a peer comes, the store is away.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.aio.clock import SystemClock
from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Identity, LeaseAttrs, LeaseTable, LeaseUpdate, Snapshot
from pyflannel.store.base import LeaseStore
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.kubernetes.access import Access, Material
from pyflannel.store.kubernetes.manager import KubernetesLeaseStore
from pyflannel.store.kubernetes.transport import HttpTransport
from pyflannel.store.record import LeaseRecord
from pyflannel.store.static import StaticLeaseStore
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore
from tests.support.kubeapi import PREFIX as PREFIX_OF_ANNOTATIONS
from tests.support.kubeapi import DirectTransport, KubeCluster

CONFIG = {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}
PREFIX = "/coreos.com/network"
ADDRESS = "192.0.2.1"
US = LeaseAttrs(public_ip=IPv4Address(ADDRESS), backend_type="host-gw")
SOON_S = 15.0
"""By then a store that was away has answered again, with any back-off."""


class EtcdRig:
    """etcd in memory."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.etcd = FakeEtcd(self.clock)
        self.client = FakeStore(self.etcd)
        self.state = str(directory)

    def open(self, tell: Callable[[str], None] = lambda _: None) -> LeaseStore:
        self.client = FakeStore(self.etcd)
        return EtcdLeaseStore(
            self.client,
            PREFIX,
            kinds=KINDS,
            clock=self.clock,
            record=LeaseRecord(self.state, PREFIX),
            rng=random.Random(1),
            tell=tell,
        )

    def put_config(self, config: object) -> None:
        self.etcd.put(codec.config_key(PREFIX), json.dumps(config).encode())

    def put_peer(self, number: int, address: str) -> None:
        attrs = LeaseAttrs(public_ip=IPv4Address(address), backend_type="host-gw")
        key = codec.lease_key(PREFIX, SubnetKey(IPv4Network(f"10.5.{number}.0/24")))
        self.etcd.put(key, codec.encode_attrs(attrs), lease=self.etcd.grant(86_400))

    def drop_peer(self, number: int) -> None:
        self.etcd.delete(codec.lease_key(PREFIX, SubnetKey(IPv4Network(f"10.5.{number}.0/24"))))

    def name_us(self, number: int) -> None:
        """A subnet is free for us anyhow."""

    def move_us(self, store: LeaseStore, number: int) -> None:
        """Another node writes its address to our key."""
        attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.99"), backend_type="host-gw")
        key = codec.lease_key(PREFIX, store.lease.key)
        self.etcd.put(key, codec.encode_attrs(attrs), lease=self.etcd.grant(86_400))

    def away(self) -> None:
        self.client.down()

    def back(self) -> None:
        self.client.up()


class StaticRig:
    """A file."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.path = directory / "network.json"
        self.config: object | None = None
        self.nodes: dict[int, str] = {}

    def open(self, tell: Callable[[str], None] = lambda _: None) -> LeaseStore:
        return StaticLeaseStore(
            str(self.path), node_name="", kinds=KINDS, clock=self.clock, tell=tell
        )

    def _write(self) -> None:
        nodes = [
            {"Subnet": f"10.5.{number}.0/24", "PublicIP": address}
            for number, address in self.nodes.items()
        ]
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"Config": self.config, "Nodes": nodes}))
        fresh.rename(self.path)

    def put_config(self, config: object) -> None:
        self.config = config
        self._write()

    def put_peer(self, number: int, address: str) -> None:
        self.nodes[number] = address
        self._write()

    def drop_peer(self, number: int) -> None:
        del self.nodes[number]
        self._write()

    def name_us(self, number: int) -> None:
        self.put_peer(number, ADDRESS)

    def move_us(self, store: LeaseStore, number: int) -> None:
        del store
        self.nodes = {n: a for n, a in self.nodes.items() if a != ADDRESS}
        self.put_peer(number, ADDRESS)

    def away(self) -> None:
        self.path.rename(self.path.with_suffix(".away"))

    def back(self) -> None:
        if not self.path.exists():
            self.path.with_suffix(".away").rename(self.path)


class KubernetesRig:
    """An API server in memory, and a file with the network config."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.cluster = KubeCluster()
        self.path = directory / "net-conf.json"

    def open(self, tell: Callable[[str], None] = lambda _: None) -> LeaseStore:
        return KubernetesLeaseStore(
            DirectTransport(self.cluster),
            prefix=PREFIX_OF_ANNOTATIONS,
            node_name="us",
            net_config=str(self.path),
            kinds=KINDS,
            clock=self.clock,
            rng=random.Random(1),
            tell=tell,
        )

    def put_config(self, config: object) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(config))
        fresh.rename(self.path)

    def put_peer(self, number: int, address: str) -> None:
        name = f"n{number}"
        if name not in self.cluster.nodes:
            self.cluster.create(name, f"10.5.{number}.0/24")
        self.cluster.annotate(
            name,
            kube_subnet_manager="true",
            backend_type="host-gw",
            backend_data="null",
            public_ip=address,
        )

    def drop_peer(self, number: int) -> None:
        self.cluster.delete(f"n{number}")

    def name_us(self, number: int) -> None:
        if "us" not in self.cluster.nodes:
            self.cluster.create("us", f"10.5.{number}.0/24")

    def move_us(self, store: LeaseStore, number: int) -> None:
        """The node is deleted and registered again: a podCIDR changes no other way."""
        del store
        self.cluster.delete("us")
        self.cluster.create("us", f"10.5.{number}.0/24")

    def away(self) -> None:
        self.cluster.stop()

    def back(self) -> None:
        self.cluster.start()


class RealTime:
    """A clock that cannot be moved: what is to happen within a time is waited for."""

    def __init__(self) -> None:
        clock = SystemClock()
        self.time, self.monotonic, self.sleep = clock.time, clock.monotonic, clock.sleep

    async def advance(self, seconds: float) -> None:
        await asyncio.sleep(seconds + 2)


class RealKubernetesRig(KubernetesRig):
    """A real API server, which `make kube` has built."""

    def __init__(self, directory: Path, cluster) -> None:
        super().__init__(directory)
        self.clock = RealTime()
        self.cluster = cluster
        cluster.start()
        cluster.clear()

    def open(self, tell: Callable[[str], None] = lambda _: None) -> LeaseStore:
        access = Access(
            server=self.cluster.url, ca=Material(path=self.cluster.ca), token="flannel-token"
        )
        return KubernetesLeaseStore(
            HttpTransport(access),
            prefix=PREFIX_OF_ANNOTATIONS,
            node_name="us",
            net_config=str(self.path),
            kinds=KINDS,
            clock=self.clock,
            tell=tell,
        )


@pytest.fixture(scope="module")
def api_server(tmp_path_factory):
    from tests.kube.server import RealCluster

    with RealCluster(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


RIGS = {"etcd": EtcdRig, "kubernetes": KubernetesRig, "static": StaticRig}


@pytest.fixture(params=[*RIGS, *(["api-server"] if os.environ.get("PYFLANNEL_KUBE") else [])])
def rig(request, tmp_path):
    if request.param == "api-server":
        made = RealKubernetesRig(tmp_path, request.getfixturevalue("api_server"))
    else:
        made = RIGS[request.param](tmp_path)
    made.put_config(CONFIG)
    return made


class Consumer:
    """What the agent does with a store: consumes all its streams."""

    def __init__(self, rig, store: LeaseStore) -> None:
        self.rig = rig
        self.store = store
        self.updates: list[LeaseUpdate] = []
        self.moves: list[SubnetKey] = []
        self.configs: list[bytes | None] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.table = LeaseTable(network=IPv4Network("10.5.0.0/16"), network6=None)

    async def start(self) -> None:
        starting = asyncio.create_task(self._begin())
        await self.rig.clock.advance(3)  # a holder of our address is asked for a sign of life
        starting.result()

    async def _begin(self) -> None:
        await self.store.network_config()
        await self.store.previous(US)
        lease = await self.store.acquire(US)
        self.table.set_own(Identity.of(lease))
        for work in (self._leases(), self._keep(), self._config()):
            self.tasks.append(asyncio.create_task(work))

    async def _leases(self) -> None:
        async for update in self.store.watch_leases():
            self.updates.append(update)
            self.table.set_own(Identity.of(self.store.lease))
            self.table.apply(update)

    async def _keep(self) -> None:
        async for lease in self.store.keep():
            self.moves.append(lease.key)
            self.table.set_own(Identity.of(lease))

    async def _config(self) -> None:
        async for text in self.store.watch_config():
            self.configs.append(text)

    @property
    def peers(self) -> dict[str, str]:
        return {
            str(lease.key.v4): str(lease.attrs.public_ip) for lease in self.table.peers.values()
        }

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.store.close()


@asynccontextmanager
async def consuming(rig) -> AsyncIterator[Consumer]:
    rig.name_us(1)
    consumer = Consumer(rig, rig.open())
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


@pytest.fixture
def node(rig):
    return consuming(rig)


async def test_a_snapshot_comes_first_and_our_own_lease_is_in_it_or_follows(node, rig):
    assert isinstance(node.updates[0], Snapshot)
    seen = {lease.key for u in node.updates if isinstance(u, Snapshot) for lease in u.leases}
    assert node.store.lease.key in seen or len(node.updates) > 1


async def test_peers_come_change_and_go_in_order(node, rig):
    rig.put_peer(7, "192.0.2.7")
    await rig.clock.advance(1)
    assert node.peers == {"10.5.7.0/24": "192.0.2.7"}
    rig.put_peer(7, "192.0.2.8")
    rig.put_peer(9, "192.0.2.9")
    await rig.clock.advance(1)
    assert node.peers == {"10.5.7.0/24": "192.0.2.8", "10.5.9.0/24": "192.0.2.9"}
    rig.drop_peer(7)
    await rig.clock.advance(1)
    assert node.peers == {"10.5.9.0/24": "192.0.2.9"}


async def test_a_store_that_is_away_takes_no_lease_along_and_says_so(node, rig):
    rig.put_peer(7, "192.0.2.7")
    await rig.clock.advance(1)
    assert node.store.report().connected is True
    before = node.store.report().since
    rig.away()
    await rig.clock.advance(SOON_S)
    report = node.store.report()
    assert report.connected is False
    assert report.reason
    assert report.since > before
    assert node.peers == {"10.5.7.0/24": "192.0.2.7"}
    rig.back()
    await rig.clock.advance(SOON_S)
    assert node.store.report().connected is True
    assert node.store.report().reason == ""
    assert node.peers == {"10.5.7.0/24": "192.0.2.7"}


async def test_what_changed_during_a_gap_is_known_after_it(node, rig):
    rig.put_peer(7, "192.0.2.7")
    rig.put_peer(8, "192.0.2.8")
    await rig.clock.advance(1)
    rig.away()
    await rig.clock.advance(SOON_S)
    rig.back()
    rig.drop_peer(7)
    rig.put_peer(9, "192.0.2.9")
    await rig.clock.advance(SOON_S)
    assert node.peers == {"10.5.8.0/24": "192.0.2.8", "10.5.9.0/24": "192.0.2.9"}


async def test_another_subnet_is_told_once_and_is_the_lease_from_then_on(node, rig):
    former = node.store.lease.key
    rig.move_us(node.store, 20)
    await rig.clock.advance(SOON_S)
    assert node.moves == [node.store.lease.key]
    assert node.store.lease.key != former
    assert node.table.new_rejections() == [], "our own lease is never judged as another node's"
    assert node.store.standing().held is True


async def test_the_text_of_a_changed_config_is_told(node, rig):
    assert node.configs == []
    rig.put_config(CONFIG | {"Backend": {"Type": "vxlan"}})
    await rig.clock.advance(2)
    assert [json.loads(text)["Backend"]["Type"] for text in node.configs] == ["vxlan"]


async def test_the_same_node_gets_the_same_subnet_after_a_restart(rig):
    leases: list[SubnetKey] = []
    for _ in range(2):
        async with consuming(rig) as node:
            leases.append(node.store.lease.key)
    assert leases[0] == leases[1]


async def test_attributes_are_published_or_the_difference_is_reported(node, rig):
    wanted = LeaseAttrs(public_ip=IPv4Address("192.0.2.55"), backend_type="host-gw")
    publishing = asyncio.create_task(node.store.publish(wanted))
    await rig.clock.advance(2)
    lease = publishing.result()
    if node.store.prescribed(US) is None:
        assert lease.attrs == wanted
        assert node.store.standing().reason == ""
    else:
        assert "192.0.2.55" in node.store.standing().reason


async def test_a_lease_is_given_back_where_it_would_end_by_itself(rig):
    """And only what is as this node knows it."""
    rig.name_us(1)
    store = rig.open()
    await store.network_config()
    assert not await store.release()
    lease = await store.acquire(US)
    assert await store.release() is (not lease.is_reservation and lease.expires is not None)
    assert not await store.release()
    await store.close()


async def test_it_waits_for_the_config_and_tells_what_it_waits_for(tmp_path, rig):
    told: list[str] = []

    rig.name_us(1)
    rig.put_config({"Network": "nonsense"})
    store = rig.open(told.append)
    waiting = asyncio.create_task(store.network_config())
    await rig.clock.advance(2)
    assert not waiting.done()
    assert told[-1] != ""
    rig.put_config(CONFIG)
    await rig.clock.advance(2)
    assert (await waiting).backend_type == "host-gw"
    assert told[-1] == ""
    await store.close()


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10])
@pytest.mark.parametrize("method", ["network_config", "acquire", "watch_leases", "keep", "publish"])
async def test_everything_can_be_cancelled_at_any_time(rig, method, turns):
    """And nothing stays behind: no task, no watch."""
    rig.name_us(1)
    store = rig.open()
    await store.network_config()
    if method not in ("network_config", "acquire"):
        await store.acquire(US)
    called = getattr(store, method)
    work = called(US) if method in ("acquire", "publish") else called()
    task = asyncio.create_task(_consume(work) if hasattr(work, "__aiter__") else work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()
    await store.close()
    await rig.clock.advance(1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def _consume(stream: AsyncIterator[object]) -> None:
    async with aclosing(stream):
        async for _ in stream:
            pass


async def test_before_there_is_a_lease_nothing_is_claimed(rig):
    store = rig.open()
    assert store.lease is None
    assert store.standing().held is None
    assert store.report().connected is None
    assert store.report().where == store.describe()
    await store.close()
