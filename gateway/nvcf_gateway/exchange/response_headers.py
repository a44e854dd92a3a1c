"""Responses of exec and pexec: the function's own, with what the contract adds (protocol.md, section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from multidict import CIMultiDict

from nvcf_gateway.exchange.exec_json import exec_status, wrap_response
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.queue.message import Header
from nvcf_proto import headers as names
from nvcf_proto.h1 import ResponseHead

PENDING_EVALUATION = "pending-evaluation"
IN_PROGRESS = "in-progress"


def path_headers(
    head: ResponseHead, request_id: str, cors: list[Header], status: str | None = None
) -> list[Header]:
    """Return the headers of an exec or pexec response: the function's, and those that the contract adds."""
    exposed = [value for name, value in head.headers if name.lower() == "access-control-expose-headers"]
    own = {names.NVCF_REQID.lower(), names.NVCF_STATUS.lower(), "access-control-expose-headers"}
    own |= {name.lower() for name, _ in cors}
    headers = [(name, value) for name, value in head.headers if name.lower() not in own]
    headers += cors
    headers.append((names.NVCF_REQID, request_id))
    headers.append((names.NVCF_STATUS, status or exec_status(head.status)))
    headers.append(("Access-Control-Expose-Headers", ", ".join([*exposed, names.NVCF_REQID.lower()])))
    return headers


def pass_through_headers(head: ResponseHead, request_id: str) -> list[Header]:
    """Return the headers of a pass-through response: the function's, and three that the contract adds."""
    own = {names.NVCF_REQID.lower(), names.NVCF_STATUS.lower()}
    headers = [(name, value) for name, value in head.headers if name.lower() not in own]
    return headers + _identity(head.status, request_id)


def _identity(status: int, request_id: str) -> list[Header]:
    return [
        (names.NVCF_STATUS, exec_status(status)),
        (names.NVCF_REQID, request_id),
        ("Access-Control-Expose-Headers", names.NVCF_REQID.lower()),
    ]


def raw_time_out(request_id: str) -> web.Response:
    """Return the 504 of pexec and pass-through, without a body."""
    return web.Response(status=504, headers=CIMultiDict(_identity(504, request_id)))


def wrapped_time_out(request_id: str) -> web.Response:
    """Return the 504 of exec."""
    response = {"reqId": request_id, "status": exec_status(504), "errorCode": 504}
    return json_response(504, response, headers=_identity(504, request_id))


def raw_progress(request_id: str, status: str, cors: Mapping[str, str]) -> web.Response:
    """Return the 202 of pexec, without a body."""
    headers: CIMultiDict[str] = CIMultiDict(
        path_headers(ResponseHead(202), request_id, list(cors.items()), status)
    )
    return web.Response(status=202, headers=headers)


def wrapped_progress(request_id: str, status: str) -> web.Response:
    """Return the 202 of exec."""
    extra = path_headers(ResponseHead(202), request_id, [], status)
    return json_response(202, {"reqId": request_id, "status": status}, headers=extra)


def wrapped_response(request_id: str, head: ResponseHead, body: bytes) -> web.Response:
    """Return any other response of exec."""
    status, response = wrap_response(request_id, head, body)
    # Other headers of the function describe its body, which is wrapped. Those of an error say what to do.
    own = [] if head.status < 400 else [pair for pair in head.headers if not _describes_body(pair[0])]
    headers = path_headers(ResponseHead(head.status, own), request_id, [])
    return json_response(status, response, headers=headers)


def _describes_body(name: str) -> bool:
    return name.lower().startswith(("content-", "etag", "last-modified", "transfer-"))
