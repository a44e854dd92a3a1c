"""OpenAI's error object, as the body of a response and as an event of a stream."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from aiohttp import web

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import json_response
from nvcf_proto.headers import NVCF_REQID
from nvcf_proto.ids import new_id

MAX_ERROR_BYTES = 64 * 1024
"""Bytes of an error response of a function that are looked at."""
_INVALID = "invalid_request_error"
_KINDS = {
    400: (_INVALID, None),
    401: (_INVALID, "invalid_api_key"),
    403: (_INVALID, "insufficient_permissions"),
    404: (_INVALID, "not_found"),
    405: (_INVALID, "method_not_supported"),
    408: (_INVALID, "request_timeout"),
    413: (_INVALID, "request_too_large"),
    415: (_INVALID, "unsupported_media_type"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    502: ("server_error", "worker_lost"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}


def model_not_found(detail: str) -> HttpProblem:
    """Return a 404 about the member `model`."""
    return HttpProblem(404, detail, param="model", code="model_not_found")


def bad_request(detail: str, param: str | None = None, code: str | None = None) -> HttpProblem:
    """Return a 400 about one member of the body."""
    return HttpProblem(400, detail, param=param, code=code)


def error_object(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return `{"error": {message, type, param, code}}`."""
    # A caller's half of a surrogate pair has no bytes in UTF-8.
    message = message.encode(errors="replace").decode()
    kind, usual = _KINDS.get(status, (_INVALID if status < 500 else "server_error", None))
    return {"error": {"message": message, "type": kind, "param": param, "code": code or usual}}


def object_of(problem: HttpProblem) -> dict[str, Any]:
    """Return the error object of a problem."""
    members = problem.problem.extra
    return error_object(problem.status, str(problem), param=members.get("param"), code=members.get("code"))


def error_response(problem: HttpProblem) -> web.Response:
    """Return a problem as a response in OpenAI's form."""
    request_id = problem.headers.get(NVCF_REQID) or new_id()
    headers = {**problem.headers, "x-request-id": request_id}
    return json_response(problem.status, object_of(problem), headers=headers.items())


def of_function(status: int, body: bytes) -> dict[str, Any]:
    """Return the error object of a function's error response.

    One that is in OpenAI's form stays; of `application/problem+json` the detail is the message. What cannot
    be read or written as JSON, e.g. because it is too deep, is text.
    """
    try:
        value = json.loads(msgspec.json.encode(json.loads(body)))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        text = body[:500].decode(errors="replace").strip()
        return error_object(status, text or f"the function answered with status {status}")
    if isinstance(value.get("error"), dict):
        return value
    message = value.get("detail") or value.get("message") or value.get("title")
    return error_object(status, str(message or f"the function answered with status {status}"))


def event(value: dict[str, Any]) -> bytes:
    """Return an error object as a server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"
