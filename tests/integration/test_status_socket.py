"""The status socket is there again after it was removed, by any process."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyflannel.api import app
from pyflannel.report.model import NodeReport
from tests.support.reports import Saying

pytestmark = pytest.mark.slow


def ask(path) -> int:
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/status")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


async def until(probe) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(probe):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def keep(path) -> AsyncIterator[list[str]]:
    """The socket is kept; gives what is told of it."""
    told: list[str] = []
    kept = app.keep_status(Saying(NodeReport()), str(path), lambda text: told.append(text) or True)
    task = asyncio.create_task(kept)
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(app, "CHECK_INTERVAL_S", 0.02)


async def test_a_deleted_socket_is_made_again(tmp_path):
    path = tmp_path / "s.sock"

    async with keep(path):
        await until(lambda: ask(path) == 200)
        path.unlink()
        await until(lambda: ask(path) == 200)


async def test_it_goes_with_the_daemon(tmp_path):
    path = tmp_path / "s.sock"

    async with keep(path):
        await until(lambda: ask(path) == 200)
    assert not path.exists()


async def test_another_programs_socket_of_that_name_is_not_removed(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with keep(path):
            await until(lambda: ask(path) == 200)
            path.unlink()
            other.bind(str(path))
            other.listen()
        assert path.exists()


async def test_a_place_that_cannot_be_had_is_told_until_it_can(tmp_path):
    path = tmp_path / "later" / "s.sock"
    path.parent.write_text("in the way")

    async with keep(path) as told:
        await until(lambda: any(str(path) in text for text in told))
        path.parent.unlink()
        path.parent.mkdir()
        await until(lambda: ask(path) == 200)
        await until(lambda: told[-1] == "")


async def test_a_file_of_that_name_is_left_alone_and_the_reason_is_told(tmp_path):
    path = tmp_path / "precious.txt"
    path.write_text("not ours")

    async with keep(path) as told:
        await until(lambda: told)
        assert "not a socket" in told[0]
        assert "--status-socket" in told[0]
    assert path.read_text() == "not ours"
