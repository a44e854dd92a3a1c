"""D5: the page shows trouble first, whole reasons, no inner scroll boxes, and a page of one version."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.support.http.browser import browser_tab, needs_chromium
from tests.support.platform.nvcf_up import local_up

FINE = """
from nvcf_worker import Request

def handler(request: Request) -> str:
    return "fine"
"""
FAILS = """
from nvcf_worker import Request

def handler(request: Request) -> str:
    raise ValueError("broken on purpose")
"""
BOXES = "[...document.querySelectorAll('.scroll')].every(each => each.scrollHeight <= each.clientHeight + 1)"
ROWS = "[...document.querySelectorAll('#functions tbody tr')].map(each => each.innerText.split(/\\s/)[0])"
CLIPPED = (
    "[...document.querySelectorAll('#decisions td.wide, .reason')]"
    ".every(each => each.scrollWidth <= each.clientWidth + 1)"
)


@needs_chromium
@pytest.mark.timeout(300)
async def test_d5_trouble_comes_first_and_nothing_is_cut(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    async with local_up(tmp_path / "up", "--gpus", "1") as up, browser_tab(tmp_path / "profile") as tab:
        await up.deploy("fine", FINE)
        fails = await up.deploy("fails", FAILS)
        await up.deploy("nowhere", FINE, "--gpu", "H100", "--no-wait")
        await up.deploy("unstartable", "import sys\nsys.exit(3)\n", "--no-wait")
        async with (
            up.session() as session,
            session.post(f"/v2/nvcf/pexec/functions/{fails}", data=b"x") as call,
        ):
            assert call.status == 500
        await tab.look(1400, 900)
        await tab.open((await up.ok("dashboard", "--no-browser")).strip())
        await tab.until_true(f"String({ROWS}) == 'unstartable,fails,nowhere,fine'")
        await tab.until("#functions tbody", lambda text: "exit code 3" in text)
        await tab.until("#decisions tbody", lambda text: "no GPU H100, only CPU, SIM" in text)
        for width, dark in itertools.product((1400, 390), (False, True)):
            await tab.look(width, 900, dark=dark)
            await tab.until_true(BOXES)
            await tab.until_true(CLIPPED)
            await tab.until_true(f"document.documentElement.scrollWidth <= {width}")
        await tab.look(1400, 900)
        await tab.run(
            "[...document.querySelectorAll('#functions button')].find(b => b.innerText == 'nowhere').click()"
        )
        await tab.until("#version", lambda text: "H100 process, 1 to 1 instances" in text)
        await tab.until("#version", lambda text: "no GPU H100" in text)
        # The version has an address of its own; Back leads to all functions.
        assert "#version=" in str(await tab.run("location.href"))
        await tab.run("history.back()")
        await tab.until_true("document.getElementById('version').hidden")
        # A version that is not deployed any more wants nothing.
        for name in ("unstartable", "nowhere"):
            await up.ok("undeploy", name)
        await tab.until("#chart-instances .keys", lambda text: "desired 2" in " ".join(text.split()))
        assert tab.logged == []
