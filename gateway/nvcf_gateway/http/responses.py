"""Responses that the gateway makes itself, and the CORS headers of the path routes.

CORS is permissive, preflight responses are valid for a day (protocol.md, section 4.13). Credentials
travel in the Authorization header, which a foreign page cannot make a browser send, so it is safe to mirror
the origin.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from nvcf_gateway.errors import HttpProblem
from nvcf_proto.headers import PROBLEM_JSON
from nvcf_proto.ids import new_id

SERVER = "nvcf-gateway"
"""Value of the header `Server`."""
MAX_AGE_SECONDS = 86_400
_VARY = "origin, access-control-request-method, access-control-request-headers"


def timestamp(seconds: float) -> str:
    """Return Unix seconds as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_response(
    status: int,
    value: Any,
    *,
    headers: Iterable[tuple[str, str]] = (),
    content_type: str = "application/json",
) -> web.Response:
    """Return a JSON document as a response."""
    merged: CIMultiDict[str] = CIMultiDict(headers)
    merged["Content-Type"] = content_type
    return web.Response(
        status=status,
        headers=merged,
        body=msgspec.json.encode(value),
    )


def problem_response(problem: HttpProblem) -> web.Response:
    """Return a problem as an `application/problem+json` response."""
    return json_response(
        problem.status, problem.problem.to_dict(), headers=problem.headers.items(), content_type=PROBLEM_JSON
    )


def internal_error(log: logging.Logger, **extra: str) -> HttpProblem:
    """Log the current exception with an id, and return a 500 that names only the id."""
    identifier = new_id()
    log.exception("internal error", extra={"error_id": identifier, **extra})
    return HttpProblem(500, f"internal error {identifier}")


def preflight_headers(request: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of the response to an OPTIONS request: everything asked for is allowed."""
    headers = cors_headers(request)
    headers["Access-Control-Max-Age"] = str(MAX_AGE_SECONDS)
    method = request.get("Access-Control-Request-Method")
    names = request.get("Access-Control-Request-Headers")
    if method:
        headers["Access-Control-Allow-Methods"] = method
    if names:
        headers["Access-Control-Allow-Headers"] = names
    return headers


def cors_headers(request: Mapping[str, str]) -> dict[str, str]:
    """Return the CORS headers of every response of a path route."""
    origin = request.get("Origin")
    headers = {"Vary": _VARY, "Access-Control-Allow-Credentials": "true"}
    if origin:
        headers["Access-Control-Allow-Origin"] = origin
    return headers
