"""Routes of tasks."""

from __future__ import annotations

from functools import partial
from typing import Any

from nvcf_gateway.openapi.parts import KEYED, Operation, operation_of
from nvcf_gateway.openapi.schemas import (
    INTEGER,
    SECRET_NAME,
    TEXT,
    TIME,
    UUID,
    Schema,
    enum_of,
    list_of,
    object_of,
    ref,
)
from nvcf_gateway.results.idempotency_keys import HEADER, MAX_KEY_LENGTH
from nvcf_gateway.tasks.bodies import MOST_AT_ONCE
from nvcf_gateway.tasks.listing import DEFAULT_LIMIT, MAX_LIMIT
from nvcf_gateway.tasks.routes import BASE
from nvcf_proto.models import ResultHandling, TaskStatus
from nvcf_proto.models.containers import WorkerMode

_OBJECT: Schema = {"type": "object"}
TASK_SCHEMAS: dict[str, Schema] = {
    "Tasks": object_of(
        {"tasks": {"type": "array", "items": ref("TaskCreation"), "minItems": 1, "maxItems": MOST_AT_ONCE}},
        "tasks",
    ),
    "Task": object_of(
        {
            "id": UUID,
            "ncaId": TEXT,
            "name": TEXT,
            "status": enum_of(TaskStatus),
            "gpuSpecification": _OBJECT,
            "process": ref("Process"),
            "containerImage": TEXT,
            "containerArgs": TEXT,
            "containerEnvironment": list_of(_OBJECT),
            "models": list_of(_OBJECT),
            "resources": list_of(_OBJECT),
            "workerMode": enum_of(WorkerMode),
            "description": TEXT,
            "tags": list_of(TEXT),
            "maxRuntimeDuration": TEXT,
            "maxQueuedDuration": TEXT,
            "terminationGracePeriodDuration": TEXT,
            "resultHandlingStrategy": enum_of(ResultHandling),
            "resultsLocation": {"type": "string", "description": "Of UPLOAD: `s3://BUCKET/PREFIX`."},
            "percentComplete": INTEGER,
            "healthInfo": object_of({"gpu": TEXT, "backend": TEXT, "instanceType": TEXT, "error": TEXT}),
            "waitingFor": {"type": "string", "description": "Why a queued task has no place."},
            "clusterName": TEXT,
            "launches": INTEGER,
            "priority": INTEGER,
            "preemptible": {"type": "boolean"},
            "retry": _OBJECT,
            "retries": INTEGER,
            "preemptions": INTEGER,
            "stopping": {"type": "string", "description": "Why its run is ended, to begin anew."},
            "requestId": {"type": "string", "description": "Of the order that launched it."},
            "launchedAt": TIME,
            "startedAt": TIME,
            "endedAt": TIME,
            "lastHeartbeatAt": TIME,
            "lastUpdatedAt": TIME,
            "createdAt": TIME,
            "instances": list_of(_OBJECT),
            "secrets": list_of(SECRET_NAME),
        },
        *("id", "ncaId", "name", "status", "gpuSpecification", "createdAt", "lastUpdatedAt", "instances"),
    ),
    "TaskAnswer": object_of({"task": ref("Task")}, "task"),
    "TaskList": object_of(
        {
            "tasks": list_of(ref("Task")),
            "limit": INTEGER,
            "cursor": {"type": "string", "description": "Of the next page; absent on the last one."},
        },
        "tasks",
    ),
    "TaskEvents": object_of(
        {
            "events": list_of(
                object_of({"eventId": UUID, "taskId": UUID, "message": TEXT, "createdAt": TIME}, "eventId")
            )
        },
        "events",
    ),
    "TaskResultList": object_of(
        {
            "results": list_of(
                object_of(
                    {
                        "resultId": UUID,
                        "taskId": UUID,
                        "name": TEXT,
                        "metadata": {"description": "Any JSON."},
                        "createdAt": TIME,
                    },
                    "resultId",
                    "name",
                )
            )
        },
        "results",
    ),
}
_FOUND = (*KEYED, 404)
_SUBMITTED = (*KEYED, 409, 422, 501, 507)
_KEY = {
    "name": HEADER,
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[!-~]+$"},
    "description": "A repeated call with the same key and body submits nothing and answers with the task.",
}


def _query(name: str, schema: Schema, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_FILTERS = (
    _query("status", TEXT, f"Some of {', '.join(TaskStatus)}, separated by commas."),
    _query("name", TEXT, "The task's name."),
    _query("tag", TEXT, "One of its tags."),
    _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "Most tasks of one page.",
    ),
    _query("cursor", TEXT, "Of the page before."),
)


def tasks() -> dict[str, dict[str, Operation]]:
    """Return the routes of tasks, each also below an account."""
    own = _tasks()
    below = {
        path.replace(BASE, f"{BASE}/accounts/{{nca_id}}", 1): {
            method: {**operation, "operationId": f"{operation['operationId']}OfAccount"}
            for method, operation in operations.items()
        }
        for path, operations in _tasks((404,)).items()
    }
    return {**own, **below}


def _tasks(more: tuple[int, ...] = ()) -> dict[str, dict[str, Operation]]:
    make = partial(operation_of, tag="tasks")
    one = f"{BASE}/tasks/{{task_id}}"
    submitted, keyed = (*_SUBMITTED, *more), (*KEYED, *more)
    return {
        f"{BASE}/tasks": {
            "post": make(
                "createTask",
                "Submit a task.",
                "TaskAnswer",
                submitted,
                body="TaskCreation",
                parameters=(_KEY,),
            ),
            "get": make(
                "listTasks", "The account's tasks, the newest first.", "TaskList", keyed, parameters=_FILTERS
            ),
        },
        f"{BASE}/tasks/bulk": {
            "post": make(
                "createTasks", "Submit several tasks, or none of them.", "TaskList", submitted, body="Tasks"
            )
        },
        one: {
            "get": make("getTask", "One task.", "TaskAnswer", _FOUND),
            "delete": make("deleteTask", "Remove a task that is over.", None, (*_FOUND, 409)),
        },
        f"{one}/cancel": {"post": make("cancelTask", "End a task.", "TaskAnswer", (*_FOUND, 409))},
        f"{one}/events": {
            "get": make("listTaskEvents", "What has happened to a task.", "TaskEvents", _FOUND)
        },
        f"{one}/results": {
            "get": make("listTaskResults", "What a task has reported.", "TaskResultList", _FOUND)
        },
        f"{BASE}/secrets/tasks/{{task_id}}": {
            "put": make(
                "putTaskSecrets",
                "Add secrets to a task, or replace those of the same name.",
                None,
                (*_FOUND, 409, 501, 507),
                body="SecretsChange",
            )
        },
    }
