"""Bodies of requests about tasks, and the records that they become. Pure."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from msgspec.structs import force_setattr

from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.management.function_bodies import Tags, VersionDescription, check_container
from nvcf_gateway.management.secret_bodies import SecretList, values_of
from nvcf_proto.durations import DURATION_PATTERN, duration_seconds
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import DeploymentSpecification, ProcessSource, ResultHandling, RetryPolicy, Task
from nvcf_proto.models.containers import TaskContainer
from nvcf_proto.models.record import Record, matching
from nvcf_proto.models.tasks import DEFAULT_GRACE, DEFAULT_MAX_QUEUED, PRIORITIES
from nvcf_proto.tasks import noted

MAX_BODY = 1024 * 1024
"""Values of secrets may need six bytes for each of theirs in JSON."""
MAX_RECORD = 32 * 1024
MOST_AT_ONCE = 100
LONGEST = 30 * 24 * 3600.0
_S3_LOCATION = r"s3://[a-z0-9][a-z0-9.-]{1,62}(/[A-Za-z0-9!_.*'()/-]*)?"
_KEY_SECRETS = frozenset(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
NOT_RUN = "tasks from charts are not run by this release: give containerImage, or process"
_ONLY_CHARTS = "only for tasks with helmChart, which this release does not run"
_PROCESS = "process"

Duration = Annotated[
    str, matching(DURATION_PATTERN, max_length=64, description="ISO 8601, for example PT1H30M.")
]
TaskName = Annotated[str, Meta(min_length=1, max_length=128)]
Kind = Annotated[str, Meta(min_length=1, max_length=128)]
Names = Annotated[tuple[Kind, ...], Meta(max_length=64)]


class TaskSpecification(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task needs, and where it may run. `regions` and `gpusPerInstance` are [ext]."""

    hints: ClassVar[dict[str, str]] = dict.fromkeys(("configuration", "helmValidationPolicy"), _ONLY_CHARTS)

    gpu: Kind = "CPU"
    instance_type: Kind = _PROCESS
    backend: Kind | None = None
    clusters: Names = ()
    regions: Names = ()
    gpus_per_instance: Annotated[int, Meta(ge=0, le=64)] = 0

    def stored(self) -> DeploymentSpecification:
        """Return it in the form that placement works with. Raises InvalidRecord."""
        return DeploymentSpecification(
            gpu=self.gpu,
            instance_type=self.instance_type,
            min_instances=0,
            max_instances=1,
            backend=self.backend,
            clusters=self.clusters,
            regions=self.regions,
            gpus_per_instance=self.gpus_per_instance,
        )


class TaskCreation(TaskContainer, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new task: a containerImage, or a `process` [ext], a Python file that the machine of an agent has.

    `priority`, `preemptible` and `retry` are [ext].
    """

    hints: ClassVar[dict[str, str]] = {"telemetries": "tasks of this release report to no endpoint"}

    name: TaskName
    gpu_specification: TaskSpecification = TaskSpecification()
    process: ProcessSource | None = None
    description: VersionDescription | None = None
    tags: Tags = ()
    max_runtime_duration: Duration | None = None
    max_queued_duration: Duration = DEFAULT_MAX_QUEUED
    termination_grace_period_duration: Duration | None = None
    result_handling_strategy: ResultHandling = ResultHandling.NONE
    results_location: Annotated[str, Meta(max_length=1024)] | None = None
    secrets: SecretList = ()
    priority: Annotated[int, Meta(ge=PRIORITIES[0], le=PRIORITIES[1])] = 0
    preemptible: bool = False
    retry: RetryPolicy | None = None

    def __post_init__(self) -> None:
        values_of(self.secrets)
        force_setattr(self, "tags", tuple(dict.fromkeys(self.tags)))
        self._check_results()
        self._check_source()
        runtime = _seconds("maxRuntimeDuration", self.max_runtime_duration)
        _seconds("maxQueuedDuration", self.max_queued_duration)
        grace = self.termination_grace_period_duration
        if grace is not None and duration_seconds(grace) > (LONGEST if runtime is None else runtime):
            raise InvalidRecord("terminationGracePeriodDuration", "expected at most maxRuntimeDuration")

    def _check_results(self) -> None:
        """Raise InvalidRecord unless the results can be uploaded as wanted."""
        location = self.results_location
        if location is None:
            return
        if self.result_handling_strategy is not ResultHandling.UPLOAD:
            raise InvalidRecord("resultsLocation", "only with resultHandlingStrategy UPLOAD")
        if not re.fullmatch(_S3_LOCATION, location):
            raise InvalidRecord(
                "resultsLocation", "expected s3://BUCKET/PREFIX, or none: the platform's store"
            )
        if missing := _KEY_SECRETS - {each.name for each in self.secrets}:
            names = " and ".join(sorted(missing))
            raise InvalidRecord("secrets", f"the key of the results' store is missing: {names}")

    def _check_source(self) -> None:
        if (self.process is None) == (self.container_image is None):
            raise InvalidRecord(_PROCESS, "give exactly one of process and containerImage")
        if self.process is None:
            if self.gpu_specification.instance_type == _PROCESS:
                reason = "needed with containerImage: an instance type of a cluster"
                raise InvalidRecord("gpuSpecification.instanceType", reason)
            check_container(self)
            if any("\n" in word for word in shlex.split(self.container_args or "")):
                reason = "a word has a line break, which a message cannot carry: put it into a variable"
                raise InvalidRecord("containerArgs", reason)
            return
        if self.process.handler is not None:
            raise InvalidRecord("process.handler", "a task is a whole file: call task(main) in it")
        for name in ("containerArgs", "containerEnvironment", "models", "resources", "workerMode"):
            if self.to_dict().get(name):
                raise InvalidRecord(name, "only for tasks with containerImage")

    @property
    def grace(self) -> str:
        """The time that the task gets to end, at most its run time."""
        if self.termination_grace_period_duration is not None:
            return self.termination_grace_period_duration
        limit = self.max_runtime_duration
        short = limit is not None and duration_seconds(limit) < duration_seconds(DEFAULT_GRACE)
        return limit if limit is not None and short else DEFAULT_GRACE


def _seconds(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    seconds = duration_seconds(text)
    if not 0 < seconds <= LONGEST:
        raise InvalidRecord(name, "expected more than nothing and at most P30D")
    return seconds


def read_creation(members: dict[str, Any], path: str = "") -> TaskCreation:
    """Return the task that is wanted. Raises HttpProblem 400, and 501 for what this release does not run."""
    if members.get("helmChart") is not None:
        raise HttpProblem(501, NOT_RUN, field=f"{path}.helmChart" if path else "helmChart")
    try:
        return TaskCreation.from_dict(members, path)
    except InvalidRecord as error:
        raise invalid_field(error) from None


def read_several(members: dict[str, Any]) -> list[TaskCreation]:
    """Return the tasks of `{"tasks": [...]}`. Raises HttpProblem 400 and 501."""
    found = members.get("tasks")
    if not isinstance(found, list) or not 1 <= len(found) <= MOST_AT_ONCE:
        raise HttpProblem(400, f"tasks: expected a list of 1 to {MOST_AT_ONCE} tasks", field="tasks")
    for index, each in enumerate(found):
        if not isinstance(each, dict):
            raise HttpProblem(400, f"tasks[{index}]: expected an object", field=f"tasks[{index}]")
    return [read_creation(each, f"tasks[{index}]") for index, each in enumerate(found)]


def new_task(wanted: TaskCreation, task_id: str, nca_id: str, by: str, now: float) -> Task:
    """Return the record of a new task. Raises HttpProblem 400."""
    try:
        task = Task(
            id=task_id,
            nca_id=nca_id,
            name=wanted.name,
            created_at=now,
            updated_at=now,
            specification=wanted.gpu_specification.stored(),
            process=wanted.process,
            **{name: getattr(wanted, name) for name in TaskContainer.__struct_fields__},
            description=wanted.description,
            tags=wanted.tags,
            max_runtime_duration=wanted.max_runtime_duration,
            max_queued_duration=wanted.max_queued_duration,
            termination_grace_period_duration=wanted.grace,
            result_handling_strategy=wanted.result_handling_strategy,
            results_location=wanted.results_location,
            has_secrets=bool(wanted.secrets),
            priority=wanted.priority,
            preemptible=wanted.preemptible,
            retry=wanted.retry,
        )
    except InvalidRecord as error:
        raise invalid_field(error) from None
    if len(task.to_json()) > MAX_RECORD:
        field = "containerEnvironment" if wanted.process is None else _PROCESS
        raise HttpProblem(400, f"{field}: the task takes more than {MAX_RECORD // 1024} KiB", field=field)
    return noted(task, now, f"queued by {by}")
