"""Headless Chromium, driven over the DevTools protocol; see https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is missing: apt-get install chromium (Debian)"
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
START_SECONDS = 60.0
WAIT_SECONDS = 60.0


class Tab:
    """One page. What it logs and asks for over the network is kept in `logged` and `requests`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.logged: list[str] = []
        self.requests: list[dict[str, Any]] = []

    async def listen(self) -> None:
        """Take in what the browser says, until the connection is closed."""
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Runtime.consoleAPICalled":
                arguments = message["params"]["args"]
                self.logged.append(
                    " ".join(str(each.get("value", each.get("description"))) for each in arguments)
                )
            elif message["method"] == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.logged.append(details.get("exception", {}).get("description", details["text"]))
            elif message["method"] == "Log.entryAdded":
                self.logged.append(message["params"]["entry"]["text"])
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"])

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(WAIT_SECONDS):
            message = await answer
        assert "error" not in message, f"{method}: {message['error']}"
        return dict(message["result"])

    async def run(self, expression: str) -> Any:
        """Value of a JavaScript expression (of a promise, when it settles)."""
        result = await self.do(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def text(self, selector: str) -> str:
        """Text of the first element; empty without one, and while it is hidden."""
        found = f"document.querySelector({json.dumps(selector)})"
        return str(await self.run(f"{found}?.checkVisibility() ? {found}.innerText : ''"))

    async def until(self, selector: str, condition: Callable[[str], bool]) -> str:
        """Wait until the text of an element is as wanted."""
        text = ""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition(text := await self.text(selector)):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{selector} says {text!r}; the page logged {self.logged}") from None
        return text

    async def until_true(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not await self.run(expression):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"never true: {expression}; the page logged {self.logged}") from None

    async def open(self, url: str) -> None:
        """Go to an address, as if typed: with another fragment only, the page is loaded anew too."""
        await self.do("Page.navigate", url="about:blank")
        await self.do("Page.navigate", url=url)

    async def type(self, selector: str, text: str) -> None:
        """Put the cursor into a field and type."""
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.do("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        """Click an element."""
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Set the size of the window and the preferred colours."""
        await self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.do("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is in the window, or of the whole page."""
        picture = await self.do("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(picture["data"]))


@contextlib.asynccontextmanager
async def browser_tab(profile: Path) -> AsyncIterator[Tab]:
    """A new browser with an empty profile and one tab; it is killed with all its processes at the end."""
    assert CHROMIUM is not None
    await asyncio.to_thread(profile.mkdir, parents=True)
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        port = await _port(profile / "DevToolsActivePort", process)
        async with connect(await _page_socket(port), max_size=None) as socket:
            tab = Tab(socket)
            listening = asyncio.create_task(tab.listen())
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.do(f"{domain}.enable")
            yield tab
        await listening
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(START_SECONDS):
        while not (lines := _lines(file)):
            assert process.returncode is None, f"Chromium ended at once with {process.returncode}"
            await asyncio.sleep(0.05)
    return int(lines[0])


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def _page_socket(port: int) -> str:
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_SECONDS):
        while True:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                pages = [each for each in await response.json() if each["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
            await asyncio.sleep(0.05)
