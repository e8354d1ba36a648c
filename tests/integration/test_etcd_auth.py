"""etcd with users: right, wrong, unknown, without rights, expired, switched off and on."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import ClassVar

import pytest

from pyflannel.core.errors import EXIT_NOT_PERMITTED, StoreDenied, StoreUnavailable
from pyflannel.core.options import EtcdOptions
from pyflannel.lab.etcdprogram import find_etcd
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.testing.etcdserver import EtcdServer
from tests.support.stores import closing

pytestmark = pytest.mark.slow

ROOT = "root-secret"
SECRET = "flannel-secret"
TOKEN_TTL_S = 1
"""Shortest that etcd takes."""


@pytest.fixture(
    params=[
        pytest.param(find_etcd(), id="packaged"),
        pytest.param(find_etcd(packaged=False), id="debian"),
    ],
)
def server(request, tmp_path) -> Iterator[EtcdServer]:
    options = ("--auth-token-ttl", str(TOKEN_TTL_S), "--bcrypt-cost", "4")
    with EtcdServer(tmp_path / "etcd", binary=request.param, options=options) as running:
        running.put(b"/net/config", b"{}")
        running.put(b"/secret/k", b"v")
        yield running


def protect(server: EtcdServer, **more: str) -> str:
    return server.enable_auth(
        root_password=ROOT, user="flannel", password=SECRET, prefix=b"/net/", **more
    )


def opened(
    server: EtcdServer, user: str = "flannel", password: str = SECRET
) -> AbstractAsyncContextManager[EtcdStore]:
    options = EtcdOptions(endpoints=(server.endpoint,), username=user, password=password)
    return closing(EtcdStore(options), within=30)


@pytest.fixture
def store(server):
    return opened(server)


async def watched(store: EtcdStore, key: bytes) -> None:
    start = (await store.get(key)).header.revision + 1
    async with aclosing(store.watch_prefix(key, start)) as stream:
        await anext(stream)


async def test_the_right_password_opens_every_request(server):
    protect(server)
    async with opened(server) as store:
        assert (await store.get(b"/net/config")).kvs
        lease = await store.grant(60)
        header = await store.put(b"/net/subnets/x", b"v", lease=lease.id, if_mod_revision=0)
        assert len((await store.range_prefix(b"/net/subnets/")).kvs) == 1
        await store.keepalive(lease.id)
        assert list((await store.time_to_live(lease.id, keys=True)).keys) == [b"/net/subnets/x"]
        async with aclosing(store.watch_prefix(b"/net/", header.revision)) as stream:
            events = []
            while not events:
                events += (await anext(stream)).events
        await store.delete(b"/net/subnets/x")
        await store.revoke(lease.id)


@pytest.mark.parametrize(("user", "password"), [("flannel", "wrong"), ("nobody", SECRET)])
async def test_a_wrong_password_or_user_is_a_denial_that_says_so(server, user, password):
    protect(server)
    async with opened(server, user, password) as store:
        with pytest.raises(StoreDenied, match=f"does not accept user '{user}'") as caught:
            await store.get(b"/net/config")
        assert password not in str(caught.value)
        assert caught.value.exit_code == EXIT_NOT_PERMITTED
        with pytest.raises(StoreDenied):
            await anext(store.watch_prefix(b"/net/", 1))


async def test_no_user_where_one_is_needed_is_a_denial_that_names_the_flags(server):
    protect(server)
    async with opened(server, "", "") as store:
        with pytest.raises(StoreDenied, match="--etcd-username"):
            await store.get(b"/net/config")
        with pytest.raises(StoreDenied):
            await anext(store.watch_prefix(b"/net/", 1))


async def test_a_user_without_a_password_counts_as_none(server):
    async with opened(server, "flannel", "") as store:
        assert (await store.get(b"/net/config")).kvs


async def test_what_the_user_may_not_do_is_a_denial(server):
    protect(server, permission="READ")
    async with opened(server) as store:
        assert (await store.get(b"/net/config")).kvs
        for attempt in (
            lambda: store.put(b"/net/x", b"v"),
            lambda: store.put(b"/net/x", b"v", if_mod_revision=0),
            lambda: store.delete(b"/net/x"),
            lambda: store.get(b"/secret/k"),
            lambda: anext(store.watch_prefix(b"/secret/", 1)),
        ):
            with pytest.raises(StoreDenied, match="permission denied"):
                await attempt()


async def test_a_password_for_a_server_without_users_does_no_harm(store, server):
    assert (await store.get(b"/net/config")).kvs
    await store.put(b"/net/x", b"v")
    await watched(store, b"/net/")


async def test_a_token_that_expired_is_renewed_for_requests_and_for_the_watch(server):
    protect(server)
    async with opened(server) as store:
        await store.get(b"/net/config")
        # etcd looks for outdated tokens once a second.
        await asyncio.sleep(TOKEN_TTL_S + 1.5)
        await watched(store, b"/net/")
        await asyncio.sleep(TOKEN_TTL_S + 1.5)
        async with aclosing(store.watch_prefix(b"/net/", 1)) as stream:
            await anext(stream)
        await asyncio.sleep(TOKEN_TTL_S + 1.5)
        await store.put(b"/net/x", b"v")


async def test_an_open_watch_outlives_its_token(server):
    protect(server)
    async with opened(server) as store:
        start = (await store.get(b"/net/")).header.revision + 1
        async with aclosing(store.watch_prefix(b"/net/", start)) as stream:
            await anext(stream)
            await asyncio.sleep(TOKEN_TTL_S + 1.5)
            await store.put(b"/net/x", b"v")
            assert len((await anext(stream)).events) == 1


async def test_a_restart_of_the_server_forgets_tokens_and_no_request_fails(server):
    protect(server)
    async with opened(server) as store:
        await store.get(b"/net/config")
        await asyncio.to_thread(server.restart)
        await watched(store, b"/net/")
        await store.put(b"/net/x", b"v")


async def test_authentication_may_be_switched_off_and_on_under_us(store, server):
    root = protect(server)

    await store.get(b"/net/config")
    server.post("auth/disable", {}, token=root)
    await store.get(b"/net/config")
    await watched(store, b"/net/")
    server.post("auth/enable", {})
    await store.put(b"/net/x", b"v")
    await watched(store, b"/net/")


async def test_a_wiped_server_does_not_make_us_wait_without_end_with_the_old_token(server):
    """It waits in silence for the log entry that made the token, and there is none."""
    for n in range(30):
        server.put(b"/net/fill", str(n).encode())
    protect(server)
    async with opened(server) as store:
        await store.get(b"/net/config")
        await asyncio.to_thread(server.stop)
        server.wipe()
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(protect, server)
        for _ in range(3):
            try:
                result = await store.get(b"/net/config")
                break
            except StoreDenied:
                raise
            except Exception:  # noqa: BLE001 - the silence itself is not the point
                continue
        assert not result.kvs


async def test_the_password_comes_from_a_file_which_is_read_at_each_login(server, tmp_path):
    """A file whose password etcd does not know, and then one that it does."""
    protect(server)
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("outdated\n")

    options = EtcdOptions(endpoints=(server.endpoint,), username="flannel", password_file=str(file))
    store = EtcdStore(options)
    try:
        async with asyncio.timeout(30):
            with pytest.raises(StoreDenied):
                await store.get(b"/net/config")
            file.write_text(f"{SECRET}\n")
            assert (await store.get(b"/net/config")).kvs
    finally:
        await store.close()


class Busy(http.server.BaseHTTPRequestHandler):
    """An etcd in which a thousand nodes want a token at once: theirs come late."""

    header: ClassVar = {"cluster_id": "1", "member_id": "1", "revision": "1", "raft_term": "1"}
    asked: ClassVar[list[float]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, object] = {"header": self.header, "leader": "1"}
        if self.path.endswith("auth/authenticate"):
            self.asked.append(time.monotonic())
            time.sleep(2.2)
            answer["token"] = "t.1"
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


def test_a_token_that_takes_longer_than_other_answers_is_waited_for():
    """Giving up and asking again would keep etcd busy with answers that are not read."""

    async def work(store: EtcdStore) -> None:
        for _ in range(3):
            with contextlib.suppress(StoreUnavailable):
                await store.get(b"k")
                return
        pytest.fail(f"no token after {len(Busy.asked)} authentications")

    async def main(endpoint: str) -> None:
        store = EtcdStore(EtcdOptions(endpoints=(endpoint,), username="a", password="b"))
        try:
            await work(store)
        finally:
            await store.close()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            asyncio.run(main(f"http://127.0.0.1:{web.server_port}"))
        finally:
            web.shutdown()
            thread.join()
