"""Tasks on the dashboard, in a real browser on a real `nvcf up`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.test_dashboard import page, picture
from tests.integration.tasks.conftest import HEAD
from tests.support.http.browser import Tab, needs_chromium
from tests.support.platform.nvcf_up import local_up

pytestmark = pytest.mark.timeout(300)
TRAIN = (
    HEAD
    + """
def main(run: Task):
    for epoch in range(1, 5):
        run.progress(17 * epoch, name=f"epoch-{epoch}", metadata={"loss": 1 / epoch, "note": "<b>no</b>"})
        time.sleep(0.6)
    run.cancelled.wait(600)
task(main)
"""
)


async def choose(tab: Tab, name: str) -> None:
    """Click on a task."""
    buttons = "[...document.querySelectorAll('#tasks button')]"
    await tab.run(f"{buttons}.find(b => b.innerText == '{name}').click()")


async def pictures(tab: Tab, folder: Path, name: str) -> None:
    """Screenshots of a large and a small screen, light and dark. Nothing is wider than the screen."""
    for width, height, dark in ((1400, 900, False), (1400, 900, True), (390, 844, False), (390, 844, True)):
        await tab.look(width, height, dark=dark)
        await tab.until_true(f"innerWidth == {width}")
        await tab.until_true("document.documentElement.scrollWidth <= innerWidth")
        await tab.run("document.querySelector('#tasks').scrollIntoView()")
        await picture(tab, folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")


@needs_chromium
async def test_tasks_are_listed_and_each_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, source in (
        ("train", TRAIN),
        ("fails", "raise ValueError('the learning rate is too high')\n"),
        ("works", "print('done')\n"),
    ):
        (folder / f"{name}.py").write_text(source)
    (tmp_path / "up").mkdir()
    async with (
        local_up(tmp_path / "up", "--clusters", "1", "--gpus", "2") as up,
        page(up, tmp_path / "profile") as tab,
    ):
        await tab.until("#functions .empty", lambda text: "nvcf deploy" in text)
        assert await tab.run("document.querySelector('#tasks').hidden") is True
        await up.ok("task", "run", str(folder / "works.py"))
        await up.run("task", "run", str(folder / "fails.py"))
        await up.ok("task", "run", str(folder / "train.py"), "--gpu", "SIM", "--grace", "1", "--detach")
        await up.ok("task", "run", str(folder / "works.py"), "--name", "waits", "--gpu", "H900", "--detach")
        await tab.until(
            "#tasks tbody", lambda text: "68 %" in text and "Errored" in text and "Queued" in text
        )
        listed = await tab.text("#tasks tbody")
        # What runs comes first, and each says why it is where it is.
        assert listed.index("train") < listed.index("waits") < listed.index("fails")
        assert "exit code 1" in listed
        assert "H900" in listed
        await pictures(tab, tmp_path, "table")

        await tab.look(1400, 900)
        await choose(tab, "train")
        await tab.until("#task", lambda text: "Running" in text and "68 %" in text and "GPU time" in text)
        await tab.until("#task-results tbody", lambda text: "epoch-4" in text and "<b>no</b>" in text)
        await tab.until("#task-events tbody", lambda text: "queued by" in text)
        assert await tab.run("document.querySelector('#overview').hidden") is True
        [task] = [
            each for each in json.loads(await up.ok("task", "list", "--json")) if each["name"] == "train"
        ]
        assert (await tab.run("location.hash")) == f"#task={task['id']}"
        await pictures(tab, tmp_path, "page")
        await up.ok("task", "cancel", "train")
        await tab.until("#task", lambda text: "Canceled" in text)

        await tab.run("history.back()")
        await tab.until("#functions .empty", lambda text: "nvcf deploy" in text)
        assert await tab.run("document.querySelector('#task-page').hidden") is True
        await choose(tab, "fails")
        await tab.until("#task", lambda text: "Errored" in text and "rate is too high" in text)
        await pictures(tab, tmp_path, "failed")
        await tab.until("#task-results .empty", lambda text: "no results" in text)
        await tab.click("#scope button")
        await tab.until("#tasks tbody", lambda text: "waits" in text)
        assert tab.logged == []
