"""CORS of the path routes: very permissive, preflight answers last a day (section 4).

Credentials travel in the Authorization header, which a foreign page cannot make a browser send, so
mirroring the origin gives nothing away.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_AGE_SECONDS = 86_400
_VARY = "origin, access-control-request-method, access-control-request-headers"


def preflight_headers(request: Mapping[str, str]) -> dict[str, str]:
    """Headers of the answer to an OPTIONS request: whatever was asked for is allowed."""
    headers = response_headers(request)
    headers["Access-Control-Max-Age"] = str(MAX_AGE_SECONDS)
    method = request.get("Access-Control-Request-Method")
    names = request.get("Access-Control-Request-Headers")
    if method:
        headers["Access-Control-Allow-Methods"] = method
    if names:
        headers["Access-Control-Allow-Headers"] = names
    return headers


def response_headers(request: Mapping[str, str]) -> dict[str, str]:
    """Headers of every answer of a path route."""
    origin = request.get("Origin")
    headers = {"Vary": _VARY, "Access-Control-Allow-Credentials": "true"}
    if origin:
        headers["Access-Control-Allow-Origin"] = origin
    return headers
