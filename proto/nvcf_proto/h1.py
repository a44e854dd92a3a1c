"""Codec of `application/octet-stream+h1` bodies: an HTTP/1.1 head, then raw body bytes.

See protocol.md, section 3.4.

The body is not framed: it ends where the surrounding HTTP message ends. Decoding is incremental;
grammar as in RFC 9112 sections 3 to 5, strict where leniency would let two readers disagree:
CRLF line ends only, no folding, no white space before the colon, no control characters in values.
Header text is latin-1 on the wire, so that any field bytes survive a round trip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nvcf_proto.errors import H1Error
from nvcf_proto.problem import reason_phrase
from nvcf_proto.settings import MAX_RESPONSE_HEAD_BYTES, MAX_RESPONSE_HEADERS

__all__ = [
    "H1Error",
    "RequestDecoder",
    "RequestHead",
    "ResponseDecoder",
    "ResponseHead",
    "encode_request_head",
    "encode_response_head",
]

Header = tuple[str, str]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/1\.[01]")
_END = b"\r\n\r\n"
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")


@dataclass(frozen=True)
class ResponseHead:
    """Status line and headers, in order and with the names as they were sent."""

    status: int
    headers: list[Header] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class RequestHead:
    """Request line and headers, in order and with the names as they were sent."""

    method: str
    target: str
    headers: list[Header] = field(default_factory=list)


HeadT = TypeVar("HeadT", ResponseHead, RequestHead)


def encode_response_head(status: int, headers: Iterable[Header], reason: str | None = None) -> bytes:
    """Return the bytes `HTTP/1.1 STATUS REASON CRLF headers CRLF CRLF`.

    Raises H1Error for a status outside 100..599 or a header that cannot be sent in one line.
    """
    if not 100 <= status <= 599:
        raise H1Error(f"status {status} is outside 100..599")
    text = reason_phrase(status) if reason is None else reason
    return _encode(f"HTTP/1.1 {status} {_checked_value('reason', text)}", headers)


def encode_request_head(method: str, target: str, headers: Iterable[Header]) -> bytes:
    """Return the bytes `METHOD TARGET HTTP/1.1 CRLF headers CRLF CRLF`. Raises H1Error."""
    line = f"{method} {target} HTTP/1.1"
    if not _REQUEST_LINE.fullmatch(line.encode("latin-1", "replace")):
        raise H1Error("method or target cannot be sent in a request line")
    return _encode(line, headers)


def _encode(first_line: str, headers: Iterable[Header]) -> bytes:
    lines = [first_line]
    for name, value in headers:
        if not _TOKEN.fullmatch(name.encode("latin-1", "replace")):
            raise H1Error(f"header name {name[:64]!r} is not a token")
        lines.append(f"{name}: {_checked_value(name, value)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _checked_value(name: str, value: str) -> str:
    if _BAD_VALUE.search(value):
        raise H1Error(f"value of {name[:64]!r} has a control or non-latin-1 character")
    return value


class _Decoder(Generic[HeadT]):
    def __init__(
        self, max_head_bytes: int = MAX_RESPONSE_HEAD_BYTES, max_headers: int = MAX_RESPONSE_HEADERS
    ) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_headers = max_headers
        self._buffer: bytearray | None = bytearray()

    def feed(self, data: bytes) -> list[HeadT | bytes]:
        """Take the next bytes; return the head when it is complete, and body bytes as they come.

        Raises H1Error when the head is malformed or larger than its limits.
        """
        if self._buffer is None:
            return [data] if data else []
        searched = max(0, len(self._buffer) - len(_END) + 1)
        self._buffer += data
        end = self._buffer.find(_END, searched)
        if end < 0:
            if len(self._buffer) > self._max_head_bytes:
                raise H1Error(f"head is larger than {self._max_head_bytes} bytes")
            return []
        if end + len(_END) > self._max_head_bytes:
            raise H1Error(f"head is larger than {self._max_head_bytes} bytes")
        head = self._parse(bytes(self._buffer[:end]))
        rest = bytes(self._buffer[end + len(_END) :])
        self._buffer = None
        return [head, rest] if rest else [head]

    def close(self) -> None:
        """Tell the decoder that no more bytes come. Raises H1Error when the head is incomplete."""
        if self._buffer is not None:
            raise H1Error("ended before the head was complete")

    def _parse(self, head: bytes) -> HeadT:
        first, *lines = head.split(b"\r\n")
        if len(lines) > self._max_headers:
            raise H1Error(f"more than {self._max_headers} headers")
        headers: list[Header] = []
        for line in lines:
            match = _FIELD.fullmatch(line)
            if match is None:
                raise H1Error(f"malformed header line: {line[:64]!r}")
            headers.append((match[1].decode("ascii"), match[2].decode("latin-1")))
        return self._head(first, headers)

    def _head(self, first: bytes, headers: list[Header]) -> HeadT:
        raise NotImplementedError


class ResponseDecoder(_Decoder[ResponseHead]):
    """Decode a response: `feed` returns one ResponseHead and then body bytes."""

    def _head(self, first: bytes, headers: list[Header]) -> ResponseHead:
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise H1Error(f"malformed status line: {first[:64]!r}")
        return ResponseHead(int(match[1]), headers, (match[2] or b"").decode("latin-1"))


class RequestDecoder(_Decoder[RequestHead]):
    """Decode a request: `feed` returns one RequestHead and then body bytes."""

    def _head(self, first: bytes, headers: list[Header]) -> RequestHead:
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            raise H1Error(f"malformed request line: {first[:64]!r}")
        return RequestHead(match[1].decode("ascii"), match[2].decode("ascii"), headers)
