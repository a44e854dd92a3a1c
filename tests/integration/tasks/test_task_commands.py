"""`nvcf task` on `nvcf up`, and on a platform elsewhere."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from tests.integration.tasks.conftest import HEAD
from tests.integration.test_cluster_commands import Command
from tests.support.platform.gateways import running_platform
from tests.support.platform.nvcf_up import LocalUp, local_up
from tests.support.waiting import eventually

TRAIN = (
    HEAD
    + """
def main(run: Task):
    for number in (1, 2):
        print("epoch", number)
        run.progress(50 * number, name=f"epoch-{number}", metadata={"loss": 1 / number})
        while not Path(__file__).with_name(f"go-{number}").exists():
            time.sleep(0.02)
    (run.results_dir / "weights").write_text("w")
task(main)
"""
)
FAILS = "import sys\nprint('the disk is full', file=sys.stderr)\nsys.exit(3)\n"


async def _is_listed(up: LocalUp, name: str) -> bool:
    code, out, _ = await up.run("task", "results", "train", "--json")
    return code == 0 and name in {each["name"] for each in json.loads(out)["results"]}


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_task_on_the_laptop(tmp_path: Path) -> None:
    # A task sees what is made later only in a folder that has nothing of the platform.
    folder = tmp_path / "tasks"
    folder.mkdir()
    train, fails, waits = (folder / f"{name}.py" for name in ("train", "fails", "waits"))
    train.write_text(TRAIN)
    fails.write_text(FAILS)
    waits.write_text("import time\ntime.sleep(600)\n")
    async with local_up(tmp_path) as up:
        async with asyncio.TaskGroup() as group:
            training = group.create_task(up.run("task", "run", str(train), "--tag", "a"))
            for number in (1, 2):
                await eventually(partial(_is_listed, up, f"epoch-{number}"), f"result {number} is listed")
                (folder / f"go-{number}").touch()
        code, out, err = training.result()
        assert (code, "epoch 1" in out, "COMPLETED" in err) == (0, True, True), (out, err)
        code, _, err = await up.run("task", "run", str(fails))
        assert (code, "ERRORED: the task ended: exit code 3" in err) == (1, True), err
        waiting = (await up.ok("task", "run", str(waits), "--detach", "--grace", "1")).strip()
        await up.ok("task", "cancel", waiting[:8])
        shown = await up.ok("task", "show", "waits")
        assert "CANCELED" in shown
        assert "queued by" in shown
        listed = {each["name"]: each["status"] for each in json.loads(await up.ok("task", "list", "--json"))}
        assert listed == {"train": "COMPLETED", "fails": "ERRORED", "waits": "CANCELED"}
        assert "epoch 2" in await up.ok("task", "logs", "train")
        found = json.loads(await up.ok("task", "results", "train", "--json"))
        assert [each["name"] for each in found["results"]][:2] == ["epoch-1", "epoch-2"]
        weights = Path(found["folder"]) / "weights"
        assert await asyncio.to_thread(weights.read_text) == "w"
        await up.ok("task", "delete", "train")
        code, _, err = await up.run("task", "show", "train")
        assert (code, "there is no task train" in err) == (1, True)


async def test_the_gateways_refusal_of_a_chart_is_passed_on(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        where = ("--gpu", "H100", "--instance-type", "NCP.GPU.H100_1x")
        chart = ("--helm-chart", "oci://registry.example/charts/train:1.0.0")
        (tmp_path / "values.yaml").write_text("epochs: 3\n")
        values = ("--values", str(tmp_path / "values.yaml"))
        code, out, err = await Command(platform).run("task", "run", *chart, *values, *where)
    assert (code, out) == (1, "")
    assert "tasks from charts are not run by this release" in err
