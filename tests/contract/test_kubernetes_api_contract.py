"""What the store relies on of an API server: the one in memory and, in `make kube`, a real one.

So the tests that use the one in memory say something about Kubernetes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from pyflannel.core.errors import StoreDenied, StoreUnavailable
from pyflannel.store.kubernetes import wire
from pyflannel.store.kubernetes.access import Access, Material
from pyflannel.store.kubernetes.base import Request
from pyflannel.store.kubernetes.client import NodeClient
from pyflannel.store.kubernetes.failures import NodeMissing, NodeReplaced, NotReached, failure
from pyflannel.store.kubernetes.transport import HttpTransport
from pyflannel.store.kubernetes.wire import Bookmark, Changed, Deleted, Names
from pyflannel.store.lines import LineSplitter
from pyflannel.testing.certs import Authority
from tests.support.kubeapi import FLANNEL, PREFIX, KubeCluster
from tests.support.kubeserver import KubeServer

REAL = bool(os.environ.get("PYFLANNEL_KUBE"))
"""Set by `make kube`."""


class MemoryWorld:
    """The server in memory, over HTTPS, with the same two tokens."""

    def __init__(self, directory) -> None:
        authority = Authority(directory)
        made = authority.issue("server")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(made.cert, made.key)
        self.ca = authority.bundle
        self.cluster = KubeCluster()
        self.cluster.anonymous = ""
        self.server = KubeServer(self.cluster, context)

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.__exit__(*exc)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def nodes(self):
        return self.cluster.nodes

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.server.do(name, *args, **kwargs)


@pytest.fixture(scope="module", params=["memory", *(["real"] if REAL else [])])
def world(request, tmp_path_factory) -> Iterator:
    directory = tmp_path_factory.mktemp("kube")
    if request.param == "real":
        from tests.kube.server import RealCluster

        with RealCluster(directory) as real:
            yield real
    else:
        with MemoryWorld(directory) as memory:
            yield memory


_numbers = itertools.count(1)


@pytest.fixture
def name(world) -> str:
    """A node of this test alone."""
    number = next(_numbers)
    world.create(f"node{number}", f"10.244.{number}.0/24")
    return f"node{number}"


@asynccontextmanager
async def connected(world, name: str, *, token: str = "flannel-token") -> AsyncIterator[NodeClient]:
    access = Access(server=world.url, ca=Material(path=world.ca), token=token)
    transport = HttpTransport(access)
    try:
        async with asyncio.timeout(60):
            yield NodeClient(transport, Names(PREFIX, name))
    finally:
        await transport.close()


@pytest.fixture
def client(world, name):
    return connected(world, name)


class Reader:
    """Events of a stream about some nodes."""

    def __init__(self, client: NodeClient, stream) -> None:
        self._client, self._stream = client, stream
        self._splitter = LineSplitter(wire.MAX_LINE_BYTES, StoreUnavailable)
        self._lines: list[bytes] = []

    async def next(self) -> wire.Event:
        async with asyncio.timeout(20):
            while not self._lines:
                chunk = await self._stream.chunk()
                assert chunk, "the watch ended"
                self._lines += self._splitter.feed(chunk)
        return wire.parse_event(self._lines.pop(0), self._client.ours)

    async def about(self, name: str) -> wire.Event:
        while True:
            event = await self.next()
            if isinstance(event, Changed) and event.node.name == name:
                return event
            if isinstance(event, Deleted) and event.name == name:
                return event

    def close(self) -> None:
        self._stream.close()


async def test_a_node_has_what_we_need_of_it(client, world, name):
    node = await client.node()
    assert node.name == name
    assert node.uid
    assert node.version
    assert node.created.endswith("Z")
    assert len(node.pod_cidrs) == 1


async def test_a_node_that_is_not_there_is_missing(world):
    async with connected(world, "nobody") as client:
        with pytest.raises(NodeMissing):
            await client.node()
        with pytest.raises(NodeMissing):
            await client.annotate("", {"public-ip": "192.0.2.1"})


async def test_a_wrong_token_is_refused(world, name):
    async with connected(world, name, token="nonsense") as client:
        with pytest.raises(StoreDenied, match="401"):
            await client.node()
        with pytest.raises(StoreDenied, match="401"):
            await client.watch_all()


async def test_what_the_role_does_not_have_is_named_with_user_verb_and_resource(
    client, world, name
):
    reply = await client.transport.ask(
        Request(
            method="PATCH",
            path=f"/api/v1/nodes/{name}",
            query={},
            body=b'{"metadata":{"annotations":{"a":"b"}}}',
            content_type=wire.MERGE,
        )
    )
    text = str(failure(reply.status, reply.body.decode(), "patch nodes"))
    assert reply.status == 403
    for part in (FLANNEL, "patch", "nodes", "forbidden"):
        assert part in text


async def test_annotations_are_set_and_removed_and_nothing_changed_is_no_version(
    client, world, name
):
    before = await client.node()
    set_ = await client.annotate(before.uid, {"public-ip": "192.0.2.1", "backend-type": ""})
    assert set_.annotations == {"public-ip": "192.0.2.1", "backend-type": ""}
    assert set_.version != before.version
    again = await client.annotate(before.uid, {"public-ip": "192.0.2.1"})
    assert again.version == set_.version
    gone = await client.annotate(before.uid, {"public-ip": None, "backend-data": None})
    assert gone.annotations == {"backend-type": ""}


async def test_a_patch_for_another_object_is_refused_as_such(client, world, name):
    with pytest.raises(NodeReplaced):
        await client.annotate("00000000-0000-0000-0000-000000000000", {"public-ip": "x"})
    with pytest.raises(NodeReplaced):
        await client.say_network_up("00000000-0000-0000-0000-000000000000", 0.0)
    assert (await client.node()).annotations == {}


async def test_the_condition_is_set_and_ready_stays(client, world, name):
    node = await client.node()
    assert node.network_unavailable == ""
    up = await client.say_network_up(node.uid, 1_700_000_000.0)
    assert up.network_unavailable == wire.IS_UP
    conditions = {c["type"]: c["status"] for c in world.nodes[name]["status"]["conditions"]}
    assert conditions == {"Ready": "True", "NetworkUnavailable": "False"}


async def test_who_wrote_our_annotations_is_known(world, name):
    world.annotate(name, "importer", public_ip="192.0.2.99")
    async with connected(world, name) as client:
        assert (await client.node()).writer == "importer"


async def test_pages_are_one_list(world, name, monkeypatch):
    monkeypatch.setattr("pyflannel.store.kubernetes.client.PAGE", 2)
    for number in range(5):
        world.create(f"{name}-{number}")
    async with connected(world, name) as client:
        found, after, versions = [], "", set()
        while True:
            nodes, version, after = await client.page(after)
            assert len(nodes) <= 2
            found += [node.name for node in nodes]
            versions.add(version)
            if not after:
                break
        assert sorted(found) == sorted(world.nodes)
        assert len(versions) == 1
        # A watch from the list's version begins behind it.
        reader = Reader(client, await client.watch(version))
        await asyncio.to_thread(world.delete, f"{name}-0")
        assert isinstance(await reader.about(f"{name}-0"), Deleted)
        reader.close()
    for number in range(1, 5):
        world.delete(f"{name}-{number}")


async def test_a_list_in_a_watch_ends_with_a_mark_and_goes_on(client, world, name):
    reader = Reader(client, await client.watch_all())
    listed = []
    while True:
        event = await reader.next()
        if isinstance(event, Bookmark) and event.ends_list:
            break
        assert isinstance(event, Changed)
        listed.append(event.node.name)
    assert sorted(listed) == sorted(world.nodes)
    assert event.version
    await asyncio.to_thread(world.annotate, name, public_ip="192.0.2.7")
    changed = await reader.about(name)
    assert isinstance(changed, Changed)
    assert changed.node.annotations == {"public-ip": "192.0.2.7"}
    reader.close()


async def test_a_watch_from_a_version_has_every_change_once_and_in_order(client, world, name):
    start = (await client.node()).version
    for last in range(1, 5):
        await asyncio.to_thread(world.annotate, name, public_ip=f"192.0.2.{last}")
    await asyncio.to_thread(world.heartbeat, name)
    await asyncio.to_thread(world.delete, name)
    await asyncio.to_thread(world.create, name, "10.244.200.0/24")
    reader = Reader(client, await client.watch(start))
    seen = [await reader.about(name) for _ in range(7)]
    reader.close()
    addresses = [e.node.annotations["public-ip"] for e in seen[:5] if isinstance(e, Changed)]
    assert addresses == [*(f"192.0.2.{last}" for last in range(1, 5)), "192.0.2.4"]
    assert isinstance(seen[5], Deleted)
    assert seen[5].version
    last = seen[6]
    assert isinstance(last, Changed)
    assert last.node.pod_cidrs == ("10.244.200.0/24",)
    first = seen[0]
    assert isinstance(first, Changed)
    assert last.node.uid != first.node.uid


async def test_a_version_of_the_future_is_refused_to_a_read_and_passed_over_by_a_watch(
    client, world, name
):
    """What a client meets that knew an etcd before it was restored from a backup."""
    now = int((await client.node()).version)
    with pytest.raises(NotReached):
        await client.version_of(name, at_least=str(now + 1_000_000))
    assert await client.version_of(name, at_least=str(now)) == str(now)
    assert await client.version_of("nobody", at_least=str(now)) == ""
    future = now + 3
    reader = Reader(client, await client.watch(str(future)))
    for last in range(1, 9):
        await asyncio.to_thread(world.annotate, name, public_ip=f"192.0.2.{last}")
    event = await reader.about(name)
    reader.close()
    assert isinstance(event, Changed)
    assert int(event.node.version) > future


async def test_a_podcidr_comes_later_as_a_change(world, name):
    world.create(f"{name}-late")
    async with connected(world, f"{name}-late") as client:
        node = await client.node()
        assert node.pod_cidrs == ()
        reader = Reader(client, await client.watch(node.version))
        await asyncio.to_thread(world.assign, f"{name}-late", "10.244.201.0/24")
        changed = await reader.about(f"{name}-late")
        assert isinstance(changed, Changed)
        assert changed.node.pod_cidrs == ("10.244.201.0/24",)
        reader.close()
