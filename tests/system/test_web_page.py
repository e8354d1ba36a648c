"""The page of `pyflannel web` in Debian's Chromium: what one sees, does and hears.

Pictures of it are left in build/web, to be looked at.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.state import BASE_VARIABLE
from pyflannel.report.codec import encode
from tests.support.browser import browser
from tests.support.clusters import report

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "build" / "web"
PYFLANNEL = [sys.executable, "-m", "pyflannel.cli.pyflannel"]
FEED = [sys.executable, "-m", "tests.support.webfeed"]
PEER = "#map .peer"
DEADLINE_S = 60.0
FOCUSED = "document.activeElement.closest('.peer')?.dataset.id"


def at(subnet):
    """The peer on the map."""
    return f'{PEER}[data-id="{subnet}"]'


@asynccontextmanager
async def serving(*command):
    """The URL that a command says on its first line."""
    web = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    try:
        async with asyncio.timeout(DEADLINE_S):
            url = (await web.stdout.readline()).decode().split()[0]
        yield url
    finally:
        if web.returncode is None:
            web.terminate()
        await web.wait()


class Feed:
    """A status file in the place of a daemon."""

    def __init__(self, directory):
        self.path = directory / "node1.json"

    def say(self, nodes, **more):
        self.write(encode(report(nodes, at=time.time(), **more)))

    def write(self, status):
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(status))
        new.replace(self.path)

    def be_silent(self):
        self.path.unlink()


@asynccontextmanager
async def looking(directory, nodes, **more):
    """A page about a made-up cluster, in a browser."""
    feed = Feed(directory)
    feed.say(nodes, **more)
    async with serving(*FEED, str(feed.path)) as url, browser() as tab:
        await tab.go(url)
        await tab.until_count(PEER, nodes - 1)
        yield tab, feed
        assert tab.errors == []


CROSSING = """(() => {
    const edge = document.querySelector("#map-part").getBoundingClientRect();
    const boxes = [...document.querySelectorAll("#map .peer text")]
        .filter((each) => each.textContent)
        .map((each) => [each.textContent, each.getBoundingClientRect()]);
    const outside = boxes.filter(([, box]) => box.left < edge.left || box.right > edge.right);
    const apart = (one, two) => one.right <= two.left || one.bottom <= two.top;
    const pairs = boxes.flatMap(([name, box], at) => boxes.slice(at + 1)
        .filter(([, other]) => !apart(box, other) && !apart(other, box))
        .map(([other]) => `${name} ${other}`));
    return [...outside.map(([name]) => name), ...pairs];
})()"""
"""Labels that leave the map, or cross each other. Turned ones have boxes that cross anyway."""
UPRIGHT = 13


@pytest.mark.parametrize("nodes", [1, 3, 8, UPRIGHT, 40, 100])
async def test_from_one_node_to_a_hundred_in_every_width_and_both_schemes(tmp_path, nodes):
    async with looking(tmp_path, nodes, ill=nodes > 8) as (tab, feed):
        before = await tab.text("#foot")
        feed.say(nodes, ill=nodes > 8)  # a second sample, for rates in the picture
        await tab.until(f"document.querySelector('#foot').textContent !== {json.dumps(before)}")
        for width in (320, 700, 1280, 1920):
            await tab.size(width)
            await tab.until(f"innerWidth === {width}")
            place = "document.querySelector('#map-place').clientWidth"
            await tab.until(
                f"Number(document.querySelector('#map').getAttribute('width')) === {place}"
            )
            assert await tab.js("document.documentElement.scrollWidth - innerWidth") <= 0
            if nodes <= UPRIGHT:
                assert await tab.js(CROSSING) == []
            for scheme in ("light", "dark"):
                await tab.scheme(scheme)
                await tab.picture(PICTURES / f"{nodes}-nodes-{width}-{scheme}.png")


async def test_a_peer_is_chosen_by_click_and_by_keys_and_shows_its_past(tmp_path):
    async with looking(tmp_path, 8) as (tab, feed):
        await tab.click(f"{at('10.5.4.0/24')} .dot")
        await tab.until_text("#peer-title", "node4, 10.5.4.0/24")
        feed.say(8)
        await tab.until("document.querySelectorAll('#charts svg').length >= 1")
        images = await tab.named("image")
        assert any(each.startswith("Round trip: 0.44 ms in the last") for each in images), images
        await tab.click("#close")
        await tab.until("document.querySelector('#peer-part').hidden")
        # The focus is on the map now, and the arrows lead around it.
        assert await tab.js(FOCUSED) == "10.5.4.0/24"
        await tab.key("ArrowRight")
        assert await tab.js(FOCUSED) == "10.5.5.0/24"
        await tab.key("ArrowLeft")
        assert await tab.js(FOCUSED) == "10.5.4.0/24"
        await tab.key("Home")
        await tab.key("Enter")
        await tab.until_text("#peer-title", "node2, 10.5.2.0/24")
        # What comes meanwhile takes neither the choice nor the focus away.
        before = await tab.text("#foot")
        feed.say(8)
        await tab.until(f"document.querySelector('#foot').textContent !== {json.dumps(before)}")
        assert await tab.js(FOCUSED) == "10.5.2.0/24"
        assert await tab.text("#peer-title") == "node2, 10.5.2.0/24"
        await tab.picture(PICTURES / "chosen.png")


async def test_all_can_be_reached_with_tab_and_the_map_is_one_stop(tmp_path):
    async with looking(tmp_path, 5) as (tab, _):
        seen = []
        for _ in range(7):
            await tab.key("Tab")
            seen.append(
                await tab.js(
                    "(({ classList, tagName }) => classList[0] ?? tagName)(document.activeElement)"
                )
            )
            outline = "getComputedStyle(document.activeElement.querySelector?.('.ring') ?? "
            outline += "document.activeElement)"
            assert await tab.js(f"{outline}.outlineStyle !== 'none' || {outline}.stroke !== 'none'")
        assert seen == ["skip", "peer", "scroll", *["BUTTON"] * 4]


async def test_a_screen_reader_hears_the_same(tmp_path):
    async with looking(tmp_path, 6, ill=True) as (tab, _):
        buttons = await tab.named("button")
        assert "node2, 10.5.2.0/24, answers, 0.42 ms" in buttons
        assert "node5, 10.5.5.0/24, large packets do not pass" in buttons
        assert {"Map", "Problems", "Leases"} <= set(await tab.named("heading"))
        assert "10.5.2.0/24" in await tab.named("rowheader")
        assert "State" in await tab.named("columnheader")
        live = "document.querySelector('#problems').getAttribute('aria-live')"
        assert await tab.js(live) == "polite"


async def test_a_silent_daemon_is_said_and_comes_back_by_itself(tmp_path):
    async with looking(tmp_path, 3) as (tab, feed):
        feed.be_silent()
        text = await tab.until_text("#silence", "has not answered since")
        assert "is pyflanneld running?" in text
        assert await tab.text("#verdict") == "no answer"
        assert await tab.count(PEER) == 2, "what was last known stays"
        await tab.picture(PICTURES / "silent.png")
        feed.say(4)
        await tab.until_count(PEER, 3)
        await tab.until("document.querySelector('#silence').hidden")
        assert await tab.text("#verdict") == "fine"


@pytest.mark.parametrize("fragment", ["#%", "#gone", "#<b>"])
async def test_an_address_with_a_node_that_is_not_there_shows_the_first(tmp_path, fragment):
    feed = Feed(tmp_path)
    feed.say(3)
    async with serving(*FEED, str(feed.path)) as url, browser() as tab:
        await tab.go(url + fragment)
        await tab.until_count(PEER, 2)
        assert await tab.text("#name") == "node1"
        assert tab.errors == []


async def test_a_page_whose_server_ended_says_so(tmp_path):
    feed = Feed(tmp_path)
    feed.say(3)
    async with browser() as tab:
        async with serving(*FEED, str(feed.path)) as url:
            await tab.go(url)
            await tab.until_count(PEER, 2)
        await tab.until_text("#silence", "The server of this page has not answered since")


async def test_what_peers_write_stays_text(tmp_path):
    evil = "<img src=x onerror=alert(1)><script>document.title='taken'</script>"
    feed = Feed(tmp_path)
    status = encode(report(3, at=time.time()))
    for each in status["peers"]:
        each |= {"host": evil, "reason": evil, "state": evil, "way": evil, "drops": {evil: 1}}
    feed.write(status)
    async with serving(*FEED, str(feed.path)) as url, browser() as tab:
        await tab.go(url)
        await tab.until_count(PEER, 2)
        await tab.click("tbody button")
        await tab.until_text("#numbers", evil)
        assert await tab.count("img, body script") == 0
        assert await tab.js("document.title") == "node1: fine"
        assert tab.errors == []


async def test_a_lab_of_three_seen_from_each_node(tmp_path):
    spec = LabSpec(name="web", backend="udp", daemon_args=("--probe-interval=1",))
    command = ["env", f"{BASE_VARIABLE}={tmp_path}", *PYFLANNEL, "lab", "web", ":0", "--name=web"]
    with Lab(spec, base=tmp_path) as lab:
        async with serving(*command) as url, browser() as tab:
            await tab.go(url)
            await tab.until_count(f"{PEER}.up", 2)
            await tab.until_text("#verdict", "fine")
            assert await tab.text("#name") == "node1"
            # What the data path counts for each peer comes as a rate, and as width.
            await tab.until_text("#legend", "more traffic")
            traffic = threading.Thread(target=lab.ping_all, kwargs={"count": 50, "deadline": 15.0})
            traffic.start()
            await tab.until(
                "[...document.querySelectorAll('#map .link')]"
                ".every((each) => Number(each.getAttribute('stroke-width')) > 1.6)"
            )
            await tab.picture(PICTURES / "lab.png")
            await asyncio.to_thread(traffic.join)
            # With backend udp a node whose daemon ended carries nothing: the others see it.
            lab.node(3).stop_daemon()
            await tab.until_count(f"{PEER}.down", 1)
            assert "pyflannel ping" in await tab.until_text("#problems", "PF171")
            await tab.picture(PICTURES / "lab-down.png")
            await tab.js("""(() => {
                const choice = document.querySelector("#node");
                choice.value = "node3";
                choice.dispatchEvent(new Event("change"));
            })()""")
            await tab.until_text("#verdict", "no answer")
            lab.node(3).start_daemon()
            await tab.until_count(f"{PEER}.up", 2)
            await tab.until("document.querySelector('#silence').hidden")
            assert await tab.text("#name") == "node3"
            assert tab.errors == []
