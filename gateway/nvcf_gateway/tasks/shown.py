"""Tasks as the API shows them. Pure."""

from __future__ import annotations

import json
from typing import Any

from nvcf_gateway.http.responses import timestamp
from nvcf_gateway.management.shown import INSTANCE_TIMES, shown
from nvcf_proto.models import Instance, Task
from nvcf_proto.models.tasks import TaskEvent, TaskResult

_TIMES = ("launchedAt", "startedAt", "endedAt", "lastHeartbeatAt", "createdAt")
_HIDDEN = (
    "taskId", "updatedAt", "clusterId", "notBefore", "eventCount", "events", "error",
    "hasSecrets", "queuedAt", "previous", "stopping",
)  # fmt: skip
_OF_DEPLOYMENTS = ("minInstances", "maxInstances", "maxRequestConcurrency")


def task_shown(
    task: Task, cluster: str | None, instance: Instance | None, secrets: list[str]
) -> dict[str, Any]:
    """Return the members of a task. `cluster` is the name of the one that it was launched in."""
    known = {name: value for name, value in shown(task, *_TIMES).items() if name not in _HIDDEN}
    specification = {
        name: value for name, value in known["gpuSpecification"].items() if name not in _OF_DEPLOYMENTS
    }
    health = {
        "gpu": task.specification.gpu,
        "instanceType": task.specification.instance_type,
        "backend": cluster or task.specification.group,
        "error": task.error,
    }
    if not task.request_id:
        del known["requestId"]
    if task.stopping is not None:
        known["stopping"] = task.stopping.reason
    members = {
        "id": task.id,
        **known,
        "gpuSpecification": specification,
        "lastUpdatedAt": timestamp(task.updated_at),
        "healthInfo": {name: value for name, value in health.items() if value is not None},
        "instances": [] if instance is None else [instance_shown(instance)],
    }
    if cluster is not None:
        members["clusterName"] = cluster
    return {**members, "secrets": secrets} if secrets else members


def instance_shown(instance: Instance) -> dict[str, Any]:
    """Return the members of a task's instance."""
    members = shown(instance, *INSTANCE_TIMES)
    for name in ("functionId", "functionVersionId", "isTask", "gpuSpecificationId"):
        members.pop(name, None)
    return members


def event_shown(event: TaskEvent, task_id: str) -> dict[str, Any]:
    """Return the members of an event."""
    return {
        "eventId": event.id,
        "taskId": task_id,
        "message": event.message,
        "createdAt": timestamp(event.at),
    }


def result_shown(result: TaskResult, task_id: str) -> dict[str, Any]:
    """Return the members of a result; metadata that are no JSON are shown as text."""
    try:
        metadata: Any = json.loads(result.metadata) if result.metadata else {}
    except ValueError:
        metadata = result.metadata
    return {
        "resultId": result.id,
        "taskId": task_id,
        "name": result.name,
        "metadata": metadata,
        "createdAt": timestamp(result.at),
    }
