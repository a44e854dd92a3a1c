"""Many tasks while every part of the platform is killed, and workers that fall silent."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.tasks.conftest import HEAD, OVER, Tasks
from tests.support.platform.compute_plane import running_plane
from tests.support.platform.gateways import control_flags as plane_flags
from tests.support.waiting import eventually

COUNT = 120
# It stands in for Python: the kernel releases the lock of a run that was killed.
PROGRAM = """#!/bin/sh
exec 9> "$MARKS/$NVCT_TASK_ID.lock"
flock -n 9 || { echo "$NVCT_TASK_ID" >> "$MARKS/twice"; exit 1; }
echo "$NVCT_TASK_ID" >> "$MARKS/starts"
sleep 1
"""
REPORTING = (
    HEAD
    + """
def main(run: Task):
    number = 0
    while not Path(os.environ["GO"]).exists() and not run.cancelled:
        number += 1
        run.progress(50, name=f"step-{number}")
        time.sleep(0.5)
task(main)
"""
)


def body(folder: Path, number: int) -> dict[str, Any]:
    source = {
        "python": str(folder / "program"),
        "file": str(folder / "program"),
        "workingDirectory": str(folder),
        "environment": {"MARKS": str(folder)},
    }
    retry = {"limit": 10}
    return {"name": f"t-{number}", "process": source, "retry": retry, "preemptible": number % 2 == 0}


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_kills_of_every_part_among_many_tasks_lose_none_and_run_none_twice_at_once(
    tmp_path: Path,
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    (marks / "program").write_text(PROGRAM)
    (marks / "program").chmod(0o755)
    agent = ("--cpu-slots", "8", "--instance-uid-range", "none")
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("local", *agent)
        wanted = [body(marks, number) for number in range(COUNT)]
        for first in range(0, COUNT, 60):
            several = {"tasks": wanted[first : first + 60]}
            await plane.platform.call("POST", "/v1/nvct/tasks/bulk", several)
        version = await plane.deploy(
            {"minInstances": 0, "maxInstances": 2}, scaling={"scaleToZeroDelay": 1.0}
        )

        async def counts() -> Counter[str]:
            answer = await plane.platform.call("GET", "/v1/nvct/tasks?limit=1000")
            return Counter(each["status"] for each in answer["tasks"])

        async def until_done(share: float) -> None:
            async def reached() -> bool:
                return (await counts())["COMPLETED"] >= share * COUNT

            await eventually(reached, f"{share} are done", 120, story=plane.story, interval=0.2)

        await until_done(0.1)
        await plane.ask(version, 1)
        gateway = plane.platform.gateways.pop()
        gateway.child.process.send_signal(signal.SIGKILL)
        await gateway.child.wait()
        address = gateway.url.removeprefix("http://")
        control = plane_flags(plane.platform.broker)
        await plane.platform.start_gateway("--http", address, "--grpc", gateway.grpc, *control)
        await until_done(0.3)
        plane.autoscalers[0].process.send_signal(signal.SIGKILL)
        await plane.start_autoscaler()
        await until_done(0.45)
        await plane.platform.broker.kill()
        await plane.platform.broker.start()
        await until_done(0.6)
        await plane.kill_cluster("local")
        await plane.start_agent("local", *agent)
        await plane.ask(version, 2)

        async def all_over() -> bool:
            return sum(count for status, count in (await counts()).items() if status in OVER) == COUNT

        await eventually(all_over, "all are over", 180, story=plane.story, interval=0.5)
        assert await counts() == {"COMPLETED": COUNT}
        assert not (marks / "twice").exists()
        starts = Counter((marks / "starts").read_text().split())
        assert len(starts) == COUNT
        answer = await plane.platform.call("GET", "/v1/nvct/tasks?limit=1000")
        again = sum(each.get("retries", 0) + each.get("preemptions", 0) for each in answer["tasks"])
        assert sum(starts.values()) <= COUNT + again


@pytest.mark.slow
async def test_a_worker_that_falls_silent_ends_its_task_or_has_it_run_again(tmp_path: Path) -> None:
    """The limit is 6 s here, not 4 minutes. Every report is a sign of life."""
    async with running_plane(tmp_path, flags=("--task-silent-after", "6")) as plane:
        await plane.start_agent("local", "--cpu-slots", "3", "--instance-uid-range", "none")
        (tmp_path / "files").mkdir()
        tasks = Tasks(plane, tmp_path / "files")
        go = {"GO": str(tmp_path / "go")}
        grace = "PT1S"
        healthy = await tasks.submit(REPORTING, go)
        silent = await tasks.submit(REPORTING, go, terminationGracePeriodDuration=grace)
        again = await tasks.submit(REPORTING, go, terminationGracePeriodDuration=grace, retry={"limit": 1})
        for task_id in (healthy, silent, again):

            async def reported(task_id: str = task_id) -> bool:
                return bool((await tasks.get(task_id)).get("percentComplete"))

            await eventually(reported, "it reports")
        for task_id in (silent, again):
            (instance,) = (await tasks.get(task_id))["instances"]
            psutil.Process(instance["pid"]).send_signal(signal.SIGSTOP)
        over = await tasks.over(silent)
        assert over["status"] == "ERRORED"
        assert "silent for" in over["healthInfo"]["error"]

        async def second_run() -> bool:
            found = await tasks.get(again)
            return (found["status"], found["launches"], found.get("retries")) == ("RUNNING", 2, 1)

        await eventually(second_run, "it runs again", story=plane.story)
        assert (await tasks.get(healthy))["status"] == "RUNNING"
        await asyncio.to_thread((tmp_path / "go").touch)
        for task_id in (healthy, again):
            assert (await tasks.over(task_id))["status"] == "COMPLETED"
