"""The fine-tuning of examples/digits on a platform that takes its place away in the middle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np

from nvcf_cli.task_results import download
from tests.integration.tasks.conftest import HEAD, Tasks
from tests.integration.tasks.test_results_in_the_platform import api
from tests.integration.test_task_examples import DIGITS, start

WAITS = HEAD + "while not Path(os.environ['GO']).exists():\n    time.sleep(0.05)\n"
VARIABLES = {"STEPS": "3000", "OPENBLAS_NUM_THREADS": "1"}


def undisturbed(folder: Path) -> None:
    """Run the example to its end, without a platform."""
    process: subprocess.Popen[bytes] = start("fine_tune.py", folder, **VARIABLES)
    try:
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()


def logs(folder: Path) -> str:
    """Return what all tasks have printed."""
    return "".join(each.read_text() for each in folder.rglob("*-task.log"))


async def test_fine_tuning_that_is_preempted_ends_with_the_same_weights(tasks: Tasks, tmp_path: Path) -> None:
    go = tmp_path / "files" / "go"
    await tasks.submit(WAITS, {"GO": str(go)})
    process = {
        "python": sys.executable,
        "file": str(DIGITS / "fine_tune.py"),
        "workingDirectory": str(DIGITS),
        "environment": VARIABLES,
    }
    body = {"name": "tune", "process": process, "preemptible": True, "resultHandlingStrategy": "UPLOAD"}
    answer = await tasks.plane.platform.call("POST", "/v1/nvct/tasks", body)
    task_id = str(answer["task"]["id"])
    while ((await tasks.get(task_id)).get("percentComplete") or 0) < 10:
        await asyncio.sleep(0.1)
    urgent = await tasks.submit("print('now')\n", priority=10)
    assert (await tasks.over(urgent))["status"] == "COMPLETED"
    tuned = await tasks.over(task_id)
    assert (tuned["status"], tuned["preemptions"]) == ("COMPLETED", 1), tuned
    go.touch()
    async with api(tasks) as client:
        await download(client, tuned, tmp_path / "tuned")
    await asyncio.to_thread(undisturbed, tmp_path / "whole")
    with np.load(tmp_path / "tuned" / "model.npz") as one, np.load(tmp_path / "whole" / "model.npz") as other:
        assert int(one["step"]) == 3300
        # Instances may have other numbers of threads, so sums are rounded otherwise.
        assert all(np.allclose(one[name], other[name], atol=1e-4) for name in other.files)
    assert "goes on at step" in logs(tmp_path)
