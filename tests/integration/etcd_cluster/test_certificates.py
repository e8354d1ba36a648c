"""Certificates that are exchanged on disk while the node runs."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from pyflannel.store.etcd import codec
from pyflannel.testing.certs import Authority
from pyflannel.testing.etcdserver import EtcdServer, ServerTLS
from tests.integration.etcd_cluster.conftest import CONFIG, PREFIX, WITHIN_S, Node, running, until

pytestmark = pytest.mark.slow

PEER = b'{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"host-gw"}'


@pytest.fixture
def pki(tmp_path):
    """Two authorities, and the files that the node is told of, from the first."""
    one, other = Authority(tmp_path / "one", "one"), Authority(tmp_path / "other", "other")
    files = tmp_path / "files"
    files.mkdir()
    install(files, one, one.issue("client1"))
    return one, other, files


def install(files, authority, client) -> None:
    shutil.copy(authority.bundle, files / "ca.pem")
    shutil.copy(client.cert, files / "client.pem")
    shutil.copy(client.key, files / "client.key")


def served_by(tmp_path, binary, authority) -> EtcdServer:
    tls = ServerTLS(
        certificate=authority.issue("server"), ca=authority.bundle, require_client_cert=True
    )
    return EtcdServer(tmp_path / "etcd", binary=binary, tls=tls)


def node_with(tmp_path, server, files) -> Node:
    return Node(
        tmp_path / "state",
        (server.endpoint,),
        1,
        cafile=str(files / "ca.pem"),
        certfile=str(files / "client.pem"),
        keyfile=str(files / "client.key"),
    )


def put(server, key, value, client) -> None:
    from pyflannel.testing.etcdserver import b64

    server.post("kv/put", {"key": b64(key), "value": b64(value)}, client=client)


async def test_a_new_authority_is_followed_without_a_restart(binary, tmp_path, pki):
    """etcd and its clients are moved from one CA to another."""
    one, other, files = pki

    with served_by(tmp_path, binary, one) as server:
        async with asyncio.timeout(WITHIN_S):
            client = other.issue("client2")
            put(server, codec.config_key(PREFIX), CONFIG, one.issue("operator"))
            node = node_with(tmp_path, server, files)
            async with running(node):
                await until("the snapshot", lambda: node.seen, 5)
                install(files, other, client)
                server.kill()
                server.serve(
                    ServerTLS(
                        certificate=other.issue("server"), ca=other.bundle, require_client_cert=True
                    )
                )
                await asyncio.to_thread(server.start)
                await asyncio.to_thread(
                    put, server, codec.subnets_prefix(PREFIX) + b"10.0.250.0-24", PEER, client
                )
                await until(
                    "the peer", lambda: any("250" in key.describe() for key in node.seen), 20
                )


async def test_new_files_that_are_wrong_or_half_written_change_nothing(
    binary, tmp_path, pki, caplog
):
    """And neither do good ones to a watch that is open."""
    one, _, files = pki

    with served_by(tmp_path, binary, one) as server:
        async with asyncio.timeout(WITHIN_S):
            operator = one.issue("operator")
            put(server, codec.config_key(PREFIX), CONFIG, operator)
            node = node_with(tmp_path, server, files)
            async with running(node):
                await until("the snapshot", lambda: node.seen, 5)
                (files / "client.pem").write_text("half of a certif")
                await asyncio.sleep(1.2)
                for _ in range(3):
                    await node.store.get(b"/x")
                    await asyncio.sleep(1.2)
                install(files, one, one.issue("client3"))
                await asyncio.sleep(1.2)
                await node.store.get(b"/x")
                await asyncio.to_thread(
                    put, server, codec.subnets_prefix(PREFIX) + b"10.0.250.0-24", PEER, operator
                )
                await until(
                    "the peer", lambda: any("250" in key.describe() for key in node.seen), 3
                )
                assert node.manager.report().reconnects == 0
    assert len([r for r in caplog.records if "not used yet" in r.getMessage()]) == 1
