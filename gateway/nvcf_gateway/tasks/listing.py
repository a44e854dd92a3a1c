"""Filters and pages of lists of tasks. Pure."""

from __future__ import annotations

import base64
import binascii
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvcf_gateway.errors import HttpProblem
from nvcf_proto.models import Task, TaskStatus

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

Place = tuple[float, str]
"""Time of creation and id, by which tasks are ordered, the newest first."""


@dataclass(frozen=True)
class TaskQuery:
    """Which tasks of an account are wanted, and how many; `after` is the last one of the page before."""

    statuses: frozenset[TaskStatus] = frozenset()
    name: str | None = None
    tag: str | None = None
    limit: int = DEFAULT_LIMIT
    after: Place | None = None

    def matches(self, task: Task) -> bool:
        """Return whether a task is wanted."""
        return (
            (not self.statuses or task.status in self.statuses)
            and self.name in (None, task.name)
            and (self.tag is None or self.tag in task.tags)
            and (self.after is None or _place(task) < self.after)
        )


@dataclass(frozen=True)
class TaskPage:
    """Tasks, and the text by which the next page is asked for; None: there is none."""

    tasks: list[Task]
    cursor: str | None


def read_query(query: Mapping[str, str]) -> TaskQuery:
    """Read `status` (several with commas), `name`, `tag`, `limit` and `cursor`. Raises HttpProblem 400."""
    try:
        statuses = frozenset(TaskStatus(each) for each in query.get("status", "").split(",") if each)
    except ValueError:
        raise HttpProblem(400, f"status: expected some of {', '.join(TaskStatus)}", field="status") from None
    text = query.get("limit", str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT):
        raise HttpProblem(400, f"limit: expected 1 to {MAX_LIMIT}", field="limit")
    cursor = query.get("cursor")
    after = None if cursor is None else _read_cursor(cursor)
    return TaskQuery(statuses, query.get("name"), query.get("tag"), int(text), after)


def page_of(tasks: Iterable[Task], query: TaskQuery) -> TaskPage:
    """Return one page of the tasks that are wanted, the newest first."""
    wanted = (each for each in tasks if query.matches(each))
    found = heapq.nlargest(query.limit + 1, wanted, key=_place)
    page = found[: query.limit]
    more = len(found) > len(page)
    return TaskPage(page, _cursor(page[-1]) if more else None)


def _place(task: Task) -> Place:
    return task.created_at, task.id


def _cursor(task: Task) -> str:
    return base64.urlsafe_b64encode(f"{task.created_at!r} {task.id}".encode()).rstrip(b"=").decode()


def _read_cursor(text: str) -> Place:
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        seconds, task_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(" ")
        return float(seconds), task_id
    except (binascii.Error, ValueError):
        raise HttpProblem(400, "cursor: not one of this list", field="cursor") from None
