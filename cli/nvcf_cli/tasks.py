"""Tasks as the commands see them: submitted, found by a name, followed to their end."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

from nvcf_cli.api import Api, ApiProblem, Json, objects
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.state import Installation
from nvcf_cli.screen import StatusLine, cell
from nvcf_cli.tailing import LogFile, readable
from nvcf_proto.durations import duration_text
from nvcf_proto.ids import is_id
from nvcf_proto.models import TaskStatus

BASE = "/v1/nvct/tasks"
POLL_SECONDS = 0.3
PLATFORM = "platform"
MOST_LOOKED_AT = 1000
_OVER = frozenset(each.value for each in TaskStatus if each.is_over)


@dataclass(frozen=True)
class TaskRequest:
    """What is to be submitted, checked and with absolute paths. Durations are in seconds.

    `source` has the members that say what runs: `process`, `helmChart`, or `containerImage` with what
    belongs to it.
    """

    name: str
    source: Json
    specification: Json = field(default_factory=dict)
    max_runtime: float | None = None
    max_queued: float | None = None
    grace: float | None = None
    results: str | None = None
    tags: tuple[str, ...] = ()
    secrets: tuple[Json, ...] = field(default=(), repr=False)
    scheduling: Json = field(default_factory=dict)
    """`priority`, `preemptible` and `retry`, as far as they were given."""

    def body(self) -> Json:
        """Return the body of the call."""
        durations = {
            "maxRuntimeDuration": self.max_runtime,
            "maxQueuedDuration": self.max_queued,
            "terminationGracePeriodDuration": self.grace,
        }
        return {
            "name": self.name,
            **self.source,
            "gpuSpecification": self.specification,
            "tags": list(self.tags),
            **{name: duration_text(seconds) for name, seconds in durations.items() if seconds is not None},
            **self.scheduling,
            **({"secrets": list(self.secrets)} if self.secrets else {}),
            **({"resultHandlingStrategy": "UPLOAD"} if self.results else {}),
            **({"resultsLocation": self.results} if self.results not in (None, PLATFORM) else {}),
        }


def process_source(file: Path, python: Path, environment: dict[str, str]) -> Json:
    """Return the source of a task that is a file of this machine."""
    process = {
        "python": str(python),
        "file": str(file),
        "workingDirectory": str(file.parent),
        "environment": environment,
    }
    return {"process": process}


def is_over(task: Json) -> bool:
    """Return whether a task stays as it is."""
    return task.get("status") in _OVER


def error_of(task: Json) -> str:
    """Return why a task failed, log lines in it in readable form; empty if it did not."""
    text = cell(task.get("healthInfo") or {}, "error")
    return "\n".join(readable(line) for line in text.split("\n"))


async def submit(api: Api, request: TaskRequest) -> Json:
    """Submit a task and return it."""
    return _task(await api.call("POST", BASE, request.body()))


async def get(api: Api, task_id: str) -> Json:
    """Return a task by its id."""
    return _task(await api.call("GET", f"{BASE}/{quote(task_id, safe='')}"))


async def list_tasks(api: Api, status: str | None = None, limit: int = MOST_LOOKED_AT) -> list[Json]:
    """Return the newest tasks."""
    query = {"status": status, "limit": str(limit)}
    text = urlencode({name: value for name, value in query.items() if value})
    return objects(await api.call("GET", f"{BASE}?{text}"), "tasks")


async def find(api: Api, text: str) -> Json:
    """Return the task with this id, the beginning of an id, or the newest one of this name."""
    if is_id(text):
        try:
            return await get(api, text)
        except ApiProblem as problem:
            if problem.status != 404:
                raise
            raise CliError(f"there is no task {text}") from None
    known = await list_tasks(api)
    named = [each for each in known if each.get("name") == text]
    if named:
        return named[0]
    found = [each for each in known if str(each.get("id", "")).startswith(text.lower())]
    if len(found) > 1:
        raise UsageError(f"several tasks have an id that begins with {text}: give more of it")
    if not found:
        raise CliError(f"there is no task {text}: nvcf task list shows what there is")
    return found[0]


async def cancel(api: Api, task: Json) -> Json:
    """Cancel a task and return it."""
    return _task(await api.call("POST", f"{BASE}/{task['id']}/cancel"))


async def events(api: Api, task: Json) -> list[Json]:
    """Return what has happened to a task, oldest first."""
    return objects(await api.call("GET", f"{BASE}/{task['id']}/events"), "events")[::-1]


async def results(api: Api, task: Json) -> list[Json]:
    """Return what a task has reported, oldest first."""
    return objects(await api.call("GET", f"{BASE}/{task['id']}/results"), "results")[::-1]


async def delete(api: Api, task: Json) -> None:
    """Remove the record of a task that is over."""
    await api.call("DELETE", f"{BASE}/{task['id']}")


def _task(answer: Json) -> Json:
    task = answer.get("task")
    if not isinstance(task, dict):
        raise CliError("the platform answered without the task: does it run tasks?")
    return task


# on this machine


def instance_id(task: Json) -> str | None:
    """Return the id of a task's instance, None before it was launched."""
    return f"0-sr-{task['requestId']}-task" if task.get("requestId") else None


def log_path(task: Json, installation: Installation) -> Path | None:
    """Return the log of a task, if this machine has it."""
    name = instance_id(task)
    if name is None:
        return None
    folder = installation.cluster(str(task.get("clusterName") or "local"))
    return next(iter(sorted((folder / "logs").glob(f"*/{name}.log"))), None)


def results_path(task: Json, installation: Installation) -> Path | None:
    """Return the folder with a task's results, if this machine has it."""
    name = instance_id(task)
    if name is None:
        return None
    folder = installation.cluster(str(task.get("clusterName") or "local"))
    found = (folder / "instances" / name / "results", folder / "results" / name)
    return next((each for each in found if each.is_dir()), None)


def progress_text(task: Json) -> str:
    """Return how far a task is, in one line."""
    status, percent = str(task.get("status")), task.get("percentComplete")
    text = f"{cell(task, 'name')}: {status}"
    if percent is not None:
        filled = int(percent) // 5
        text += f" [{'#' * filled}{'.' * (20 - filled)}] {percent} %"
    why = task.get("waitingFor") if status == TaskStatus.QUEUED else task.get("stopping")
    if why:
        text += f" ({why})"
    return text


async def follow(
    api: Api, task: Json, installation: Installation, write: Callable[[str], object] = sys.stdout.write
) -> Json:
    """Show a task's progress, and its output where this machine has it, until it is over; return it."""
    log: LogFile | None = None
    with StatusLine() as line:
        while True:
            task = await get(api, str(task["id"]))
            line.show(progress_text(task))
            if log is None and (path := log_path(task, installation)) is not None:
                log = LogFile(path)
            over = is_over(task)
            for text in await asyncio.to_thread(log.new_lines) if log is not None else ():
                write(readable(text) + "\n")
            if over:
                return task
            await asyncio.sleep(POLL_SECONDS)
