"""Requests over real sockets on loopback: TLS, tokens, certificates, broken connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyflannel.core.errors import StoreDenied, StoreUnavailable
from pyflannel.store.kubernetes.access import Access, Material
from pyflannel.store.kubernetes.base import Reply, Request
from pyflannel.store.kubernetes.client import NodeClient
from pyflannel.store.kubernetes.failures import Busy
from pyflannel.store.kubernetes.transport import HttpTransport
from pyflannel.store.kubernetes.wire import Names, parse_event
from pyflannel.store.lines import LineSplitter
from pyflannel.testing.certs import Authority
from tests.support.kubeapi import PREFIX, KubeCluster
from tests.support.kubeserver import KubeServer

OURS = Names(PREFIX, "n1")


@pytest.fixture
def cluster() -> KubeCluster:
    made = KubeCluster()
    for number in range(1, 4):
        made.create(f"n{number}", f"10.244.{number}.0/24")
    return made


@asynccontextmanager
async def talking(access: Access) -> AsyncIterator[NodeClient]:
    transport = HttpTransport(access)
    try:
        async with asyncio.timeout(30):
            yield NodeClient(transport, OURS)
    finally:
        await transport.close()
        await transport.close()


async def events(stream, count: int) -> list:
    splitter, found = LineSplitter(1 << 20, StoreUnavailable), []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += [parse_event(line, OURS) for line in splitter.feed(await stream.chunk())]
    return found


async def test_all_requests_over_a_socket(cluster):
    with KubeServer(cluster) as server:
        async with talking(Access(server=server.url)) as client:
            node = await client.node()
            assert node.pod_cidrs == ("10.244.1.0/24",)
            nodes, version, after = await client.page()
            assert [n.name for n in nodes] == ["n1", "n2", "n3"]
            assert after == ""
            stream = await client.watch(version)
            patched = await client.annotate(node.uid, {"public-ip": "192.0.2.1"})
            assert patched.annotations == {"public-ip": "192.0.2.1"}
            (event,) = await events(stream, 1)
            assert event.node == patched
            up = await client.say_network_up(node.uid, 0.0)
            assert up.network_unavailable == "False/FlannelIsUp"
            stream.close()
            whole = await client.watch_all()
            assert len(await events(whole, 4)) == 4
            server.do("delete", "n3")
            (gone,) = await events(whole, 1)
            assert gone.name == "n3"
            whole.close()
            assert [str(ip) for ip in client.transport.addresses()] == ["127.0.0.1"]


async def test_a_broken_connection_and_an_end_are_told_apart(cluster):
    with KubeServer(cluster) as server:
        async with talking(Access(server=server.url)) as client:
            stream = await client.watch("100")
            await events(stream, 3)
            server.do("end")
            assert await stream.chunk() == b""
            stream = await client.watch("100")
            await events(stream, 3)
            server.do("cut")
            with pytest.raises(StoreUnavailable):
                await stream.chunk()
            stream.close()
            stream = await client.watch("103")
            waiting = asyncio.create_task(stream.chunk())
            await asyncio.sleep(0)
            client.transport.drop(StoreUnavailable("another address"))
            with pytest.raises(StoreUnavailable, match="another address"):
                await asyncio.wait_for(waiting, 5)
            assert (await client.node()).name == "n1"


async def test_a_server_that_is_not_there_or_busy_is_said_to_be_so(cluster):
    with KubeServer(cluster) as server:
        url = server.url

        async with talking(Access(server=url)) as client:
            server.do("inject", "get nodes", 429, "slow", retry_after=7)
            with pytest.raises(Busy) as caught:
                await client.node()
            assert caught.value.retry_after_s == 7

    async with talking(Access(server=url)) as client:
        with pytest.raises(StoreUnavailable, match=r"(?i)connect"):
            await client.node()


async def test_a_proxy_is_where_the_request_goes(cluster):
    with KubeServer(cluster) as server:
        async with talking(Access(server="http://kube.invalid", proxy=server.url)) as client:
            assert (await client.node()).name == "n1"


class TestTls:
    @pytest.fixture
    def authority(self, tmp_path) -> Authority:
        return Authority(tmp_path / "ca")

    @staticmethod
    def context(authority: Authority, name: str) -> ssl.SSLContext:
        made = authority.issue(name)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.bundle)
        context.load_cert_chain(made.cert, made.key)
        return context

    async def test_a_token_is_read_again_when_it_was_refused(self, cluster, authority, tmp_path):
        cluster.anonymous = ""
        token = tmp_path / "token"
        token.write_text("stale")
        with KubeServer(cluster, self.context(authority, "server")) as server:
            access = Access(server=server.url, ca=Material(path=authority.bundle), token_file=token)
            async with talking(access) as client:
                with pytest.raises(StoreDenied):
                    await client.node()
                token.write_text("flannel-token")
                assert (await client.node()).name == "n1"

    async def test_a_new_authority_is_followed(self, cluster, authority, tmp_path):
        other = Authority(tmp_path / "other", "another CA")
        bundle = tmp_path / "ca.crt"
        bundle.write_bytes(authority.bundle.read_bytes())
        with KubeServer(cluster, self.context(authority, "server")) as server:
            async with talking(Access(server=server.url, ca=Material(path=bundle))) as client:
                assert (await client.node()).name == "n1"
                await asyncio.to_thread(server.restart, self.context(other, "server"))
                with pytest.raises(StoreUnavailable, match="certificate"):
                    await client.node()
                bundle.write_bytes(other.bundle.read_bytes())
                assert (await client.node()).name == "n1"

    async def test_a_client_certificate_from_the_file_itself(self, cluster, authority):
        context = self.context(authority, "server")
        context.verify_mode = ssl.CERT_REQUIRED
        made = authority.issue("client")
        access = Access(
            server="",
            ca=Material(data=authority.bundle.read_bytes()),
            certificate=Material(data=made.cert.read_bytes()),
            key=Material(data=made.key.read_bytes()),
        )
        with KubeServer(cluster, context) as server:
            async with talking(
                Access(
                    server=server.url, ca=access.ca, certificate=access.certificate, key=access.key
                )
            ) as client:
                assert (await client.node()).name == "n1"

    async def test_a_name_of_another_certificate_can_be_asked_for(self, cluster, tmp_path):
        authority = Authority(tmp_path / "names")
        made = authority.issue("kubernetes", hosts="DNS:kubernetes")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(made.cert, made.key)
        ca = Material(path=authority.bundle)
        with KubeServer(cluster, context) as server:
            async with talking(Access(server=server.url, ca=ca)) as client:
                with pytest.raises(StoreUnavailable):
                    await client.node()
            for access in (
                Access(server=server.url, ca=ca, server_name="kubernetes"),
                Access(server=server.url, insecure=True),
            ):
                async with talking(access) as client:
                    assert (await client.node()).name == "n1"


async def test_every_request_has_an_end(cluster, monkeypatch):
    """A server that takes requests and answers none."""
    monkeypatch.setattr("pyflannel.store.kubernetes.transport.ANSWER_S", 0.2)
    with KubeServer(cluster) as server:
        server.do("freeze")

        async with talking(Access(server=server.url)) as client:
            for ask in (client.node, client.watch_all, client.page):
                with pytest.raises(StoreUnavailable, match="no answer in time") as caught:
                    await ask()
                assert caught.value.silent


async def test_an_answer_without_an_end_is_not_kept(cluster, monkeypatch):
    monkeypatch.setattr("pyflannel.store.kubernetes.transport.MOST_BYTES", 500)
    with KubeServer(cluster) as server:
        async with talking(Access(server=server.url)) as client:
            with pytest.raises(StoreUnavailable, match="more than 500 bytes"):
                await client.page()


async def test_a_redirect_is_not_followed(cluster):
    """Our token is not handed to another server."""
    with KubeServer(cluster) as server:
        server.do("inject", "get nodes", 307, "elsewhere")

        async with talking(Access(server=server.url)) as client:
            answer = await client.transport.ask(
                Request(method="GET", path="/api/v1/nodes/n1", query={})
            )
            assert isinstance(answer, Reply)
            assert answer.status == 307
            assert cluster.log == ["get nodes"]
