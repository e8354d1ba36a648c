"""The health port: who may hold it up, and on which addresses it answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import pytest

from pyflannel.api.gate import Limits
from pyflannel.api.health import HealthServer
from pyflannel.api.metrics import Scrapes
from pyflannel.cli import healthport
from pyflannel.core.errors import DeviceUnavailable
from pyflannel.report.model import LeaseReport, NodeReport
from tests.support.reports import Saying

pytestmark = pytest.mark.slow

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = Limits(most=8, request_s=0.3, idle_s=0.3)


def ready() -> bool:
    return True


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        probe.bind(("::", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(
    *, host: str = "127.0.0.1", limits: Limits = QUICK
) -> AsyncIterator[tuple[HealthServer, int]]:
    """A server and its port."""
    server, port = HealthServer(ready, limits), free_port()
    await server.start(host, port)
    try:
        async with asyncio.timeout(20):
            yield server, port
    finally:
        await server.cleanup()


async def ask(port: int, host: str = "127.0.0.1") -> bytes:
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return b""
    writer.write(REQUEST)
    answer = await reader.readuntil(b"running")
    await close(writer)
    return answer


async def ended(readers: Iterable[asyncio.StreamReader]) -> None:
    for reader in readers:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_flood_of_silent_connections_holds_a_bounded_number_and_a_probe_is_answered():
    async with serving(limits=Limits(most=8, request_s=2.0, idle_s=2.0)) as (server, port):
        silent = []
        for _ in range(100):
            silent.append(await asyncio.open_connection("127.0.0.1", port))
            assert server.connections <= QUICK.most
        assert (await ask(port)).startswith(b"HTTP/1.1 200 OK")
        await ended(reader for reader, _ in silent)
        while server.connections:
            await asyncio.sleep(0.01)
        for _, writer in silent:
            await close(writer)


async def test_single_bytes_do_not_buy_time() -> None:
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        start = loop.time()
        writer.write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        ending = asyncio.create_task(ended([reader]))
        while not ending.done():
            writer.write(b"x")
            await asyncio.wait([ending], timeout=0.02)
        assert 0.25 < loop.time() - start < 5
        await close(writer)


async def test_a_kept_connection_serves_again_and_ends_when_it_is_idle() -> None:
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _number in range(3):
            writer.write(REQUEST)
            await reader.readuntil(b"flanneld is running")
            await asyncio.sleep(0.15)
        await ended([reader])
        await close(writer)


async def test_a_client_that_reads_nothing_and_announces_a_body_ends_too() -> None:
    async with serving() as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        while not server.connections:
            await asyncio.sleep(0.005)
        while server.connections:
            await asyncio.sleep(0.01)
        await close(writer)


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("::", {"127.0.0.1", "::1"}),
        ("0.0.0.0", {"127.0.0.1", "::1"}),
        ("127.0.0.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("localhost", None),
    ],
)
async def test_it_answers_on_the_addresses_that_upstream_answers_on(
    host: str, answers: set[str] | None
) -> None:
    """All zeros of either family is both families, observed on v0.28.9."""
    async with serving(host=host) as (_, port):
        found = {each for each in ("127.0.0.1", "::1") if await ask(port, each)}
        assert found == answers if answers is not None else len(found) == 1


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no host", "neither an address nor a name"),
        ("203.0.113.77", "not an address of this machine"),
        ("2001:db8::77", "not an address of this machine"),
        ("\x1b[2J", "neither an address nor a name"),
        ("x" * 300, "neither an address nor a name"),
    ],
)
async def test_an_address_that_cannot_be_is_explained(host: str, words: str) -> None:
    with pytest.raises(DeviceUnavailable, match=words) as caught:
        await HealthServer(ready).start(host, free_port())
    assert "--healthz-ip" in str(caught.value)
    assert str(caught.value).isprintable()


async def test_a_port_that_is_taken_is_explained() -> None:
    async with serving() as (_, port):
        with pytest.raises(DeviceUnavailable, match="--healthz-port"):
            await HealthServer(ready).start("127.0.0.1", port)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A port where everybody gets these bytes and the end, or nothing and no end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    if answer:
                        connection.sendall(answer)
                    else:
                        connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "flannel's own daemon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "tells no lease"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "answers 500"),
        (b"SSH-2.0-OpenSSH\r\n", "speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "tells no lease"),
        (b"", "no answer on port"),
    ],
    ids=["no metrics", "something else", "an error", "no HTTP", "cut short", "silence"],
)
def test_what_answers_in_anothers_place_leaves_a_node_unknown(monkeypatch, answer, words):
    monkeypatch.setattr(healthport, "ASK_S", 0.3)
    with answering(answer) as port, pytest.raises(healthport.NoAnswer, match=words):
        healthport.ask("127.0.0.1", port)


async def test_a_node_is_asked_over_its_health_port():
    node = NodeReport(lease=LeaseReport(subnet="10.5.1.0/24"), ready_since=1.0)
    server, port = HealthServer(ready, QUICK, Scrapes(Saying(node))), free_port()
    await server.start("127.0.0.1", port)
    try:
        found = await asyncio.to_thread(healthport.ask, "127.0.0.1", port)
    finally:
        await server.cleanup()
    assert (found.report.lease.subnet, found.report.ready) == ("10.5.1.0/24", True)
    with pytest.raises(healthport.NoAnswer, match="refused"):
        healthport.ask("127.0.0.1", port)
