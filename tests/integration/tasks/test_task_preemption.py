"""Runs that end for others, or that fail, and are made again: with real processes of every part."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.tasks.conftest import HEAD, MARKED, Tasks
from tests.support.waiting import eventually

# Each run adds a line to the checkpoint, which it finds where the run before has left it.
RESUMED = (
    HEAD
    + """
def main(run: Task):
    folder = run.results_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    checkpoint = folder / "runs"
    before = checkpoint.read_text() if checkpoint.exists() else ""
    marks = Path(os.environ["MARKS"])
    mine = marks / "running"
    mine.open("x").close()
    run.progress(10)
    try:
        while not (marks / "go").exists() and not run.cancelled:
            time.sleep(0.02)
    finally:
        checkpoint.write_text(before + "run\\n")
        (marks / "seen").write_text(before)
        mine.unlink()
task(main)
"""
)


def marks_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


async def test_a_function_takes_the_place_of_a_preemptible_task_which_goes_on_later(
    tasks: Tasks, tmp_path: Path
) -> None:
    kept, moved = marks_of(tmp_path, "kept"), marks_of(tmp_path, "moved")
    left = await tasks.submit(MARKED, {"MARKS": str(kept)})
    preempted = await tasks.submit(RESUMED, {"MARKS": str(moved)}, preemptible=True)
    for task_id in (left, preempted):
        await tasks.until(task_id, "RUNNING")
    await eventually(lambda: (moved / "running").exists(), "it has begun")
    first = (await tasks.get(preempted))["requestId"]
    version = await tasks.plane.deploy({"minInstances": 1, "maxInstances": 1})
    waiting = await tasks.until(preempted, "QUEUED")
    assert waiting["preemptions"] == 1
    await tasks.plane.until(lambda: len(tasks.plane.running(version)) == 1, "the function has its place")
    words = "\n".join(await tasks.events(preempted))
    assert "needs its place" in words
    kept_running = await tasks.get(left)
    assert kept_running["status"] == "RUNNING", f"{kept_running} {tasks.plane.story()}"
    await tasks.plane.undeploy(version)
    await tasks.until(preempted, "RUNNING")
    await eventually(lambda: (moved / "running").exists(), "it has begun again")
    (moved / "go").touch()
    (kept / "go").touch()
    over = await tasks.over(preempted)
    assert (over["status"], over["launches"], over["requestId"] != first) == ("COMPLETED", 2, True), over
    assert (moved / "seen").read_text() == "run\n"
    assert (await tasks.over(left))["launches"] == 1


async def test_a_task_of_higher_priority_goes_first_and_retries_keep_to_the_policy(
    tasks: Tasks, tmp_path: Path
) -> None:
    low = [marks_of(tmp_path, f"low-{number}") for number in range(2)]
    running = [await tasks.submit(RESUMED, {"MARKS": str(each)}, preemptible=True) for each in low]
    for each in low:
        await eventually(lambda each=each: (each / "running").exists(), "it has begun")  # type: ignore[misc]
    assert (await tasks.over(await tasks.submit("print('now')\n", priority=10)))["status"] == "COMPLETED"
    ended = [each for each in running if (await tasks.get(each)).get("preemptions")]
    assert len(ended) == 1
    for each in low:
        (each / "go").touch()
    for task_id in running:
        assert (await tasks.over(task_id))["status"] == "COMPLETED"

    policy: dict[str, Any] = {"limit": 2, "on": ["FAILURE"]}
    failing = await tasks.over(await tasks.submit("raise SystemExit(9)\n", retry=policy))
    assert (failing["status"], failing["launches"], failing["retries"]) == ("ERRORED", 3, 2), failing
    words = await tasks.events(failing["id"])
    assert sum("failed (failure)" in each for each in words) == 2, words
    never = await tasks.over(await tasks.submit("raise SystemExit(9)\n", retry={"limit": 2}))
    assert (never["status"], never["launches"]) == ("ERRORED", 1), never


@pytest.mark.slow
async def test_a_task_outlives_its_worker_and_its_agent(tasks: Tasks, tmp_path: Path) -> None:
    marks = marks_of(tmp_path, "marks")
    task_id = await tasks.submit(RESUMED, {"MARKS": str(marks)}, retry={"limit": 3})
    await tasks.until(task_id, "RUNNING")
    await eventually(lambda: (marks / "running").exists(), "it has begun")
    (instance,) = (await tasks.get(task_id))["instances"]
    psutil.Process(instance["pid"]).send_signal(signal.SIGTERM)

    async def again(launches: int) -> bool:
        found = await tasks.get(task_id)
        return (found["status"], found["launches"]) == ("RUNNING", launches)

    await eventually(lambda: again(2), "it runs again", story=tasks.plane.story)
    await eventually(lambda: (marks / "running").exists(), "it has begun again")
    await tasks.plane.kill_cluster("local")
    # Killed, it could not tidy up.
    (marks / "running").unlink()
    await tasks.plane.start_agent("local", "--cpu-slots", "2", "--instance-uid-range", "none")
    await eventually(lambda: again(3), "it runs once more", story=tasks.plane.story)
    (marks / "go").touch()
    over = await tasks.over(task_id)
    assert (over["status"], over["retries"]) == ("COMPLETED", 2), over
    assert (marks / "seen").read_text() == "run\n"
