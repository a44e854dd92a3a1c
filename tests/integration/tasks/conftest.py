"""A platform with one agent that has a few CPU slots, and tasks on it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform.compute_plane import Plane, running_plane
from tests.support.waiting import WAIT, eventually

OVER = {
    "COMPLETED", "ERRORED", "CANCELED", "EXCEEDED_MAX_RUNTIME_DURATION", "EXCEEDED_MAX_QUEUED_DURATION",
}  # fmt: skip
HEAD = "import os, signal, sys, time\nfrom pathlib import Path\nfrom nvcf_worker import Task, task\n"
# It notes each start, and that it ran alone.
MARKED = (
    HEAD
    + """
marks = Path(os.environ["MARKS"])
mine = marks / "running"
mine.open("x").close()
with (marks / "starts").open("a") as file:
    file.write("start\\n")
def main(run: Task):
    try:
        while not (marks / "go").exists() and not run.cancelled:
            time.sleep(0.02)
    finally:
        mine.unlink()
task(main)
"""
)


@dataclass
class Tasks:
    """Calls about tasks, as a user makes them."""

    plane: Plane
    directory: Path

    def body(self, source: str, environment: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        """Return the body that submits a file with this source."""
        file = self.directory / f"task-{len(list(self.directory.glob('task-*.py')))}.py"
        file.write_text(source)
        process = {
            "python": sys.executable,
            "file": str(file),
            "workingDirectory": str(self.directory),
            "environment": environment or {},
        }
        return {"name": "training", "process": process} | fields

    async def submit(self, source: str, environment: dict[str, str] | None = None, **fields: Any) -> str:
        """Submit a task and return its id."""
        body = await asyncio.to_thread(self.body, source, environment, **fields)
        return str((await self.plane.platform.call("POST", "/v1/nvct/tasks", body))["task"]["id"])

    async def get(self, task_id: str) -> dict[str, Any]:
        """Return a task as it is shown."""
        found = await self.plane.platform.call("GET", f"/v1/nvct/tasks/{task_id}")
        return dict(found["task"])

    async def events(self, task_id: str) -> list[str]:
        """Return what has happened, oldest first."""
        found = await self.plane.platform.call("GET", f"/v1/nvct/tasks/{task_id}/events")
        return [each["message"] for each in reversed(found["events"])]

    async def cancel(self, task_id: str) -> None:
        """Cancel a task."""
        await self.plane.platform.call("POST", f"/v1/nvct/tasks/{task_id}/cancel")

    async def until(self, task_id: str, *statuses: str, timeout: float = WAIT) -> dict[str, Any]:
        """Wait until a task has one of these statuses; return the task."""
        found: dict[str, Any] = {}

        async def reached() -> bool:
            found.update(await self.get(task_id))
            return found["status"] in statuses

        await eventually(
            reached,
            f"task is {statuses}",
            timeout,
            story=lambda: f"{found}\n{self.plane.story()}",
            interval=0.1,
        )
        return found

    async def over(self, task_id: str) -> dict[str, Any]:
        """Wait until a task is over; return it."""
        return await self.until(task_id, *OVER)


@pytest.fixture
async def tasks(tmp_path: Path) -> AsyncIterator[Tasks]:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("local", "--cpu-slots", "2", "--instance-uid-range", "none")
        (tmp_path / "files").mkdir()
        yield Tasks(plane, tmp_path / "files")
