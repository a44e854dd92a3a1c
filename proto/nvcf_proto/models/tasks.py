"""Tasks: work that runs once to its end. Their records, and the results that they have reported."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Self

from msgspec import Meta, field

from nvcf_proto.durations import duration_seconds
from nvcf_proto.models.containers import TaskContainer
from nvcf_proto.models.functions import ProcessSource
from nvcf_proto.models.record import Count, Id, Record, Text
from nvcf_proto.models.specifications import DeploymentSpecification

TASKS_BUCKET = "nvcf_tasks"
TASK_RESULTS_BUCKET = "nvcf_task_results"

MOST_EVENTS = 32
LONGEST_EVENT = 512
MOST_RESULTS = 100
MOST_RESULTS_BYTES = 256 * 1024
"""What the results of a task may take in its record; the newest one is always smaller."""
LONGEST_METADATA = 2048
LONGEST_REASON = 2000
DEFAULT_MAX_QUEUED = "PT72H"
DEFAULT_GRACE = "PT1H"
MOST_RETRIES = 10
PRIORITIES = (-100, 100)
SPECIFICATION_ID = "task"
"""Id of a task's only GPU specification, in records of instances and in orders."""

Reason = Annotated[str, Meta(max_length=LONGEST_REASON)]
Percent = Annotated[int, Meta(ge=0, le=100)]


class TaskStatus(StrEnum):
    """Life of a task."""

    QUEUED = "QUEUED"
    LAUNCHED = "LAUNCHED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    ERRORED = "ERRORED"
    CANCELED = "CANCELED"
    EXCEEDED_MAX_RUNTIME_DURATION = "EXCEEDED_MAX_RUNTIME_DURATION"
    EXCEEDED_MAX_QUEUED_DURATION = "EXCEEDED_MAX_QUEUED_DURATION"

    @property
    def is_over(self) -> bool:
        """Whether a task stays as it is."""
        return self not in (TaskStatus.QUEUED, TaskStatus.LAUNCHED, TaskStatus.RUNNING)


class ResultHandling(StrEnum):
    """What becomes of a task's results: they are uploaded to a store, or stay where the task put them."""

    NONE = "NONE"
    UPLOAD = "UPLOAD"


class RetryOn(StrEnum):
    """What a task is run again for.

    `INFRASTRUCTURE`: its node, agent or worker was lost, or its cluster did not start it. `FAILURE`: its own
    process failed.
    """

    INFRASTRUCTURE = "INFRASTRUCTURE"
    FAILURE = "FAILURE"


class RetryPolicy(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[ext] How often, and after what, a task is run again."""

    limit: Annotated[int, Meta(ge=1, le=MOST_RETRIES)]
    on: Annotated[tuple[RetryOn, ...], Meta(min_length=1, max_length=len(RetryOn))] = (
        RetryOn.INFRASTRUCTURE,
    )


class Stopping(Record, frozen=True):
    """Why the present run of a task ends before the task waits again.

    `exits`: its process has said so itself, and gets the time to exit.
    """

    reason: Reason
    at: float
    exits: bool = False


class PreviousRun(Record, frozen=True):
    """The last run that ended: its instance has the results folder that the next one continues."""

    instance_id: Text
    cluster_id: Text


class TaskEvent(Record, frozen=True):
    """Something that has happened to a task, for people."""

    id: Id = field(name="eventId")
    at: float
    message: Annotated[str, Meta(max_length=LONGEST_EVENT)]


class Task(TaskContainer, frozen=True, kw_only=True):
    """One task: a `process` or a container. Key: its id. Each change is guarded by the record's revision.

    `request_id` is that of the order which launched it: at most one at a time, so a task never runs twice at
    the same time. `launches` counts them. `waiting_for` says why a queued task has no place, `not_before`
    (Unix time) when it may be launched again. `events` are the newest MOST_EVENTS of `event_count`.
    `queued_at`: since when it waits, if it has run before.
    """

    if_given: ClassVar[frozenset[str]] = frozenset(
        (
            "containerEnvironment",
            "hasSecrets",
            "models",
            "preemptible",
            "preemptions",
            "priority",
            "resources",
            "retries",
            "tags",
        )
    )

    id: Id = field(name="taskId")
    nca_id: Text
    name: Text
    created_at: float
    updated_at: float
    status: TaskStatus = TaskStatus.QUEUED
    specification: DeploymentSpecification = field(name="gpuSpecification")
    process: ProcessSource | None = None
    description: Text | None = None
    tags: tuple[str, ...] = ()
    max_runtime_duration: Text | None = None
    max_queued_duration: Text = DEFAULT_MAX_QUEUED
    termination_grace_period_duration: Text = DEFAULT_GRACE
    result_handling_strategy: ResultHandling = ResultHandling.NONE
    results_location: Text | None = None
    has_secrets: bool = False
    priority: int = 0
    preemptible: bool = False
    retry: RetryPolicy | None = None

    request_id: Text = ""
    cluster_id: Text | None = None
    launches: Count = 0
    not_before: float = 0.0
    waiting_for: Reason | None = None
    queued_at: float | None = None
    stopping: Stopping | None = None
    previous: PreviousRun | None = None
    retries: Count = 0
    preemptions: Count = 0
    percent_complete: Percent | None = None
    last_heartbeat_at: float | None = None
    launched_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: Reason | None = None
    event_count: Count = 0
    events: Annotated[tuple[TaskEvent, ...], Meta(max_length=MOST_EVENTS)] = ()

    @property
    def instance_key(self) -> str:
        """Key of its instance's record."""
        return f"{self.id}.{self.request_id}"

    @property
    def max_runtime(self) -> float | None:
        """Seconds that it may run, None without a limit."""
        return None if self.max_runtime_duration is None else duration_seconds(self.max_runtime_duration)

    @property
    def max_queued(self) -> float:
        """Seconds that it may wait for a place."""
        return duration_seconds(self.max_queued_duration)

    @property
    def waits_since(self) -> float:
        """When it began to wait for a place, the last time."""
        return self.created_at if self.queued_at is None else self.queued_at

    @property
    def grace(self) -> float:
        """Seconds that it gets to end."""
        return duration_seconds(self.termination_grace_period_duration)


class TaskResult(Record, frozen=True):
    """A result as the task has reported it. `metadata` is text of JSON."""

    id: Id = field(name="resultId")
    at: float
    name: Text
    metadata: Annotated[str, Meta(max_length=LONGEST_METADATA)] = ""


class TaskResults(Record, frozen=True):
    """The newest results of a task, at most MOST_RESULTS and MOST_RESULTS_BYTES. Key: the task's id."""

    id: Id = field(name="taskId")
    nca_id: Text
    results: Annotated[tuple[TaskResult, ...], Meta(max_length=MOST_RESULTS)] = ()

    def adding(self, result: TaskResult) -> Self:
        """Return the results with one more; one of the same name right before it is replaced."""
        kept = self.results
        if kept and kept[-1].name == result.name:
            kept = kept[:-1]
        kept = (*kept, result)[-MOST_RESULTS:]
        sizes = [len(each.to_json()) for each in kept]
        first, total = 0, sum(sizes)
        while first < len(kept) - 1 and total > MOST_RESULTS_BYTES:
            total -= sizes[first]
            first += 1
        return self.replace(results=kept[first:])
