"""The JSON wrapper of exec (protocol.md, section 4.6): reading its request, writing its response."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from nvcf_gateway.errors import invalid_field
from nvcf_gateway.http.durations import checked_poll_seconds
from nvcf_proto import headers as names
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.h1 import ResponseHead
from nvcf_proto.models import Record

DEEP = 300
"""More brackets than this may be deeper nested than the JSON encoder can follow."""

_PERCENT = re.compile(r"[0-9]{1,3}")


class RequestHeader(Record, frozen=True):
    """What an exec request says besides the function's input."""

    poll_duration_seconds: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    input_asset_references: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExecRequest:
    """An unwrapped exec request; `body` is the inner JSON, `poll_seconds` None when not given."""

    body: bytes
    poll_seconds: int | None = None
    asset_ids: tuple[str, ...] = ()


def parse_exec(body: bytes) -> ExecRequest:
    """Unwrap `{"requestHeader": {...}, "requestBody": any JSON}`. Raises HttpProblem 400 naming the field."""
    try:
        value = _object(body)
        given = value.get("requestHeader")
        header = RequestHeader() if given is None else RequestHeader.from_dict(given, "requestHeader")
        if "requestBody" not in value:
            raise InvalidRecord("requestBody", "is missing")
        inner = json.dumps(value["requestBody"], ensure_ascii=False).encode()
    except InvalidRecord as error:
        raise invalid_field(error) from None
    poll = header.poll_duration_seconds
    if poll is not None:
        poll = checked_poll_seconds(poll, "requestHeader.pollDurationSeconds")
    return ExecRequest(inner, poll, header.input_asset_references)


def _object(body: bytes) -> dict[str, Any]:
    """Parse an object. NaN and infinite numbers in it are left to the function."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text)
        if "\\u" in text:
            # An escape may stand for half a surrogate pair: no text that could be written again.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("body", f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRecord("body", "expected a JSON object")
    return value


def wrap_response(request_id: str, head: ResponseHead, body: bytes) -> tuple[int, dict[str, Any]]:
    """Return HTTP status and JSON of an exec response; absent members are left out."""
    headers = {name.lower(): value for name, value in head.headers}
    percent = _percent(headers.get(names.NVCF_PERCENT_COMPLETE.lower()))
    response: dict[str, Any] = {"reqId": request_id, "status": exec_status(head.status)}
    if head.status == 302:
        response |= {"responseReference": headers.get("location"), "percentComplete": 100}
        return 200, {key: value for key, value in response.items() if value is not None}
    if head.status == 202:
        response["percentComplete"] = percent
    elif head.status < 400:
        response["percentComplete"] = 100
        if head.status == 200:
            response["response"] = _json(body)
    else:
        response["errorCode"] = head.status
    return head.status, {key: value for key, value in response.items() if value is not None}


def exec_status(status: int) -> str:
    """Return `in-progress` for 202, `fulfilled` for other 2xx and 3xx, else `errored`."""
    if status == 202:
        return "in-progress"
    return "fulfilled" if status < 400 else "errored"


def _percent(text: str | None) -> int | None:
    return int(text) if text is not None and _PERCENT.fullmatch(text) else None


def _json(body: bytes) -> Any:
    if not body:
        return None
    try:
        value = json.loads(body.decode("utf-8-sig"))
        if b"\\u" in body or body.count(b"[") + body.count(b"{") > DEEP:
            # Half a surrogate pair, or nesting at the limit, could not be written again.
            json.dumps([[[value]]], ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
