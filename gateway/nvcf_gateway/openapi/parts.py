"""Building blocks of the description: operations, answers and problems."""

from __future__ import annotations

from typing import Any

from nvcf_gateway.openapi.schemas import TEXT, UUID, Schema, ref
from nvcf_proto.headers import PROBLEM_JSON

Operation = dict[str, Any]

_REASONS = {
    400: "The request is malformed; `field` names the offending field of the body.",
    401: "No key or token, or one that is unknown, revoked, expired or used.",
    403: "The key lacks the scope, or belongs to another account or other functions.",
    404: "There is no such thing.",
    408: "The head of the answer did not come in time.",
    409: "It exists already, or is in use.",
    412: "The request or its instance is closed: delete it.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "A rate limit is reached, or the queue is full: again after Retry-After seconds.",
    431: "The token is too large.",
    500: "The request could not be queued, or its caller is gone.",
    422: "The Idempotency-Key was used for another request.",
    501: "This installation does not offer it: secrets without sealing keys, tasks from images.",
    502: "The worker left in the middle of its answer.",
    503: "The broker is not reachable: again after Retry-After seconds.",
    504: "No answer in time.",
    507: "There is no room for it.",
}
_INTEGER: Schema = {"type": "integer"}
_IN_ANSWERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": TEXT}},
    429: {
        "Retry-After": {"schema": _INTEGER, "description": "Seconds."},
        "RateLimit-Policy": {"schema": TEXT, "description": "draft-ietf-httpapi-ratelimit-headers"},
        "RateLimit": {"schema": TEXT},
    },
    503: {"Retry-After": {"schema": _INTEGER, "description": "Seconds."}},
}
POLL_SECONDS = {
    "name": "NVCF-POLL-SECONDS",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0, "maximum": 3600},
    "description": "How long to wait for the answer; less than 1 counts as 1, the default is 60.",
}
SEAL = (
    {"name": "until", "in": "query", "schema": TEXT},
    {"name": "seal", "in": "query", "schema": TEXT, "description": "Part of the link that was given out."},
)
KEEP_QUEUED = {
    "name": "NVCF-KEEP-QUEUED",
    "in": "header",
    "schema": {"type": "string", "enum": ["true", "false"]},
    "description": "Whether a request that is still queued at the end of that time stays queued (202).",
}


def operation_of(
    name: str,
    summary: str,
    answers: str | dict[int | str, Any] | None,
    problems: tuple[int, ...],
    *,
    tag: str,
    body: str | None = None,
    raw_body: str | None = None,
    parameters: tuple[dict[str, Any], ...] = (),
    security: bool = True,
) -> Operation:
    """Return one method of a path: `answers` and `problems` are all it may answer.

    `answers` may be the name of the schema of a 200, or None for a 204. `body` is the name of a schema; an
    operation with a body may answer 413.
    """
    if answers is None:
        answers = {204: NOTHING}
    elif isinstance(answers, str):
        answers = {200: json_answer(answers)}
    responses = {str(status): answer for status, answer in answers.items()}
    for status in problems if body is None else (*problems, 413):
        responses.setdefault(str(status), _problem(status))
    operation: Operation = {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "responses": dict(sorted(responses.items())),
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref(body)}}}
    if raw_body is not None:
        operation["requestBody"] = {"content": {raw_body: {"schema": {}}}}
    if parameters:
        operation["parameters"] = list(parameters)
    if not security:
        operation["security"] = []
    return operation


def _problem(status: int) -> dict[str, Any]:
    answer = {"description": _REASONS[status], "content": {PROBLEM_JSON: {"schema": ref("Problem")}}}
    if status in _IN_ANSWERS:
        answer["headers"] = _IN_ANSWERS[status]
    return answer


def json_answer(name: str, description: str = "Done.") -> dict[str, Any]:
    """Return an answer with a JSON document of that schema."""
    return {"description": description, "content": {"application/json": {"schema": ref(name)}}}


NOTHING = {"description": "Done."}
# What every route with a key may answer.
KEYED = (400, 401, 403, 503)
ANY_ANSWER = {
    "description": "The function's own answer: its status, headers and body.",
    "headers": {"nvcf-reqid": {"schema": UUID}, "nvcf-status": {"schema": TEXT}},
    "content": {"*/*": {"schema": {}}},
}
NOT_YET = {
    "description": "Not answered yet: poll with nvcf-reqid.",
    "headers": {"nvcf-reqid": {"schema": UUID}, "nvcf-status": {"schema": TEXT}},
}
