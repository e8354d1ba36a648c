"""The nodes are followed without gaps, with any behaviour of the API server."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyflannel.store.kubernetes import feed as feeds
from pyflannel.store.kubernetes.client import NodeClient
from pyflannel.store.kubernetes.feed import NodeFeed
from pyflannel.store.kubernetes.wire import Names
from pyflannel.testing.fakeclock import FakeClock, settle
from tests.support.kubeapi import PREFIX, DirectTransport, KubeCluster


class Follower:
    """A feed and what it told."""

    def __init__(self, cluster: KubeCluster, token: str = "") -> None:
        self.cluster = cluster
        self.clock = FakeClock()
        self.transport = DirectTransport(cluster, token)
        client = NodeClient(self.transport, Names(PREFIX, "n1"), rng=random.Random(1))
        self.feed = NodeFeed(client, self.clock, self, rng=random.Random(1))
        self.known: dict[str, str] = {}
        self.told: list[str] = []

    def listed(self, nodes) -> None:
        self.told.append("list")
        self.known = {node.name: node.pod_cidrs[0] if node.pod_cidrs else "" for node in nodes}

    def changed(self, node) -> None:
        self.told.append(node.name)
        self.known[node.name] = node.pod_cidrs[0] if node.pod_cidrs else ""

    def deleted(self, name: str) -> None:
        self.told.append(f"-{name}")
        del self.known[name]

    @property
    def is_true(self) -> bool:
        """Whether it knows what the server holds."""
        return self.known == {
            name: node["spec"].get("podCIDR", "") for name, node in self.cluster.nodes.items()
        }


@pytest.fixture
def cluster() -> KubeCluster:
    made = KubeCluster()
    for number in (1, 2, 3):
        made.create(f"n{number}", f"10.244.{number}.0/24")
    return made


@asynccontextmanager
async def following(cluster: KubeCluster) -> AsyncIterator[Follower]:
    """A follower that runs, and leaves no task behind."""
    follower = Follower(cluster)
    task = asyncio.create_task(follower.feed.run())
    try:
        await follower.clock.advance(0.5)
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def node(cluster):
    return following(cluster)


async def test_a_list_in_a_watch_then_each_change(node, cluster):
    assert node.told == ["list"]
    cluster.create("n4", "10.244.4.0/24")
    cluster.heartbeat("n2")
    cluster.delete("n3")
    await node.clock.advance(0)
    assert node.told == ["list", "n4", "n2", "-n3"]
    assert node.is_true
    assert node.feed.connected is True
    assert cluster.log == ["watch nodes"]


@pytest.mark.parametrize("how", ["etcd-3.5", "refused", "ignored"])
async def test_a_server_that_does_not_list_in_a_watch_is_read_in_pages(cluster, how, monkeypatch):
    monkeypatch.setattr("pyflannel.store.kubernetes.client.PAGE", 2)
    cluster.streaming = how
    async with following(cluster) as node:
        await node.clock.advance(feeds.LIST_SILENT_S * 2)
        assert node.told == ["list"]
        assert node.is_true
        assert cluster.count("list nodes") == 2
        cluster.create("n4", "10.244.4.0/24")
        cluster.end()
        await node.clock.advance(2)
        assert node.is_true
        assert node.told == ["list", "n4"]


async def test_a_busy_server_that_does_not_know_the_parameter_is_found_out_too(cluster):
    """Heartbeats of a large cluster leave no silence."""
    cluster.streaming = "ignored"
    async with following(cluster) as node:
        for _ in range(int(feeds.LIST_S / 5) + 4):
            cluster.heartbeat("n2")
            await node.clock.advance(5)
        assert "list" in node.told
        assert node.is_true


async def test_a_page_that_has_expired_begins_again(cluster, monkeypatch):
    monkeypatch.setattr("pyflannel.store.kubernetes.client.PAGE", 2)
    cluster.streaming = "refused"
    cluster.inject("list nodes", 410, "The provided continue parameter is too old")
    async with following(cluster) as node:
        await node.clock.advance(2)
        assert node.is_true
        assert node.told == ["list"]


async def test_a_watch_that_ends_goes_on_where_it_was(node, cluster):
    for end in (cluster.end, cluster.cut):
        end()
        cluster.delete("n3")
        cluster.create("n3", "10.244.9.0/24")
        await node.clock.advance(6)
        assert node.is_true
    assert node.told.count("list") == 1
    assert node.told.count("-n3") == 2


@pytest.mark.parametrize("as_status", [True, False])
async def test_history_that_is_gone_leads_to_a_list(cluster, as_status):
    cluster.gone_as_status = as_status
    async with following(cluster) as node:
        cluster.delete("n2")
        cluster.watches.clear()  # nothing of it was heard
        cluster.end()
        cluster.create("n2", "10.244.7.0/24")
        cluster.compact()
        node.feed._version = "101"
        await node.clock.advance(1)
        await node.clock.advance(feeds.SILENT_S + feeds.PROBE_S)
        assert node.is_true
        assert node.told.count("list") == 2


@pytest.mark.parametrize("code", [410, 500, 504, 429, 401, 403])
async def test_an_error_within_the_watch_is_no_end(node, cluster, code):
    cluster.say(code, "injected")
    cluster.delete("n2")
    await node.clock.advance(6)
    assert node.is_true
    assert node.feed.connected is True


async def test_a_server_that_is_away_takes_nothing_along_and_is_listed_afterwards(node, cluster):
    cluster.stop()
    await node.clock.advance(60)
    assert node.feed.connected is False
    assert "refused" in node.feed.reason
    assert len(node.known) == 3
    cluster.delete("n2")
    cluster.start()
    await node.clock.advance(feeds.CEILING_S)
    assert node.feed.connected is True
    assert node.feed.reason == ""
    assert node.told.count("list") == 2
    assert node.is_true


async def test_an_etcd_put_back_to_an_earlier_state_is_noticed(node, cluster):
    """Its versions are in the past: a watch from ours would be silent for good."""
    before = copy.deepcopy(cluster.nodes)
    version = cluster.version

    cluster.create("n4", "10.244.4.0/24")
    await node.clock.advance(1)
    cluster.stop()
    await node.clock.advance(5)
    cluster.restore(before, version)
    cluster.start()
    await node.clock.advance(feeds.CEILING_S)
    assert node.is_true
    assert "n4" not in node.known


@pytest.mark.parametrize("passed", [False, True], ids=["behind", "passed"])
async def test_an_etcd_put_back_without_a_failed_connection_is_noticed(
    node, cluster, passed, caplog
):
    """Behind our version its watch is silent, and beyond it says nothing of what is different."""
    before = copy.deepcopy(cluster.nodes)
    version = cluster.version
    cluster.delete("n3")
    cluster.create("n4", "10.244.4.0/24")
    cluster.heartbeat("n2")
    await node.clock.advance(1)
    cluster.restore(before, version)
    for _ in range(9 if passed else 0):
        cluster.heartbeat("n1")
    await node.clock.advance(feeds.SHOWN_S + feeds.CEILING_S)
    assert node.is_true
    assert node.told.count("list") == 2
    assert "its etcd was restored" in caplog.text
    cluster.heartbeat("n2")
    cluster.create("n5", "10.244.5.0/24")
    await node.clock.advance(0)
    assert node.is_true


async def test_what_is_not_confirmed_yet_is_asked_again_after_the_next_break(node, cluster):
    """Else a server that was restored, and ends its watches, would confirm its own news."""
    before = copy.deepcopy(cluster.nodes)
    version = cluster.version
    cluster.create("n4", "10.244.4.0/24")
    await node.clock.advance(1)
    cluster.restore(before, version)
    for _ in range(5):
        cluster.heartbeat("n1")
        await node.clock.advance(2)
        cluster.end()
    await node.clock.advance(feeds.SHOWN_S + feeds.CEILING_S)
    assert node.is_true


async def test_what_changes_while_a_watch_is_opened_again_leads_to_no_list(node, cluster):
    for change in (
        lambda: cluster.heartbeat("n2"),
        lambda: cluster.delete("n2"),
        lambda: cluster.create("n2", "10.244.8.0/24"),
    ):
        cluster.heartbeat("n3")
        cluster.heartbeat("n2") if "n2" in cluster.nodes else None
        await node.clock.advance(1)
        cluster.end()
        change()
        await node.clock.advance(feeds.SHOWN_S + feeds.CEILING_S)
        assert node.is_true
    assert node.told.count("list") == 1


async def test_one_server_of_several_that_lags_is_asked_again(node, cluster):
    cluster.inject("get nodes", 504, "Timeout: Too large resource version: 9, current: 8", 1)
    cluster.inject("get nodes", 429, "slow down", retry_after=2)
    cluster.end()
    await node.clock.advance(6)
    assert cluster.count("get nodes") == 3
    assert node.told == ["list"]


async def test_a_role_without_get_is_served_as_well(node, cluster):
    before = copy.deepcopy(cluster.nodes)
    version = cluster.version
    cluster.role.discard(("get", "nodes"))
    cluster.create("n4", "10.244.4.0/24")
    await node.clock.advance(1)
    cluster.restore(before, version)
    await node.clock.advance(feeds.SHOWN_S + feeds.CEILING_S)
    assert node.is_true


async def test_a_watch_that_is_silent_for_long_is_replaced_by_a_list(node, cluster):
    cluster.watches.clear()  # nothing is heard of it
    cluster.delete("n2")
    await node.clock.advance(feeds.SILENT_S + 2 * feeds.PROBE_S)
    assert node.is_true


async def test_bookmarks_are_life_enough(node, cluster):
    for _ in range(10):
        await node.clock.advance(120)
        cluster.bookmark()
    assert node.told == ["list"]
    assert cluster.count("watch") == 1
    assert cluster.count("get nodes") > 10


async def test_a_server_that_stands_still_is_found_out_by_a_probe(node, cluster, monkeypatch):
    async def no_answer(request):
        del request
        raise feeds.StoreUnavailable("no answer in time")

    monkeypatch.setattr(node.transport, "ask", no_answer)
    cluster.down = True
    cluster.watches.clear()
    await node.clock.advance(2 * feeds.PROBE_S)
    assert node.feed.connected is False
    cluster.down = False
    monkeypatch.undo()
    cluster.delete("n2")
    await node.clock.advance(feeds.CEILING_S)
    assert node.is_true


async def test_a_pause_that_the_server_asks_for_is_kept(node, cluster):
    cluster.inject("watch nodes", 429, "slow down", retry_after=20)
    cluster.end()
    await node.clock.advance(19)
    assert cluster.count("watch") == 2
    await node.clock.advance(3)
    assert cluster.count("watch") == 3
    assert node.told == ["list"]


async def test_a_server_that_ends_every_watch_at_once_is_not_stormed(node, cluster):
    for _ in range(100):
        cluster.end()
        await node.clock.advance(0.1)
    assert cluster.count("watch") < 40


async def test_in_the_end_the_truth_is_known_with_any_behaviour_of_the_server(node, cluster):
    rng = random.Random(4)
    kinds = [
        cluster.cut,
        cluster.end,
        cluster.compact,
        cluster.stop,
        cluster.start,
        lambda: cluster.say(500, "x"),
        lambda: cluster.inject("watch nodes", rng.choice([410, 429, 500, 403, 401])),
        lambda: cluster.inject("list nodes", rng.choice([410, 429, 500])),
    ]

    for step in range(120):
        name = f"n{rng.randrange(1, 9)}"
        if name in cluster.nodes and rng.random() < 0.5:
            cluster.delete(name)
        elif name not in cluster.nodes:
            cluster.create(name, f"10.244.{step % 200}.0/24")
        if rng.random() < 0.3:
            rng.choice(kinds)()
        await node.clock.advance(rng.choice([0, 0.1, 3]))
    cluster.start()
    cluster.injected.clear()
    await node.clock.advance(feeds.CEILING_S + 1)
    assert node.is_true


@pytest.mark.parametrize(("heartbeat_s", "probes"), [(0, 120), (50, 78), (20, 8)])
async def test_an_hour_costs_what_the_benchmarks_page_says(node, cluster, heartbeat_s, probes):
    """A server that ends each watch after 450 s, the mean of what is asked for."""
    client, clock = node.feed._client, node.clock
    before = dict(client.requests)
    for second in range(10, 3601, 10):
        if heartbeat_s and second % heartbeat_s == 0:
            cluster.heartbeat("n2")
        elif not heartbeat_s and second % 60 == 0:
            cluster.bookmark()
        if second % 450 == 0:
            cluster.end()
        await clock.advance(10)
    made = {k: n - before.get(k, 0) for k, n in client.requests.items() if n != before.get(k, 0)}
    assert made.pop("watch nodes") == 8
    assert made.pop("get node", 0) == pytest.approx(probes, abs=8)
    assert made == {}, "nothing is listed"
