"""The response of a handler: what handlers return, and its encoded form."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from nvcf_proto import h1
from nvcf_proto.headers import PROBLEM_JSON, field_bytes, strip_hop_by_hop
from nvcf_proto.problem import Problem
from nvcf_proto.settings import MAX_RESPONSE_HEAD_BYTES, MAX_RESPONSE_HEADERS
from nvcf_worker.function.typed.plain import to_json

OCTETS = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
JSON_LINES = "application/x-ndjson"

HeaderPairs = list[tuple[str, str]]

_HALVES = re.compile("[\ud800-\udfff]")


class Response:
    """A response with status and headers of its own.

    `body` is bytes, str, a JSON-able object, None, or an iterator or async iterator of such items, each
    of which is sent at once. `media_type` sets Content-Type; without it the type follows from the body.
    """

    __slots__ = ("body", "headers", "media_type", "status")

    def __init__(
        self,
        body: Any = None,
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        media_type: str | None = None,
    ) -> None:
        if not isinstance(status, int):
            raise TypeError(f"status is {status!r}; it must be an integer")
        if not 200 <= status <= 599:
            raise ValueError(f"status is {status}; a response has 200 to 599")
        self.body = body
        self.status = int(status)
        pairs = () if headers is None else headers.items() if isinstance(headers, Mapping) else headers
        self.headers = [(str(name), str(value)) for name, value in pairs]
        self.media_type = media_type

    def __repr__(self) -> str:
        return f"Response(status={self.status}, media_type={self.media_type!r})"


class Reply(NamedTuple):
    """A complete response, ready to be sent."""

    status: int
    headers: HeaderPairs
    body: bytes


class Source(Protocol):
    """The rest of a streamed body."""

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Stop the handler and wait until it has ended."""


@dataclass(slots=True)
class StreamReply:
    """A response whose body is still being made: its head, the first chunk and the rest."""

    status: int
    headers: HeaderPairs
    first: bytes
    source: Source
    # Length of the whole body, where it is known before the body is complete.
    length: int | None = None
    # Whether a part of it has been sent.
    begun: bool = False
    # Whether the handler may reach its next item after a receiver has left, so that it can go on.
    patient: bool = False
    # Whether to wait for a refusal after the head, because the receiver may be gone.
    cautious: bool = False


Outcome = Reply | StreamReply


def is_stream(value: object) -> bool:
    """Return whether a result is sent item by item: iterators are, lists and tuples are not."""
    return isinstance(value, Iterator | AsyncIterator)


def encode_body(value: Any) -> tuple[bytes, str]:
    """Return a complete body and its default media type. Raises TypeError or ValueError if it is no JSON."""
    if isinstance(value, bytes):
        return value, OCTETS
    if isinstance(value, str):
        return _text(value), TEXT
    if isinstance(value, bytearray | memoryview):
        return bytes(value), OCTETS
    return to_json(value), JSON


def _text(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        # Halves of surrogate pairs are no characters.
        return _HALVES.sub("\ufffd", value).encode()


def encode_item(item: Any) -> bytes:
    """Encode an item of a stream: bytes as they are, text as UTF-8, anything else as a line of JSON."""
    data, media_type = encode_body(item)
    return data + b"\n" if media_type is JSON else data


def item_media_type(item: Any) -> str:
    """Return the default media type of a stream that begins with this item."""
    if isinstance(item, bytes | bytearray | memoryview):
        return OCTETS
    return TEXT if isinstance(item, str) else JSON_LINES


def reply_of(result: Any, media_type: str | None) -> Reply:
    """Return the complete response for a handler's result that is no stream.

    `media_type` is the function's default. Raises TypeError, ValueError or H1Error when the result
    cannot be sent.
    """
    if result is None:
        return Reply(204, [], b"")
    if not isinstance(result, Response):
        body, natural = encode_body(result)
        return Reply(200, [("content-type", media_type or natural)], body)
    body, natural = (b"", "") if result.body is None else encode_body(result.body)
    return Reply(result.status, response_headers(result, media_type or natural), body)


def response_headers(response: Response, default_type: str) -> HeaderPairs:
    """Return the headers of a Response, without those that only concern a connection.

    Raises H1Error for headers that cannot be sent, ValueError for too many.
    """
    pairs = [
        (name, value if value.isascii() else _field(name, value))
        for name, value in strip_hop_by_hop(response.headers)
        if name.lower() != "content-length"
    ]
    if response.media_type is not None:
        pairs = [pair for pair in pairs if pair[0].lower() != "content-type"]
        pairs.append(("content-type", _field("content-type", response.media_type)))
    elif default_type and not any(name.lower() == "content-type" for name, _ in pairs):
        pairs.append(("content-type", default_type))
    check_head(response.status, pairs)
    return pairs


def _field(name: str, text: str) -> str:
    try:
        return field_bytes(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"header {name[:64]!r} has half of a surrogate pair") from error


def check_head(status: int, pairs: HeaderPairs) -> None:
    """Raise H1Error for headers that cannot be sent, ValueError for too many (protocol.md, section 3.3)."""
    # One header is reserved for the Content-Length that delivery adds.
    if len(pairs) >= MAX_RESPONSE_HEADERS:
        raise ValueError(f"the response has {len(pairs)} headers; the maximum is {MAX_RESPONSE_HEADERS - 1}")
    if len(h1.encode_response_head(status, pairs)) > MAX_RESPONSE_HEAD_BYTES - 64:
        raise ValueError(f"the headers of the response exceed {MAX_RESPONSE_HEAD_BYTES} bytes")


def problem_reply(problem: Problem) -> Reply:
    """Return a problem document as a response."""
    return Reply(problem.status, [("content-type", PROBLEM_JSON)], problem.to_json())
