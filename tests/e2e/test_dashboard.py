"""The built-in page in a real browser on a real `nvcf up`, and `nvcf top` beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nvcf_broker.process import spawn
from tests.support.http.browser import Tab, browser_tab, needs_chromium
from tests.support.platform.nvcf_up import LocalUp, environment, local_up

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
FAST = """
from nvcf_worker import Request

def handler(request: Request) -> str:
    return "at once"
"""
SLOW = """
import asyncio
from nvcf_worker import Request

async def handler(request: Request) -> str:
    await asyncio.sleep(0.5)
    if (await request.read()) == b"break":
        raise ValueError("broken on purpose")
    return "later"
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalUp]:
    """Two clusters with simulated GPUs."""
    async with local_up(tmp_path_factory.mktemp("up"), "--clusters", "2", "--gpus", "2") as running:
        yield running


@contextlib.asynccontextmanager
async def page(up: LocalUp, profile: Path) -> AsyncIterator[Tab]:
    """The page, opened as `nvcf dashboard` opens it."""
    async with browser_tab(profile) as tab:
        await tab.look(1440, 900)
        await tab.open((await up.ok("dashboard", "--no-browser")).strip())
        yield tab


@contextlib.asynccontextmanager
async def calls(up: LocalUp, **functions: str) -> AsyncIterator[None]:
    """Calls of functions, some at a time, until the end; every sixth is to break."""

    async def keep_calling(session: Any, function_id: str) -> None:
        number = 0
        while True:
            number += 1
            body = b"break" if number % 6 == 0 else b"x"
            path = f"/v2/nvcf/pexec/functions/{function_id}"
            async with session.post(path, data=body) as response:
                await response.read()
            await asyncio.sleep(0.05)

    async with up.session() as session:
        tasks = [
            asyncio.create_task(keep_calling(session, each)) for each in functions.values() for _ in range(3)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def picture(tab: Tab, path: Path) -> None:
    """A screenshot that is more than an empty page."""
    await tab.screenshot(path)
    size = await asyncio.to_thread(lambda: path.stat().st_size)
    assert size > 20_000, f"{path} has {size} bytes"


@needs_chromium
async def test_an_empty_platform_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    async with (
        local_up(tmp_path / "up", "--clusters", "2", "--gpus", "2") as up,
        page(up, tmp_path / "profile") as tab,
    ):
        await tab.until("#functions .empty", lambda text: "nvcf deploy function.py" in text)
        assert "No calls in this time" in await tab.text("#chart-rate")
        assert "No scaling decisions yet" in await tab.text("#decisions .empty")
        await tab.until("#clusters tbody", lambda text: "0 of 2 SIM process" in text)
        assert tab.logged == []


@needs_chromium
async def test_the_page_shows_the_platform_and_keeps_secrets(up: LocalUp, tmp_path: Path) -> None:
    fast = await up.deploy("fast", FAST)
    slow = await up.deploy("slow", SLOW, "--min", "0", "--max", "3", "--gpu", "SIM")
    async with calls(up, fast=fast, slow=slow), page(up, tmp_path / "profile") as tab:
        await tab.until("#functions tbody", lambda text: "slow" in text and "fast" in text)
        await tab.until("#tiles", lambda text: "running" in text and "/s arriving" in text)
        await tab.until("#tiles .bad", lambda text: text.endswith("%"))
        await tab.until("#decisions tbody", lambda text: "queued" in text and "→" in text)
        await tab.until("#instances tbody", lambda text: "Running" in text and "SIM" in text)
        await tab.until("#events tbody", lambda text: "instance" in text)
        await tab.until("#chart-latency .keys", lambda text: "p99" in text and "ms" in text)
        assert await tab.run("document.querySelectorAll('#chart-rate .line').length") >= 1
        await picture(tab, tmp_path / "light.png")
        await tab.look(1440, 1500, dark=True)
        await tab.until("#pulse", lambda text: text.startswith("live"))
        await tab.until_true("getComputedStyle(document.body).backgroundColor == 'rgb(15, 19, 24)'")
        await picture(tab, tmp_path / "dark.png")

        await tab.run(
            "[...document.querySelectorAll('#functions button')].find(b => b.innerText == 'slow').click()"
        )
        await tab.until("#scope", lambda text: text.startswith("slow"))
        await tab.until("#instances tbody", lambda text: "slow" in text and "fast" not in text)
        await tab.click("#scope button")
        await tab.until("#instances tbody", lambda text: "fast" in text)

        assert tab.logged == []
        assert await tab.run("location.href") == f"{up.url}/dashboard/"
        _no_secrets(up, tab, json.dumps(await tab.run("({...sessionStorage, ...localStorage})")))


def _no_secrets(up: LocalUp, tab: Tab, stored: str) -> None:
    """No key or ticket in addresses, logs and what the page keeps; nothing was asked of anybody else."""
    assert up.key not in stored
    assert "nvcf-ticket-" not in stored
    for request in tab.requests:
        assert request["url"].startswith(up.url) or request["url"] == "about:blank"
        assert "nvcf-" not in request["url"].partition("?")[2]
    for log in up.data.glob("*.log"):
        text = log.read_text(errors="replace")
        assert up.key not in text
        assert "nvcf-ticket-" not in text
        assert "nvcf-session-" not in text


@needs_chromium
async def test_rows_with_one_key_leave_nothing_behind(up: LocalUp, tmp_path: Path) -> None:
    """Two events may be the same in all that is shown of them."""
    async with page(up, tmp_path / "browser") as tab:
        rows = await tab.run(
            """import("./dom.js").then(({ Table }) => {
                const host = document.createElement("div");
                const table = new Table(host, "Events", [{ title: "What" }]);
                const row = (text) => ({ key: text, cells: [text] });
                table.show([row("same"), row("same"), row("other")]);
                table.show([row("new"), row("other")]);
                return [...host.querySelectorAll("tbody tr")].map((each) => each.textContent);
            })"""
        )
    assert rows == ["new", "other"]


@needs_chromium
async def test_of_thousands_of_functions_the_busiest_are_shown(up: LocalUp, tmp_path: Path) -> None:
    async with page(up, tmp_path / "browser") as tab:
        shown = await tab.run(
            """import("./overview.js").then(({ Overview }) => {
                const overview = new Overview(() => null);
                const ids = [...Array(5000).keys()].map(String);
                overview.showFunctions({
                    functions: ids.map((id) => ({ versionId: id, name: `f${id}`, status: "ACTIVE" })),
                    instances: ids.map((id) => ({ functionVersionId: id, state: "RUNNING" })),
                    figures: { versions: [{ functionVersionId: "4999", answersPerSecond: 1, queue: null }] },
                }, "4000");
                const first = document.querySelectorAll("#functions tbody tr").length;
                document.querySelector("#functions .unfold").click();
                const rows = [...document.querySelectorAll("#functions tbody tr")];
                return [first, rows.length, ...rows.slice(0, 3).map((each) => each.textContent)];
            })"""
        )
    assert shown[:2] == [16, 300]
    assert shown[2].startswith("f4000")
    assert shown[3].startswith("f4999")
    assert shown[4].startswith("f0")
    assert "1 running" in shown[4]


@needs_chromium
async def test_a_key_signs_in_and_a_wrong_one_is_refused(up: LocalUp, tmp_path: Path) -> None:
    async with browser_tab(tmp_path / "profile") as tab:
        await tab.open(
            f"{up.url}/dashboard/#ticket=nvcf-ticket-0123456789ab-1234567890-0123456789abcdef-" + "x" * 43
        )
        await tab.until("#sign-in-error", lambda text: "not valid" in text)
        await tab.type("#key", "nvcf-wrong")
        await tab.click("#key-form button")
        await tab.until("#sign-in-error", lambda text: "the API key is not valid" in text)
        await tab.type("#key", up.key)
        await tab.click("#key-form button")
        await tab.until("#pulse", lambda text: text.startswith("live"))
        assert up.key not in json.dumps(await tab.run("({...sessionStorage, ...localStorage})"))
        await tab.do("Page.reload")
        await tab.until("#pulse", lambda text: text.startswith("live"))
        await tab.click("#leave")
        await tab.until("#sign-in h1", lambda text: text == "Sign in to read")
        assert await tab.run("sessionStorage.length") <= 1


@needs_chromium
async def test_a_lost_gateway_is_reported_and_found_again(up: LocalUp, tmp_path: Path) -> None:
    async with page(up, tmp_path / "profile") as tab:
        await tab.until("#pulse", lambda text: text.startswith("live"))
        pid = up.state["children"]["gateway"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            await tab.until("#notices", lambda text: "not responded in time" in text and "is from" in text)
            assert await tab.text("#pulse") == "not live"
        finally:
            os.kill(pid, signal.SIGKILL)
        await tab.until("#pulse", lambda text: text.startswith("live"))
        assert await tab.text("#notices") == ""


async def test_top_shows_the_same_in_the_terminal(up: LocalUp) -> None:
    function_id = await up.deploy("counted", FAST)
    async with calls(up, counted=function_id):
        async with asyncio.timeout(60):
            while True:
                shown = json.loads(await up.ok("top", "counted", "--once", "--json"))
                (row,) = shown["functions"]
                if row["answers"] > 0 and row["instances"].get("RUNNING") == 1 and row["p99"]:
                    break
                await asyncio.sleep(0.2)
        assert {each["functionName"] for each in shown["decisions"]} == {"counted"}
        text = await up.ok("top", "--once")
    assert "counted" in text
    assert "answered" in text
    code, _, err = await up.run("top")
    assert code == 2
    assert "--once" in err


async def test_the_address_is_printed_where_there_is_no_display(up: LocalUp) -> None:
    address = await up.ok("dashboard", "--no-browser")
    assert address.startswith(f"{up.url}/dashboard/#ticket=nvcf-ticket-")
    assert up.key not in address


async def test_top_is_live_in_a_terminal_until_ctrl_c(up: LocalUp) -> None:
    ours, theirs = os.openpty()
    process = await spawn(
        [sys.executable, "-m", "nvcf_cli", "top", "--interval", "0.5"],
        env={**environment(up.data), "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        shown = b""
        async with asyncio.timeout(60):
            while shown.count(b"arriving") < 3:
                shown += await asyncio.to_thread(os.read, ours, 65536)
        process.send_signal(signal.SIGINT)
        # Read its last output, or it blocks on writing.
        async with asyncio.timeout(30):
            while process.returncode is None:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(os.read, ours, 65536)
                await asyncio.sleep(0.02)
        assert process.returncode == 130
    finally:
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
