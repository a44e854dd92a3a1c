"""Answers the gateway itself makes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from nvcf_gateway.errors import HttpProblem
from nvcf_proto.headers import PROBLEM_JSON


def json_response(
    status: int,
    value: Any,
    *,
    headers: Iterable[tuple[str, str]] = (),
    content_type: str = "application/json",
) -> web.Response:
    """A JSON document as an answer."""
    merged: CIMultiDict[str] = CIMultiDict(headers)
    merged["Content-Type"] = content_type
    return web.Response(
        status=status,
        headers=merged,
        body=json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
    )


def problem_response(problem: HttpProblem) -> web.Response:
    """An `application/problem+json` answer."""
    return json_response(
        problem.status, problem.problem.to_dict(), headers=problem.headers.items(), content_type=PROBLEM_JSON
    )
