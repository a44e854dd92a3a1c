"""The JSON wrapper of exec (protocol.md, section 4.6): reading its request, writing its response."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from nvcf_gateway.errors import invalid_field
from nvcf_gateway.http.durations import checked_poll_seconds
from nvcf_proto import headers as names
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.h1 import ResponseHead
from nvcf_proto.models import Record

LENIENT_BYTES = 64 * 1024
"""Up to this size JSON with NaN and infinite numbers is taken, as Python writes it."""
MAX_HEADER_BYTES = 64 * 1024

_BOM = b"\xef\xbb\xbf"
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


class _Wrapper(Struct, rename="camel"):
    """The wrapper's members as they stand in the body: the inner JSON is checked and not built."""

    request_header: Raw = Raw()
    request_body: Raw = Raw()


_wrapper = msgspec.json.Decoder(_Wrapper)
_any_json = msgspec.json.Decoder(Raw)


def parse_exec(body: bytes) -> ExecRequest:
    """Unwrap `{"requestHeader": {...}, "requestBody": any JSON}`. Raises HttpProblem 400 naming the field."""
    try:
        wrapper = _unwrapped(body)
        header = _header(bytes(wrapper.request_header))
        inner = bytes(wrapper.request_body)
        if not inner:
            raise InvalidRecord("requestBody", "is missing")
    except InvalidRecord as error:
        raise invalid_field(error) from None
    poll = header.poll_duration_seconds
    if poll is not None:
        poll = checked_poll_seconds(poll, "requestHeader.pollDurationSeconds")
    return ExecRequest(inner, poll, header.input_asset_references)


def _unwrapped(body: bytes) -> _Wrapper:
    body = body.removeprefix(_BOM)
    try:
        body.decode()
        return _wrapper.decode(body)
    except msgspec.ValidationError:
        raise InvalidRecord("body", "expected a JSON object") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if len(body) > LENIENT_BYTES:
            raise InvalidRecord("body", f"not valid JSON: {error}") from error
    value = _object(body)
    parts = (
        Raw(json.dumps(value[name], ensure_ascii=False).encode() if name in value else b"")
        for name in ("requestHeader", "requestBody")
    )
    return _Wrapper(*parts)


def _header(given: bytes) -> RequestHeader:
    if len(given) > MAX_HEADER_BYTES:
        raise InvalidRecord("requestHeader", f"more than {MAX_HEADER_BYTES} bytes")
    try:
        value = json.loads(given or b"null")
        return RequestHeader() if value is None else RequestHeader.from_dict(value, "requestHeader")
    except RecursionError:
        raise InvalidRecord("requestHeader", "is nested too deeply") from None


def _object(body: bytes) -> dict[str, Any]:
    """Parse a small object. NaN and infinite numbers in it are left to the function."""
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
        response |= {"errorCode": head.status, "detail": _detail(headers.get("content-type", ""), body)}
    return head.status, {key: value for key, value in response.items() if value is not None}


def exec_status(status: int) -> str:
    """Return `in-progress` for 202, `fulfilled` for other 2xx and 3xx, else `errored`."""
    if status == 202:
        return "in-progress"
    return "fulfilled" if status < 400 else "errored"


def _detail(media_type: str, body: bytes) -> str | None:
    """Return the detail of a problem document."""
    if media_type.partition(";")[0].strip().lower() != names.PROBLEM_JSON:
        return None
    try:
        detail = json.loads(body).get("detail")
    except (ValueError, AttributeError, RecursionError):
        return None
    return detail if isinstance(detail, str) else None


def _percent(text: str | None) -> int | None:
    return int(text) if text is not None and _PERCENT.fullmatch(text) else None


def _json(body: bytes) -> Any:
    if not body:
        return None
    text = body.removeprefix(_BOM)
    try:
        text.decode()
        return _any_json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # What strict JSON does not know, as NaN, is passed on; half a surrogate pair cannot be.
        if len(text) <= LENIENT_BYTES and b"\\u" not in text and _lenient(text):
            return Raw(text)
        return body.decode(errors="replace")


def _lenient(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
