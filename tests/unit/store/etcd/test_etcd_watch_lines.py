"""An answer of a watch that takes long to read is read in a thread, and none is lost on the way."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from types import SimpleNamespace

from pyflannel.store.etcd import gateway, watch
from pyflannel.store.etcd.watch import Watch


def line(number: int) -> bytes:
    key = base64.b64encode(b"/s/%d" % number).decode()
    event = {"type": "DELETE", "kv": {"key": key, "mod_revision": str(number)}}
    header = {"cluster_id": "1", "member_id": "1", "revision": str(number)}
    return json.dumps({"result": {"header": header, "events": [event]}}).encode() + b"\n"


def watching(*chunks: bytes) -> Watch:
    waiting = list(chunks)

    async def readany() -> bytes:
        return waiting.pop(0)

    return Watch(SimpleNamespace(content=SimpleNamespace(readany=readany)))  # type: ignore[arg-type]


async def test_who_gives_up_while_it_is_read_gets_it_the_next_time(monkeypatch) -> None:
    monkeypatch.setattr(watch, "LARGE_LINE_BYTES", 10)
    parse, may_go_on, asked = gateway.parse_watch_line, threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(text: bytes) -> object:
        loop.call_soon_threadsafe(asked.set)
        assert may_go_on.wait(10)
        return parse(text)

    monkeypatch.setattr(gateway, "parse_watch_line", slow)
    stream = watching(line(7) + line(8))
    first = asyncio.create_task(stream.receive(60.0))
    await asked.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    may_go_on.set()
    revisions = []
    for _ in range(2):
        response = await stream.receive(60.0)
        assert response is not None
        revisions.append(response.events[0].mod_revision)
    assert revisions == [7, 8]


async def test_the_loop_goes_on_meanwhile(monkeypatch) -> None:
    monkeypatch.setattr(watch, "LARGE_LINE_BYTES", 10)
    where: list[threading.Thread] = []
    parse = gateway.parse_watch_line

    def noting(text: bytes) -> object:
        where.append(threading.current_thread())
        return parse(text)

    monkeypatch.setattr(gateway, "parse_watch_line", noting)
    assert await watching(line(7)).receive(60.0) is not None
    assert threading.main_thread() not in where
