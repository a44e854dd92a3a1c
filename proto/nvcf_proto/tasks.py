"""The state machine of a task (protocol.md, section 12.3). Pure; times are Unix seconds.

    QUEUED -> LAUNCHED -> RUNNING -> COMPLETED | ERRORED | CANCELED | EXCEEDED_MAX_RUNTIME_DURATION
       |         |
       |         +-> QUEUED again, if its order was certainly never taken up
       |         +-> QUEUED again from RUNNING as well: it was preempted, or its policy has it run again
       +-> CANCELED | ERRORED | EXCEEDED_MAX_QUEUED_DURATION

Every function returns the task after an event. A task that is over, or that the event is not about, is
returned as it was: the very same object.
"""

from __future__ import annotations

import math
from typing import Any
from uuid import UUID, uuid5

from nvcf_proto.models import Instance, InstanceState
from nvcf_proto.models.tasks import (
    LONGEST_EVENT,
    LONGEST_REASON,
    MOST_EVENTS,
    PreviousRun,
    RetryOn,
    Stopping,
    Task,
    TaskEvent,
    TaskStatus,
)
from nvcf_proto.task_policies import (
    cause_of,
    is_certainly_over,
    may_be_preempted,
    may_retry,
    stays_unknown,
)

HEARTBEAT_SECONDS = 60.0
"""How often the worker of a task sends heartbeats."""
SILENT_AFTER_SECONDS = 240.0
"""After so much silence a task that runs is ERRORED."""
LAUNCH_SECONDS = 480.0
"""A task whose order was taken up, and that does not run after this time, is ERRORED."""
CONTAINER_LAUNCH_SECONDS = 2 * 3600.0 + 300.0
"""The same for a container: images, models and resources may be large. Its agent gives it 2 hours."""
RUNTIME_SLACK_SECONDS = 300.0
"""So long a task's own worker may take to end it at its maximum run time."""
EXIT_SECONDS = 60.0
"""So long the process of a task that has ended may take to exit."""
RETENTION_SECONDS = 7 * 24 * 3600.0
"""How long a task that is over stays readable."""
LAUNCH_PAUSES = (1.0, 60.0)
"""Shortest and longest pause before a task is launched again whose order was not taken up."""
UNKNOWN_END = "whether this run has ended is not known, so that no other one begins"

_MAX_RUNTIME_EXIT = 124
_NEXT: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.QUEUED: frozenset(
        (
            TaskStatus.LAUNCHED,
            TaskStatus.CANCELED,
            TaskStatus.ERRORED,
            TaskStatus.EXCEEDED_MAX_QUEUED_DURATION,
        )
    ),
    TaskStatus.LAUNCHED: frozenset(
        (
            TaskStatus.QUEUED,
            TaskStatus.RUNNING,
            TaskStatus.COMPLETED,
            TaskStatus.CANCELED,
            TaskStatus.ERRORED,
            TaskStatus.EXCEEDED_MAX_RUNTIME_DURATION,
        )
    ),
    TaskStatus.RUNNING: frozenset(
        (
            TaskStatus.QUEUED,
            TaskStatus.COMPLETED,
            TaskStatus.CANCELED,
            TaskStatus.ERRORED,
            TaskStatus.EXCEEDED_MAX_RUNTIME_DURATION,
        )
    ),
}


def may_follow(before: TaskStatus, after: TaskStatus) -> bool:
    """Return whether a task can go from one status to another."""
    return after in _NEXT.get(before, frozenset())


def noted(task: Task, now: float, message: str, **changes: Any) -> Task:
    """Return the task with an event, and other changes."""
    event = TaskEvent(str(uuid5(UUID(task.id), f"event {task.event_count}")), now, message[:LONGEST_EVENT])
    events = (*task.events, event)[-MOST_EVENTS:]
    return task.replace(updated_at=now, event_count=task.event_count + 1, events=events, **changes)


def _moved(task: Task, status: TaskStatus, now: float, message: str, **changes: Any) -> Task:
    if not may_follow(task.status, status):
        return task
    return noted(task, now, message, status=status, waiting_for=None, **changes)


def launched(task: Task, request_id: str, cluster_id: str, cluster: str, now: float) -> Task:
    """Return the task with a place: `request_id` is the id of its order."""
    return _moved(
        task,
        TaskStatus.LAUNCHED,
        now,
        f"launched in cluster {cluster}",
        request_id=request_id,
        cluster_id=cluster_id,
        launches=task.launches + 1,
        launched_at=now,
    )


def requeued(task: Task, reason: str, now: float) -> Task:
    """Return a launched task queued again. Only for one whose order was certainly never taken up."""
    return _requeued(task, reason, now, task.launches)


def _requeued(task: Task, reason: str, now: float, failures: int, **changes: Any) -> Task:
    shortest, longest = LAUNCH_PAUSES
    pause = min(longest, shortest * 2.0 ** min(failures, 16))
    return _moved(
        task,
        TaskStatus.QUEUED,
        now,
        f"queued again: {reason}",
        request_id="",
        cluster_id=None,
        launched_at=None,
        started_at=None,
        last_heartbeat_at=None,
        stopping=None,
        not_before=now + pause,
        **changes,
    )


def preempted(task: Task, reason: str, now: float) -> Task:
    """Return a preemptible task whose run has to end. It waits again when nothing of the run is left."""
    if not may_be_preempted(task):
        return task
    return noted(
        task,
        now,
        f"its run is ended: {reason}",
        stopping=Stopping(f"preempted, {reason}"[:LONGEST_REASON], now),
        preemptions=task.preemptions + 1,
    )


def failed(task: Task, cause: RetryOn, reason: str, now: float, *, exits: bool = False) -> Task:
    """Return the task after a failure: over, or with a run that ends before the next one, by its policy.

    `exits`: its process has told the failure, and ends by itself.
    """
    if task.stopping is not None or task.status not in (TaskStatus.LAUNCHED, TaskStatus.RUNNING):
        return task
    if not may_retry(task, cause):
        return ended(task, TaskStatus.ERRORED, reason, now)
    retries, limit = task.retries + 1, 0 if task.retry is None else task.retry.limit
    return noted(
        task,
        now,
        f"run {task.launches} failed ({cause.value.lower()}): {reason}",
        stopping=Stopping(f"retry {retries} of {limit}", now, exits),
        retries=retries,
    )


def ended_run(task: Task, instance: Instance, now: float) -> Task:
    """Return the task, queued again, whose run has ended that was to end."""
    if task.stopping is None or not task.cluster_id:
        return task
    previous = PreviousRun(instance.id, task.cluster_id)
    return _requeued(task, task.stopping.reason, now, task.retries, previous=previous, queued_at=now)


def running(task: Task, now: float) -> Task:
    """Return the task that has begun to run."""
    return _moved(task, TaskStatus.RUNNING, now, "running", started_at=now)


def ended(task: Task, status: TaskStatus, reason: str, now: float) -> Task:
    """Return the task that is over. `reason` is for people; of a failure it becomes the task's error."""
    failed = status in (TaskStatus.ERRORED, *_EXCEEDED)
    changes: dict[str, Any] = {"ended_at": now}
    if failed:
        changes["error"] = reason[:LONGEST_REASON]
    if status is TaskStatus.COMPLETED:
        changes["percent_complete"] = 100
    word = status.value.lower().replace("_", " ")
    return _moved(task, status, now, f"{word}: {reason}" if reason else word, stopping=None, **changes)


_EXCEEDED = (TaskStatus.EXCEEDED_MAX_RUNTIME_DURATION, TaskStatus.EXCEEDED_MAX_QUEUED_DURATION)


def heard(task: Task, now: float, percent: int | None = None) -> Task:
    """Return the task after a sign of life of its worker. The percentage never falls."""
    if task.status.is_over:
        return task
    known = [each for each in (task.percent_complete, percent) if each is not None]
    return task.replace(last_heartbeat_at=now, updated_at=now, percent_complete=max(known, default=None))


def after_instance(task: Task, instance: Instance, now: float) -> Task:
    """Return the task after what its cluster's agent has reported."""
    if task.status.is_over or instance.request_id != task.request_id:
        return task
    match instance.state:
        case InstanceState.RUNNING:
            return running(task, now)
        case InstanceState.COMPLETED if instance.exit_code == 0:
            return ended(task, TaskStatus.COMPLETED, "", now)
        case InstanceState.COMPLETED | InstanceState.FAILED:
            return _after_end(task, instance, now)
        case _:
            return task


def _after_end(task: Task, instance: Instance, now: float) -> Task:
    reason = instance.reason or "its process ended"
    if instance.exit_code == _MAX_RUNTIME_EXIT:
        return ended(task, TaskStatus.EXCEEDED_MAX_RUNTIME_DURATION, reason, now)
    never = instance.acknowledged_at is None and instance.reported_at is None and instance.ready_at is None
    if never and task.status is TaskStatus.LAUNCHED:
        # An agent starts nothing before its acknowledgement is accepted, and that of a closed request is not.
        return requeued(task, reason, now)
    known = failed(task, cause_of(instance), reason, now)
    if is_certainly_over(known, instance, now):
        return ended_run(known, instance, now)
    if stays_unknown(known, instance, now):
        return ended(known, TaskStatus.ERRORED, f"{reason}; {UNKNOWN_END}", now)
    return known


def explained(task: Task, instance: Instance) -> Task:
    """Return a failed task with the end of its output, which its agent reports after its worker's word."""
    known, said = task.error or "", instance.reason or ""
    ours = task.status is TaskStatus.ERRORED and instance.request_id == task.request_id
    if not ours or "\n" in known or "\n" not in said or instance.state is not InstanceState.FAILED:
        return task
    output = said.partition("\n")[2]
    return task.replace(error=f"{known}\n{output}"[:LONGEST_REASON])


def after_time(
    task: Task,
    instance: Instance | None,
    now: float,
    listened: float = math.inf,
    silent_after: float = SILENT_AFTER_SECONDS,
) -> Task:
    """Return the task after the limits that are over by now. `instance`: its record, if there is one.

    `listened` is for how many seconds the caller could hear of tasks: silence from before means nothing.
    """
    match task.status:
        case TaskStatus.QUEUED if now - task.waits_since > task.max_queued:
            waited = f"no place within {task.max_queued_duration}"
            why = f"{waited}: {task.waiting_for}" if task.waiting_for else waited
            return ended(task, TaskStatus.EXCEEDED_MAX_QUEUED_DURATION, why, now)
        case TaskStatus.LAUNCHED if task.launched_at is not None and instance is not None:
            limit = LAUNCH_SECONDS if task.process is not None else CONTAINER_LAUNCH_SECONDS
            if instance.acknowledged_at is not None and now - instance.acknowledged_at > limit:
                text = f"its cluster took it up and did not start it within {limit:g} s"
                return failed(task, RetryOn.INFRASTRUCTURE, text, now)
            return task
        case TaskStatus.RUNNING:
            return _overdue(task, now, listened, silent_after)
        case _:
            return task


def _overdue(task: Task, now: float, listened: float, silent_after: float) -> Task:
    began, limit = now if task.started_at is None else task.started_at, task.max_runtime
    if limit is not None and now - began > limit + RUNTIME_SLACK_SECONDS:
        text = f"it ran longer than {task.max_runtime_duration}, and its worker did not end it"
        return ended(task, TaskStatus.EXCEEDED_MAX_RUNTIME_DURATION, text, now)
    silence = now - (began if task.last_heartbeat_at is None else max(began, task.last_heartbeat_at))
    if min(silence, listened) > silent_after:
        text = f"its worker was silent for {silence:.0f} s"
        return failed(task, RetryOn.INFRASTRUCTURE, text, now)
    return task


def is_gone(task: Task, now: float) -> bool:
    """Return whether a task is over for so long that its worker must have exited."""
    return task.ended_at is not None and now - task.ended_at > task.grace + EXIT_SECONDS


def must_end(task: Task, now: float) -> bool:
    """Return whether the instance of a task is to be terminated now.

    A process that has said how it ended gets some time to exit by itself.
    """
    if not task.status.is_over:
        stopping = task.stopping
        return stopping is not None and (not stopping.exits or now - stopping.at > EXIT_SECONDS)
    by_itself = task.status in (TaskStatus.COMPLETED, TaskStatus.ERRORED)
    return not by_itself or now - (now if task.ended_at is None else task.ended_at) > EXIT_SECONDS
