"""The caller's end of a response: streamed as it comes, or collected for the JSON wrapper of exec."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from operator import itemgetter
from typing import Protocol

from aiohttp import ClientConnectionResetError, web
from multidict import CIMultiDict

from nvcf_gateway.errors import CallerGone, HttpProblem, WorkerGone
from nvcf_gateway.http.responses import SERVER
from nvcf_proto.errors import H1Error
from nvcf_proto.h1 import ResponseHead
from nvcf_proto.headers import field_text, strip_hop_by_hop

BODILESS = frozenset((204, 304))
_LENGTH = re.compile(r"[0-9]{1,18}")


class Sink(Protocol):
    """Takes one response: `start`, any number of `write`, `finish`; or `abort` at any time."""

    async def start(self, head: ResponseHead) -> None:
        """Take the head. Raises H1Error if it cannot be passed on, CallerGone."""

    async def write(self, data: bytes) -> None:
        """Take body bytes; return when the caller can take more. Raises H1Error, CallerGone."""

    async def finish(self) -> None:
        """End the body. Raises H1Error if its length is not the announced one, CallerGone."""

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        """Take a whole response at once. Raises H1Error, CallerGone."""

    def abort(self) -> None:
        """Give up: the body will never be complete."""


def checked_head(head: ResponseHead) -> ResponseHead:
    """Return the head without hop-by-hop headers. Raises H1Error for what is forbidden.

    See protocol.md, section 3.3.
    """
    if head.status < 200:
        raise H1Error(f"status {head.status} is not a final status")
    if any(name.lower() == "transfer-encoding" for name, _ in head.headers):
        raise H1Error("an inner Transfer-Encoding header is not allowed")
    lengths = {value for name, value in head.headers if name.lower() == "content-length"}
    if len(lengths) > 1 or any(not _LENGTH.fullmatch(value) for value in lengths):
        raise H1Error("malformed inner Content-Length")
    return ResponseHead(head.status, strip_hop_by_hop(head.headers), head.reason)


class StreamSink:
    """Writes the response to the caller's connection; a slow caller makes `write` wait."""

    __slots__ = ("_before", "_bodiless", "_decorate", "_expected", "_request", "_written", "head", "response")

    def __init__(
        self,
        request: web.BaseRequest,
        decorate: Callable[[ResponseHead], list[tuple[str, str]]],
        before: Callable[[ResponseHead], Awaitable[None]] | None = None,
    ) -> None:
        self._request = request
        self._decorate = decorate
        self._before = before
        self._expected: int | None = None
        self._written = 0
        self._bodiless = False
        self.response: web.StreamResponse | None = None
        self.head: ResponseHead | None = None

    async def start(self, head: ResponseHead) -> None:
        self.head = head
        if self._before is not None:
            await self._before(head)
        headers = self._headers(head)
        length = headers.get("Content-Length")
        self._expected = int(length) if length is not None and not self._bodiless else None
        response = web.StreamResponse(status=head.status, reason=head.reason or None, headers=headers)
        self.response = response
        try:
            await response.prepare(self._request)
        except ConnectionError as error:
            raise CallerGone("the caller left") from error

    async def write(self, data: bytes) -> None:
        self._written += len(data)
        if self._expected is not None and self._written > self._expected:
            raise H1Error(f"body is longer than its Content-Length of {self._expected}")
        if self._bodiless or self.response is None:
            return
        try:
            await self.response.write(data)
        except (ClientConnectionResetError, ConnectionError) as error:
            raise CallerGone("the caller left") from error

    async def finish(self) -> None:
        if self._expected is not None and self._written != self._expected:
            raise H1Error(f"body has {self._written} bytes, its Content-Length says {self._expected}")
        if self.response is None:
            return
        try:
            await self.response.write_eof()
        except (ClientConnectionResetError, ConnectionError) as error:
            raise CallerGone("the caller left") from error

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        self.head = head
        if self._before is not None:
            await self._before(head)
        headers = self._headers(head)
        if self._bodiless:
            body = b""
        else:
            headers["Content-Length"] = str(len(body))
        # Unlike a streamed response, head and body leave in one write.
        response = web.Response(status=head.status, reason=head.reason or None, headers=headers, body=body)
        self.response = response
        try:
            await response.prepare(self._request)
            await response.write_eof()
        except (ClientConnectionResetError, ConnectionError) as error:
            raise CallerGone("the caller left") from error

    def _headers(self, head: ResponseHead) -> CIMultiDict[str]:
        self._bodiless = self._request.method == "HEAD" or head.status in BODILESS
        pairs = self._decorate(head)
        # aiohttp writes text as UTF-8.
        if not "".join(map(itemgetter(1), pairs)).isascii():
            pairs = [(name, field_text(value)) for name, value in pairs]
        headers = CIMultiDict(pairs)
        headers.setdefault("Server", SERVER)
        return headers

    def abort(self) -> None:
        # A cut connection is the only way to tell an HTTP/1.1 caller that the body is not complete.
        if self._request.transport is not None:
            self._request.transport.abort()


class CollectSink:
    """Keeps the whole response in memory, up to `limit` bytes.

    `grow` is called with the size that it is about to have, and raises HttpProblem when there is no room.
    `before` is awaited with the head, as by StreamSink.
    """

    def __init__(
        self,
        limit: int,
        grow: Callable[[int], None] = lambda _: None,
        before: Callable[[ResponseHead], Awaitable[None]] | None = None,
    ) -> None:
        self._before = before
        self._limit = limit
        self._grow = grow
        self._body = bytearray()
        self._aborted = False
        self.head: ResponseHead | None = None

    @property
    def body(self) -> bytes:
        """The part of the body that has arrived."""
        return bytes(self._body)

    async def start(self, head: ResponseHead) -> None:
        if self._before is not None:
            await self._before(head)
        self.head = head

    async def write(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._limit:
            raise H1Error(f"response is larger than {self._limit} bytes: use pexec for it")
        try:
            self._grow(len(self._body) + len(data))
        except HttpProblem as problem:
            raise H1Error(str(problem)) from problem
        self._body += data

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        await self.start(head)
        await self.write(body)

    async def finish(self) -> None:
        if self._aborted:
            raise WorkerGone("the worker left in the middle of its response")

    def abort(self) -> None:
        self._aborted = True
