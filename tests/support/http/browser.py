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

from tests.support.waiting import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is missing: apt-get install chromium (Debian)"
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
WAIT_SECONDS = 60.0


class Tab:
    """One page. `logged` has its console messages, `requests` its network requests."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._responses: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.logged: list[str] = []
        self.requests: list[dict[str, Any]] = []

    async def listen(self) -> None:
        """Read the messages of the browser until the connection is closed."""
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                self._responses.pop(message["id"]).set_result(message)
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
        """Send a command. Returns its result."""
        number = next(self._numbers)
        response = self._responses[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(WAIT_SECONDS):
            message = await response
        assert "error" not in message, f"{method}: {message['error']}"
        return dict(message["result"])

    async def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression. A promise is awaited."""
        result = await self.do(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def text(self, selector: str) -> str:
        """Return the text of the first element. It is empty if there is none or if it is hidden."""
        found = f"document.querySelector({json.dumps(selector)})"
        return str(await self.run(f"{found}?.checkVisibility() ? {found}.innerText : ''"))

    async def until(self, selector: str, condition: Callable[[str], bool]) -> str:
        """Wait until `condition` is true for the text of an element. Returns the text."""
        text = ""

        async def matches() -> bool:
            nonlocal text
            text = await self.text(selector)
            return condition(text)

        await eventually(
            matches,
            f"the text of {selector} is as expected",
            story=lambda: f"it is {text!r}; the page logged {self.logged}",
        )
        return text

    async def until_true(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        await eventually(
            lambda: self.run(expression), expression, story=lambda: f"the page logged {self.logged}"
        )

    async def open(self, url: str) -> None:
        """Load an address anew, even if only its fragment differs from the current one."""
        await self.do("Page.navigate", url="about:blank")
        await self.do("Page.navigate", url=url)

    async def type(self, selector: str, text: str) -> None:
        """Type text into a field."""
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
        """Write a PNG of the window, or of the whole page."""
        picture = await self.do("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(picture["data"]))


@contextlib.asynccontextmanager
async def browser_tab(profile: Path) -> AsyncIterator[Tab]:
    """Run a browser with an empty profile and one tab. All its processes are killed at the end."""
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
    await eventually(lambda: _lines(file) or process.returncode is not None, "Chromium writes its port")
    assert process.returncode is None, f"Chromium ended at once with {process.returncode}"
    return int(_lines(file)[0])


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def _page_socket(port: int) -> str:
    pages: list[dict[str, Any]] = []

    async def has_page() -> bool:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            pages[:] = [each for each in await response.json() if each["type"] == "page"]
        return bool(pages)

    async with aiohttp.ClientSession() as session:
        await eventually(has_page, "Chromium has a page")
    return str(pages[0]["webSocketDebuggerUrl"])
