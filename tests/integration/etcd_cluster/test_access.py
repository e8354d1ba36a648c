"""Users, roles, tokens, certificates, and etcds whose JSON gateway is elsewhere or missing."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

import pytest

from pyflannel.core.errors import StoreConfigError, StoreDenied
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.testing.certs import Authority
from pyflannel.testing.etcdserver import EtcdError, EtcdServer, ServerTLS, b64, free_ports
from tests.integration.etcd_cluster.conftest import CONFIG, PREFIX, WITHIN_S, Node, running, until

pytestmark = pytest.mark.slow

ROOT, SECRET = "root-secret", "flannel-secret"
KEYS = codec.subnets_prefix(PREFIX)


def jwt(directory) -> tuple[str, ...]:
    """etcd's option for tokens that it signs."""
    key, public = directory / "jwt.key", directory / "jwt.pem"
    make = ["openssl", "genrsa", "-out", str(key), "2048"]
    show = ["openssl", "rsa", "-in", str(key), "-pubout", "-out", str(public)]
    for command in (make, show):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return ("--auth-token", f"jwt,pub-key={public},priv-key={key},sign-method=RS256,ttl=10m")


@pytest.fixture(params=["simple", "jwt"])
def server(request, binary, tmp_path) -> Iterator[EtcdServer]:
    kind = jwt(tmp_path) if request.param == "jwt" else ()
    options = ("--bcrypt-cost", "4", *kind)
    with EtcdServer(tmp_path / "etcd", binary=binary, options=options) as running_server:
        running_server.put(codec.config_key(PREFIX), CONFIG)
        yield running_server


def protect(server: EtcdServer) -> str:
    return server.enable_auth(
        root_password=ROOT, user="flannel", password=SECRET, prefix=PREFIX.encode()
    )


def allow(server: EtcdServer, token: str, permission: str) -> None:
    """Gives the role another permission."""
    prefix = PREFIX.encode()
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    server.post(
        "auth/role/grant",
        {
            "name": "flannel",
            "perm": {"permType": permission, "key": b64(prefix), "range_end": b64(end)},
        },
        token=token,
    )


def forbid(server: EtcdServer, token: str) -> None:
    prefix = PREFIX.encode()
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    body = {"role": "flannel", "key": b64(prefix), "range_end": b64(end)}
    server.post("auth/role/revoke", body, token=token)


def there(server: EtcdServer, token: str, key: bytes) -> bool:
    return "kvs" in server.post("kv/range", {"key": b64(key)}, token=token)


async def test_a_role_that_is_revoked_and_given_back_brings_the_lease_back(server, tmp_path):
    """The key is deleted while writing is not allowed."""

    async with asyncio.timeout(WITHIN_S):
        protect(server)
        node = Node(tmp_path / "state", (server.endpoint,), 1, username="flannel", password=SECRET)
        async with running(node):
            await until("the snapshot", lambda: node.seen, 5)
            forbid(server, server.token("root", ROOT))
            allow(server, server.token("root", ROOT), "READ")
            token = server.token("root", ROOT)
            server.post("kv/deleterange", {"key": b64(node.key)}, token=token)
            await until("the loss", lambda: node.manager.standing().held is False, 10)
            await asyncio.sleep(3)
            assert "permission denied" in node.manager.standing().reason
            allow(server, server.token("root", ROOT), "READWRITE")
            token = server.token("root", ROOT)
            await until("the key", lambda: there(server, token, node.key), 15)
            await until("no reason", lambda: node.manager.standing().reason == "", 5)


async def test_a_change_of_roles_is_no_outage(server, tmp_path):
    """Every token is outdated by it; the next request fetches another one."""

    async with asyncio.timeout(WITHIN_S):
        protect(server)
        store = EtcdStore(
            EtcdOptions(endpoints=(server.endpoint,), username="flannel", password=SECRET)
        )
        await store.get(codec.config_key(PREFIX))
        server.post("auth/role/add", {"name": "another"}, token=server.token("root", ROOT))
        assert (await store.get(codec.config_key(PREFIX))).kvs
        await store.put(KEYS + b"x", b"y")
        await store.close()


async def test_authentication_that_is_switched_off_and_on_again_is_no_loss(server, tmp_path):
    async with asyncio.timeout(WITHIN_S):
        protect(server)
        node = Node(tmp_path / "state", (server.endpoint,), 1, username="flannel", password=SECRET)
        async with running(node):
            await until("the snapshot", lambda: node.seen, 5)
            server.post("auth/disable", {}, token=server.token("root", ROOT))
            server.post("kv/deleterange", {"key": b64(node.key)})
            await until("the key", lambda: there(server, "", node.key), 15)
            server.post("auth/enable", {})
            token = server.token("root", ROOT)
            server.post("kv/deleterange", {"key": b64(node.key)}, token=token)
            await until("the key again", lambda: there(server, token, node.key), 15)
            await until("no reason", lambda: node.manager.standing().reason == "", 10)


def fill(server: EtcdServer) -> None:
    """Writes until etcd takes no more."""
    for n in range(100):
        server.put(b"/fill/%d" % n, b"x" * 1_000_000)


async def test_an_etcd_without_space_is_said_and_the_key_is_back_when_there_is_some(
    binary, tmp_path
):
    """Nothing can be written then; what is there can be read, and leases are renewed."""

    options = ("--quota-backend-bytes", str(16 * 1024 * 1024))
    with EtcdServer(tmp_path / "etcd", binary=binary, options=options) as server:
        server.put(codec.config_key(PREFIX), CONFIG)
        async with asyncio.timeout(WITHIN_S):
            node = Node(tmp_path / "state", (server.endpoint,), 1)
            async with running(node):
                await until("the snapshot", lambda: node.seen, 5)
                server.delete(node.key)
                await until("the key", lambda: node.manager.standing().held is True, 10)
                with pytest.raises(EtcdError, match="space exceeded"):
                    fill(server)
                server.post("kv/deleterange", {"key": b64(node.key)})
                await until("the loss", lambda: node.manager.standing().held is False, 10)
                await until("why", lambda: "space exceeded" in node.manager.standing().reason, 10)
                await until("the alarm", lambda: node.manager.report().alarms == ("NOSPACE",), 60)
                server.post("kv/deleterange", {"key": b64(b"/fill/"), "range_end": b64(b"/fill0")})
                server.compact()
                server.post("maintenance/defragment", {})
                alarms = server.post("maintenance/alarm", {"action": "GET"})["alarms"]
                for alarm in alarms:
                    server.post("maintenance/alarm", {**alarm, "action": "DEACTIVATE"})
                await until("the key again", lambda: there(server, "", node.key), 20)
                await until("no reason", lambda: node.manager.standing().reason == "", 10)


async def test_a_password_that_is_changed_and_put_right_again_is_survived(server, tmp_path):
    def refused(node) -> bool:
        return "does not accept user" in node.manager.report().reason

    async with asyncio.timeout(120):
        protect(server)
        node = Node(tmp_path / "state", (server.endpoint,), 1, username="flannel", password=SECRET)
        async with running(node):
            await until("the snapshot", lambda: node.seen, 5)
            change = {"name": "flannel", "password": "another"}
            server.post("auth/user/changepw", change, token=server.token("root", ROOT))
            server.restart()
            await until("the reason", lambda: refused(node), 20)
            change = {"name": "flannel", "password": SECRET}
            server.post("auth/user/changepw", change, token=server.token("root", ROOT))
            await until("the watch", lambda: node.manager.report().reason == "", 60)


async def test_a_client_certificate_with_a_name_and_users_is_said_with_the_way_out(
    binary, tmp_path
):
    authority = Authority(tmp_path / "pki")
    tls = ServerTLS(
        certificate=authority.issue("server"), ca=authority.bundle, require_client_cert=True
    )
    client = authority.issue("client")
    # EtcdServer waits over its metrics port, which needs no certificate.
    with EtcdServer(tmp_path / "etcd", binary=binary, tls=tls) as server:
        async with asyncio.timeout(WITHIN_S):
            store = EtcdStore(
                EtcdOptions(
                    endpoints=(server.endpoint,),
                    cafile=str(authority.bundle),
                    certfile=str(client.cert),
                    keyfile=str(client.key),
                )
            )
            await store.get(b"/x")
            for path, body in (
                ("auth/user/add", {"name": "root", "password": ROOT}),
                ("auth/role/add", {"name": "root"}),
                ("auth/user/grant", {"user": "root", "role": "root"}),
                ("auth/enable", {}),
            ):
                server.post(path, body, client=client)
            with pytest.raises(StoreConfigError, match=r"CommonName.*--etcd-certfile"):
                await store.get(b"/x")
            await store.close()


async def refused_as_misfit(endpoint: str, *more: str) -> str:
    store = EtcdStore(EtcdOptions(endpoints=(endpoint, *more)))
    try:
        with pytest.raises(StoreConfigError) as caught:
            await store.get(b"/x")
        return str(caught.value)
    finally:
        await store.close()


async def test_an_etcd_without_gateway_is_said_with_the_way_out(binary, tmp_path):
    options = ("--enable-grpc-gateway=false",)
    with EtcdServer(tmp_path / "etcd", binary=binary, options=options) as server:
        async with asyncio.timeout(WITHIN_S):
            assert "--enable-grpc-gateway" in await refused_as_misfit(server.endpoint)


async def test_a_grpc_proxy_is_said_and_a_member_beside_it_is_used(binary, tmp_path):
    with EtcdServer(tmp_path / "etcd", binary=binary) as server:
        (port,) = free_ports(1)
        command = [str(binary), "grpc-proxy", "start", "--endpoints", server.endpoint]
        command += ["--listen-addr", f"127.0.0.1:{port}"]
        proxy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(200):
                with closing(socket.socket()) as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                await asyncio.sleep(0.05)
            async with asyncio.timeout(WITHIN_S):
                at = f"http://127.0.0.1:{port}"
                assert "grpc-proxy" in await refused_as_misfit(at)
                store = EtcdStore(EtcdOptions(endpoints=(at, server.endpoint)))
                await store.put(b"/x", b"y")
                await store.close()
        finally:
            proxy.kill()
            proxy.wait()


@contextmanager
def old_gateway(server: EtcdServer) -> Iterator[str]:
    """As etcd 3.3 has it: the gateway is at /v3beta, and /v3 is not there."""
    upstream = urlsplit(server.endpoint)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        # The other direction may end first, and takes both sockets along.
        with suppress(OSError), closing(source), closing(sink):
            while data := source.recv(65536):
                sink.sendall(data)

    def serve(client: socket.socket) -> None:
        head = client.recv(65536)
        if not head.startswith(b"POST /v3beta/"):
            text = b"404 page not found\n"
            client.sendall(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n" % len(text)
                + b"Connection: close\r\n\r\n"
                + text
            )
            client.close()
            return
        assert b'"fragment"' not in head, "3.3 refuses a field that it does not know"
        behind = socket.create_connection((upstream.hostname, upstream.port))
        head = head.replace(b"/v3beta/", b"/v3/", 1).replace(
            b"\r\n", b"\r\nConnection: close\r\n", 1
        )
        behind.sendall(head)
        threading.Thread(target=pump, args=(client, behind), daemon=True).start()
        pump(behind, client)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with closing(listener):
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake the thread


async def test_an_older_gateway_is_found_for_requests_and_watches(binary, tmp_path):
    with EtcdServer(tmp_path / "etcd", binary=binary) as server, old_gateway(server) as endpoint:
        async with asyncio.timeout(WITHIN_S):
            store = EtcdStore(EtcdOptions(endpoints=(endpoint,)))
            header = await store.put(b"/x/1", b"y")
            stream = store.watch_prefix(b"/x/", header.revision)
            first = await anext(stream)
            events = list(first.events) or list((await anext(stream)).events)
            assert [event.kv.value for event in events] == [b"y"]
            await stream.aclose()
            await store.close()


async def test_a_wrong_password_costs_few_authentications(binary, tmp_path):
    """A node in trouble for ten seconds, with three of its parts asking all the time."""
    options = ("--bcrypt-cost", "4")
    with EtcdServer(tmp_path / "etcd", binary=binary, options=options) as server:
        async with asyncio.timeout(WITHIN_S):
            protect(server)
            store = EtcdStore(
                EtcdOptions(endpoints=(server.endpoint,), username="flannel", password="wrong")
            )
            asked = 0
            post = store._connections.post

            async def counting(endpoint, path, body, token, more_s):
                nonlocal asked
                asked += path == "auth/authenticate"
                return await post(endpoint, path, body, token, more_s)

            store._tokens._post = counting

            async def ask():
                for _ in range(50):
                    with pytest.raises(StoreDenied):
                        await store.get(codec.config_key(PREFIX))
                    await asyncio.sleep(0.2)

            await asyncio.gather(ask(), ask(), ask())
            assert 2 <= asked <= 7
            await store.close()
