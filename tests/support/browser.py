"""Debian's Chromium without a screen, by its DevTools protocol: a tab that a test looks at."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

PROGRAM: Final = "chromium"
DEADLINE_S: Final = 60.0
"""For anything that a page is waited for; the first start of a browser takes the longest."""
POLL_S: Final = 0.05
_ARGUMENTS: Final = (
    "--headless=new",
    "--no-sandbox",  # we are root, in a machine of tests
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_KEYS: Final[Mapping[str, int]] = {
    "Tab": 9,
    "Enter": 13,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowRight": 39,
}
"""With the codes that the protocol wants."""


class Tab:
    """A page in the browser. What goes wrong in it is collected in `errors`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""
        self.errors: list[str] = []

    async def read(self) -> None:
        """Takes in what the browser says, until it ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded":
                entry = said["params"]["entry"]
                # A server that is gone is told so; the page says it too, which is what is tested.
                if entry["level"] == "error" and entry["source"] != "network":
                    self.errors.append(entry["text"])

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command of the protocol and its result."""
        number = next(self._numbers)
        told = self._waiting[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        await self._socket.send_json(command)
        async with asyncio.timeout(DEADLINE_S):
            said = await told
        assert "error" not in said, f"{method}: {said['error']}"
        result: dict[str, Any] = said["result"]
        return result

    async def open(self) -> None:
        """Makes the page."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for room in ("Page", "Runtime", "Log", "Accessibility"):
            await self.call(f"{room}.enable")

    async def go(self, url: str) -> None:
        """Opens an address."""
        await self.call("Page.navigate", url=url)

    async def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Waits until an expression is true; gives its value."""
        value = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not (value := await self.js(expression)):
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            page = await self.js("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{page}\n{self.errors}") from None
        return value

    async def text(self, selector: str) -> str:
        """The text in the first element of a CSS selector."""
        return str(await self.js(f"document.querySelector({json.dumps(selector)}).textContent"))

    async def count(self, selector: str) -> int:
        """How many elements a CSS selector finds."""
        return int(await self.js(f"document.querySelectorAll({json.dumps(selector)}).length"))

    async def until_count(self, selector: str, number: int) -> None:
        """Waits until a CSS selector finds so many elements."""
        await self.until(f"document.querySelectorAll({json.dumps(selector)}).length === {number}")

    async def until_text(self, selector: str, part: str) -> str:
        """Waits until a text is in what is seen of an element; gives all of it."""
        found = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"!{found}.hidden && {found}.textContent.includes({json.dumps(part)})")
        return await self.text(selector)

    async def click(self, selector: str) -> None:
        """Clicks on the middle of an element, as a mouse does."""
        x, y = await self.js(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{ block: "center" }});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        about = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, **about)

    async def size(self, width: int, height: int = 900) -> None:
        """Sets the size of the window, in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def scheme(self, name: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def key(self, name: str) -> None:
        """Presses a key."""
        text = {"Enter": "\r", " ": " "}.get(name)
        about = {"key": name, "code": name, "windowsVirtualKeyCode": _KEYS[name]}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        await self.call("Input.dispatchKeyEvent", **down, **about)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def named(self, role: str) -> list[str]:
        """What a screen reader calls the elements of a role, in their order."""
        tree = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        return [
            node.get("name", {}).get("value", "")
            for node in tree
            if not node.get("ignored") and node["role"]["value"] == role
        ]

    async def picture(self, path: Path) -> None:
        """Takes a picture of the whole page."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A browser with one tab. It is gone afterwards, with its directory."""
    program = shutil.which(PROGRAM)
    assert program, "chromium is missing (Debian: chromium)"
    profile = tempfile.mkdtemp(prefix="pyflannel-browser-")
    process = await asyncio.create_subprocess_exec(
        program,
        *_ARGUMENTS,
        f"--user-data-dir={profile}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    draining: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (found := re.search(rb"ws://\S+", await process.stderr.readline())):
                assert process.returncode is None, "chromium has ended"
        draining = asyncio.create_task(_drain(process.stderr))
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(found[0].decode(), max_msg_size=0) as socket,
        ):
            tab = Tab(socket)
            reading = asyncio.create_task(tab.read())
            await tab.open()
            yield tab
            reading.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        if draining is not None:
            await draining
        shutil.rmtree(profile, ignore_errors=True)


async def _drain(pipe: asyncio.StreamReader) -> None:
    while await pipe.readline():
        pass
