"""The page's server: what it answers, to whom, and what clients can hold of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest

from pyflannel.api.gate import Limits
from pyflannel.core.errors import DeviceUnavailable
from pyflannel.report.codec import encode
from pyflannel.web import asker
from pyflannel.web.server import FILES, Bounds, PageServer, serve
from pyflannel.web.watch import Watched
from tests.support.clusters import NOW, report

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0
STREAM = "text/event-stream"


def answer(at=NOW, nodes=3):
    return {"status": encode(report(nodes, at=at))}


def listening():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock, sock.getsockname()[1]


@asynccontextmanager
async def serving(bounds=None, names=("a", "b")):
    """A server with an answer of its first node, and a client."""
    server = PageServer(map(Watched, names), bounds)
    sock, port = listening()
    await server.start(sock)
    await server.take(names[0], answer())
    try:
        async with (
            asyncio.timeout(DEADLINE_S),
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
        ):
            yield server, client, port
    finally:
        await server.cleanup()


async def raw(port, text):
    """What is answered to the bytes of a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head.decode()


async def message(stream):
    """The next message of a stream."""
    while True:
        line = await stream.content.readline()
        assert line, "the stream has ended"
        if line.startswith(b"data: "):
            return json.loads(line.removeprefix(b"data: "))


async def test_the_page_and_what_belongs_to_it_come_from_here_with_strict_headers():
    async with serving() as (_, client, _port):
        for path, (_, kind) in FILES.items():
            got = await client.get(path)
            assert (got.status, got.headers["Content-Type"]) == (200, kind)
            policy = dict(
                each.split(" ", 1) for each in got.headers["Content-Security-Policy"].split("; ")
            )
            assert policy["default-src"] == "'none'"
            assert {policy[f"{each}-src"] for each in ("script", "style", "connect")} == {"'self'"}
            assert policy["frame-ancestors"] == "'none'"
            assert got.headers["X-Content-Type-Options"] == "nosniff"
            assert got.headers["Cache-Control"] == "no-store"
            assert got.headers["Referrer-Policy"] == "no-referrer"
            assert got.headers["Cross-Origin-Resource-Policy"] == "same-origin"


async def test_the_page_names_no_other_host_and_has_nothing_inline():
    async with serving() as (_, client, _port):
        texts = {path: await (await client.get(path)).text() for path in FILES}
    for text in texts.values():
        hosts = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}  # a name, which is not fetched
    html = texts["/"]
    assert re.findall(r"<script(?! src=)|<style|\sstyle=|\son\w+=|javascript:", html) == []
    script = texts["/page.js"]
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert way not in script
    assert "style." not in script
    assert '"style"' not in script


@pytest.mark.parametrize("path", ["/x", "/page.js/", "/../pyflannel", "/%2e%2e/x", "/page/page.js"])
async def test_there_is_nothing_else(path):
    async with serving() as (_, _client, port):
        head = await raw(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert head.startswith("HTTP/1.1 404 ")
    assert "Content-Security-Policy: " in head


@pytest.mark.parametrize("path", ["/", "/events", "/history"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_nothing_can_be_done_but_look(method, path):
    async with serving() as (_, _client, port):
        head = await raw(port, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert head.startswith("HTTP/1.1 405 ")
    assert "Allow: GET" in head
    assert "Content-Security-Policy: " in head


@pytest.mark.parametrize("path", ["/", "/page.js", "/events", "/history?peer=10.5.2.0/24", "/x"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:{}", "localhost.evil.example", ""])
async def test_one_who_asks_by_a_foreign_name_gets_nothing(host, path):
    async with serving() as (_, _client, port):
        text = f"GET {path} HTTP/1.1\r\nHost: {host.format(port)}\r\n\r\n"
        assert (await raw(port, text)).startswith("HTTP/1.1 421 ")
        assert (await raw(port, f"GET {path} HTTP/1.0\r\n\r\n")).startswith("HTTP/1.0 421 ")


async def test_events_have_the_page_at_once_and_with_every_change():
    async with serving() as (server, client, _):
        stream = await client.get("/events")
        assert stream.headers["Content-Type"] == STREAM
        assert stream.headers["Cache-Control"] == "no-store"
        first = await message(stream)
        assert (first["node"], first["view"]["now"]) == ("a", NOW)
        assert first["nodes"] == [{"name": "a", "state": "fine"}, {"name": "b", "state": ""}]
        await server.take("a", {"error": "ENOENT"})
        assert (await message(stream))["silence"]["text"] == "ENOENT"
        await server.take("a", answer(NOW + 2))
        third = await message(stream)
        assert (third["silence"], third["view"]["now"]) == (None, NOW + 2)
        stream.close()


async def test_another_node_can_be_chosen_and_one_that_is_not_there_cannot():
    async with serving() as (server, client, _):
        await server.take("b", answer(NOW + 7, nodes=5))
        stream = await client.get("/events", params={"node": "b"})
        assert len((await message(stream))["view"]["peers"]) == 4
        stream.close()
        for path in ("/events", "/history"):
            assert (await client.get(path, params={"node": "c"})).status == 404


async def test_a_peers_past_can_be_asked_for():
    async with serving() as (server, client, _):
        await server.take("a", answer(NOW + 2))
        got = await (await client.get("/history", params={"peer": "10.5.2.0/24"})).json()
        assert [each[0] for each in got["samples"]] == [NOW, NOW + 2]
        got = await (await client.get("/history", params={"peer": "<script>"})).json()
        assert got == {"samples": []}


async def test_a_quiet_stream_gives_signs_of_life():
    async with serving(Bounds(quiet_s=0.05)) as (_, client, _port):
        stream = await client.get("/events")
        await message(stream)
        while (await stream.content.readline()).strip() != b": still here":
            pass
        stream.close()


async def test_a_stream_outlives_the_patience_with_idle_connections():
    bounds = Bounds(quiet_s=0.05, connections=Limits(request_s=0.5, idle_s=0.5))
    async with serving(bounds) as (server, client, _):
        stream = await client.get("/events")
        await message(stream)
        for _ in range(30):  # more than one second of silence, told by the stream itself
            while (await stream.content.readline()).strip() != b": still here":
                pass
        await server.take("a", answer(NOW + 2))
        assert (await message(stream))["view"]["now"] == NOW + 2
        stream.close()


async def test_pages_are_bounded_and_a_closed_one_makes_room():
    async with serving(Bounds(streams=2)) as (_, client, _port):
        first, second = await client.get("/events"), await client.get("/events")
        refused = await client.get("/events")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
        first.close()
        while (again := await client.get("/events")).status != 200:
            await asyncio.sleep(0.01)
        again.close()
        second.close()


async def test_a_page_that_does_not_read_is_dropped_and_holds_up_no_other():
    async with serving(Bounds(send_s=0.2)) as (server, client, port):
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        good = await client.get("/events")
        at = NOW
        while server._streams < 2:
            await asyncio.sleep(0.01)
        while server._streams == 2:
            at += 2
            await server.take("a", answer(at, nodes=250))
            while (await message(good))["view"]["now"] != at:
                pass
        good.close()
        await asyncio.to_thread(read_all, slow)


def read_all(sock):
    with sock:
        sock.settimeout(DEADLINE_S)
        while sock.recv(1 << 20):
            pass


async def test_connections_that_send_nothing_are_bounded():
    bounds = Bounds(connections=Limits(most=8, request_s=5.0, idle_s=5.0))
    async with serving(bounds) as (_, client, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        assert (await client.get("/")).status == 200
        for reader, writer in silent[:40]:
            assert await reader.read() == b""
            writer.close()
        for _, writer in silent[40:]:
            writer.close()


# The side with the rights.


async def test_the_asker_gives_what_daemons_say_and_why_one_does_not():
    def refused():
        raise DeviceUnavailable("connect to", "/run/x.sock", 2)

    ours, theirs = socket.socketpair()
    work = asyncio.to_thread(asker.answer_requests, ours, {"a": lambda: {"x": 1}, "b": refused})
    asking = asyncio.create_task(work)
    reader, writer = await asyncio.open_connection(sock=theirs)
    async with asyncio.timeout(DEADLINE_S):
        writer.write(asker.NOW)
        found = dict([await asker.read_answer(reader), await asker.read_answer(reader)])
        assert found["a"] == {"status": {"x": 1}}
        assert "ENOENT" in found["b"]["error"]
        writer.close()
        await asking
    ours.close()


async def test_a_daemon_that_hangs_holds_up_no_other_and_is_not_asked_twice():
    hanging, asked = os.pipe(), []

    def hang():
        asked.append(1)
        os.read(hanging[0], 1)
        return {}

    ours, theirs = socket.socketpair()
    work = asyncio.to_thread(asker.answer_requests, ours, {"a": hang, "b": dict})
    asking = asyncio.create_task(work)
    reader, writer = await asyncio.open_connection(sock=theirs)
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(3):
            writer.write(asker.NOW)
            assert (await asker.read_answer(reader))[0] == "b"
        assert asked == [1]
        os.write(hanging[1], b"x")
        assert (await asker.read_answer(reader))[0] == "a"
        writer.close()
        await asking
    ours.close()
    for each in hanging:
        os.close(each)


async def test_the_page_ends_with_the_asker():
    ours, theirs = socket.socketpair()
    sock, port = listening()
    serving = asyncio.create_task(serve(PageServer([Watched("a")]), sock, theirs, 0.01))
    reader, writer = await asyncio.open_connection(sock=ours)
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readexactly(1)) == asker.NOW
        writer.write(asker.encode("a", lambda: answer()["status"]))
        async with aiohttp.ClientSession() as client:
            stream = await client.get(f"http://127.0.0.1:{port}/events")
            while (await message(stream))["view"] is None:
                pass
            writer.close()
            await serving
            stream.close()
