"""`pyflannel web`: its two processes, their rights, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from pyflannel.api.app import serve_status, stop_serving
from pyflannel.kernel.privileges import NOBODY
from tests.support.clusters import report
from tests.support.reports import Saying

pytestmark = [pytest.mark.root, pytest.mark.slow]

DEADLINE_S = 30.0
WEB = [sys.executable, "-m", "pyflannel.cli.pyflannel", "web"]


@asynccontextmanager
async def page(socket_path, address=":0", *, before=()):
    """`pyflannel web` about a socket, and the URL it says."""
    web = await asyncio.create_subprocess_exec(
        *before, *WEB, address, "--status-socket", str(socket_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE_S):
            url = (await web.stdout.readline()).decode().split()[0]
            while not children(web.pid):
                await asyncio.sleep(0.01)
            yield web, url
    finally:
        if web.returncode is None:
            web.kill()
        await web.wait()
        web._transport.close()


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rights(pid):
    """User ids and groups of a process, and whether it may gain some."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.split() for name, _, text in (line.partition(":") for line in lines)}


async def messages(client, url):
    async with client.get(f"{url}events", timeout=aiohttp.ClientTimeout()) as stream:
        while line := await stream.content.readline():
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


async def gone(pids):
    async with asyncio.timeout(DEADLINE_S):
        while any(map(lives, pids)):
            await asyncio.sleep(0.01)


def lives(pid):
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # of a zombie it is empty
    except OSError:
        return False


async def test_the_user_nobody_serves_the_page_over_a_socket_for_root_only(tmp_path):
    path = tmp_path / "s.sock"
    daemon = await serve_status(Saying(report(4)), str(path))
    async with page(path) as (web, url), aiohttp.ClientSession() as client:
        async for message in messages(client, url):
            if message["view"] is not None:
                break
        assert len(message["view"]["peers"]) == 3
        assert path.stat().st_mode & 0o777 == 0o600
        (child,) = children(web.pid)
        found = rights(child)
        assert set(found["Uid"] + found["Gid"]) == {str(NOBODY)}
        assert found["Groups"] == []
        assert {int(found[f"Cap{each}"][0], 16) for each in ("Eff", "Prm", "Inh", "Amb")} == {0}
        assert found["NoNewPrivs"] == ["1"]
        # What it listens with, the way to the asker, and no way to the daemon.
        web.send_signal(signal.SIGINT)
        assert await web.wait() == 130
        await gone([child])
        assert await web.stderr.read() == b""
    await stop_serving(daemon, str(path))


async def test_without_a_user_nobody_it_says_which_rights_it_keeps(tmp_path):
    namespace = ("unshare", "--user", "--map-root-user")
    async with page(tmp_path / "s.sock", before=namespace) as (web, url):
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            assert answer.status == 200
        web.send_signal(signal.SIGTERM)
        await web.wait()
        assert b"keeps root's rights: it cannot become the user nobody" in await web.stderr.read()


async def test_a_daemon_that_is_not_there_is_said_to_be_silent_and_seen_when_it_comes(tmp_path):
    path = tmp_path / "s.sock"
    async with page(path) as (_, url), aiohttp.ClientSession() as client:
        daemon = None
        async for message in messages(client, url):
            state = message["nodes"][0]["state"]
            if state == "no answer" and daemon is None:
                assert "is pyflanneld running?" in message["silence"]["text"]
                daemon = await serve_status(Saying(report()), str(path))
            elif state == "fine":
                break
        assert message["silence"] is None
        assert len(message["view"]["peers"]) == 2
    await stop_serving(daemon, str(path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
async def test_nothing_is_left_however_it_ends(tmp_path, number):
    async with page(tmp_path / "s.sock") as (web, _):
        processes = [web.pid, *children(web.pid)]
        assert len(processes) == 2
        web.send_signal(number)
        await web.wait()
        await gone(processes)


async def test_without_the_page_the_asker_ends(tmp_path):
    async with page(tmp_path / "s.sock") as (web, _):
        os.kill(children(web.pid)[0], signal.SIGKILL)
        assert await web.wait() == 70


async def test_an_address_that_others_reach_has_a_warning(tmp_path):
    async with page(tmp_path / "s.sock", "0.0.0.0:0") as (web, url):
        assert url.startswith("http://0.0.0.0:")
        web.send_signal(signal.SIGTERM)
        await web.wait()
        assert b"there is no password" in await web.stderr.read()


async def test_a_port_that_is_taken_is_told(tmp_path):
    async with page(tmp_path / "s.sock") as (_, url):
        port = url.strip("/").rpartition(":")[2]
        again = await asyncio.create_subprocess_exec(
            *WEB, port, stderr=asyncio.subprocess.PIPE
        )  # fmt: skip
        _, said = await again.communicate()
        assert again.returncode == 69
        assert said.decode().strip() == (
            f"pyflannel web: listen on 127.0.0.1:{port}: EADDRINUSE, Address already in use "
            "(name another ADDRESS:PORT)"
        )
