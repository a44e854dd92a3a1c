"""The caller's end of a response on the OpenAI routes.

A response of the function passes as it is, but for errors in another form than OpenAI's. A caller that has
asked for a stream gets comments while its request waits. The status is 200 from the first comment on, so
what goes wrong after it is an event of the stream, and so is whatever breaks a stream that has begun.
"""

from __future__ import annotations

import asyncio

from aiohttp import ClientConnectionResetError, web
from multidict import CIMultiDict

from nvcf_gateway.errors import CallerGone, HttpProblem
from nvcf_gateway.exchange.response_headers import path_headers
from nvcf_gateway.exchange.sinks import StreamSink
from nvcf_gateway.http.responses import SERVER, cors_headers, json_response
from nvcf_gateway.llm.errors import MAX_ERROR_BYTES, error_object, event, object_of, of_function
from nvcf_gateway.llm.token_budgets import Charge
from nvcf_gateway.queue.message import Header
from nvcf_proto.h1 import ResponseHead
from nvcf_proto.headers import EVENT_STREAM, PROBLEM_JSON
from nvcf_proto.server_sent_events import WholeEvents

HEARTBEAT = b": waiting\n\n"
_DESCRIBES_BODY = frozenset(("content-length", "content-encoding", "etag"))


class OpenAiSink:
    """Takes the response of one call; `streams`: the caller has asked for a stream.

    With a `charge` the tokens of the response are read on the way.
    """

    def __init__(
        self, request: web.BaseRequest, request_id: str, *, streams: bool, charge: Charge | None = None
    ) -> None:
        self._charge = charge
        self._request = request
        self._request_id = request_id
        self._streams = streams
        self._plain = StreamSink(request, self._headers)
        self._stream: web.StreamResponse | None = None
        self._events = WholeEvents()
        self._collected: tuple[ResponseHead, bytearray] | None = None
        self._opening = asyncio.Lock()
        self._begun = False
        self._document: web.StreamResponse | None = None

    @property
    def response(self) -> web.StreamResponse | None:
        """What the caller has got, None if there is nothing yet."""
        return self._stream or self._plain.response or self._document

    async def heartbeat(self, every: float) -> None:
        """Send a comment each `every` seconds until the response begins."""
        while self._streams:
            await asyncio.sleep(every)
            async with self._opening:
                if self._begun:
                    return
                try:
                    if self._stream is None:
                        await self._open(ResponseHead(200, [("Content-Type", EVENT_STREAM)]))
                    await self._send(HEARTBEAT)
                except CallerGone:
                    return

    async def start(self, head: ResponseHead) -> None:
        """Take the head."""
        async with self._opening:
            self._begun = True
            if self._charge is not None:
                self._charge.answered = head.status < 400
            kind = _media_type(head)
            if self._stream is not None:
                if head.status != 200 or kind != EVENT_STREAM:
                    self._collected = (head, bytearray())
            elif head.status >= 400 and kind == PROBLEM_JSON:
                self._collected = (head, bytearray())
            elif self._streams and kind == EVENT_STREAM:
                await self._open(head)
            else:
                await self._plain.start(head)

    async def write(self, data: bytes) -> None:
        """Take body bytes; of what becomes an error only the first ones."""
        if self._collected is not None:
            body = self._collected[1]
            body += data[: MAX_ERROR_BYTES - len(body)]
        elif self._stream is None:
            if self._charge is not None:
                self._charge.reader.body(data)
            await self._plain.write(data)
        else:
            whole = self._events.feed(data)
            if self._charge is not None:
                whole = self._charge.reader.whole_events(whole)
            if whole:
                await self._send(whole)

    async def finish(self) -> None:
        """End the body."""
        if self._collected is not None:
            await self._finish_error(*self._collected)
        elif self._stream is None:
            if self._charge is not None:
                self._charge.reader.end()
            await self._plain.finish()
        else:
            await self._end(self._events.rest())

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        """Take a whole response at once."""
        kind = _media_type(head)
        if self._stream is None and kind not in (EVENT_STREAM, PROBLEM_JSON):
            # Head and body leave in one write.
            async with self._opening:
                self._begun = True
                if self._stream is None:
                    if self._charge is not None:
                        self._charge.answered = head.status < 400
                        self._charge.reader.body(body)
                        self._charge.reader.end()
                    await self._plain.complete(head, body)
                    return
        await self.start(head)
        await self.write(body)
        await self.finish()

    def abort(self) -> None:
        """Leave a stream open for its error event; cut any other response off."""
        if self._stream is None and self._plain.response is not None:
            self._plain.abort()

    async def fail(self, problem: HttpProblem) -> bool:
        """End a stream that has begun with an error event; return False if there is none."""
        async with self._opening:
            self._begun = True
            if self._stream is None:
                return False
        # A blank line ends the event of which a part has passed.
        end = b"\n\n" if self._events.partial else b""
        await self._end(end + event(object_of(problem)))
        return True

    async def _finish_error(self, head: ResponseHead, body: bytearray) -> None:
        if head.status < 400:
            text = f"the caller waits for events, and the function answered {_media_type(head) or 'without'}"
            value = error_object(502, text, code="no_event_stream")
        else:
            value = of_function(head.status, bytes(body))
        if self._stream is not None:
            await self._end(event(value))
            return
        kept = [pair for pair in head.headers if pair[0].lower() not in (*_DESCRIBES_BODY, "content-type")]
        document = json_response(head.status, value, headers=self._headers(ResponseHead(head.status, kept)))
        self._document = document
        try:
            await document.prepare(self._request)
            await document.write_eof()
        except (ClientConnectionResetError, ConnectionError) as error:
            raise CallerGone("the caller left") from error

    async def _open(self, head: ResponseHead) -> None:
        kept = [pair for pair in head.headers if pair[0].lower() != "content-length"]
        headers = CIMultiDict(self._headers(ResponseHead(head.status, kept)))
        headers.setdefault("Server", SERVER)
        self._stream = web.StreamResponse(status=head.status, headers=headers)
        try:
            await self._stream.prepare(self._request)
        except ConnectionError as error:
            raise CallerGone("the caller left") from error

    async def _send(self, data: bytes) -> None:
        if self._stream is None:
            return
        try:
            await self._stream.write(data)
        except (ClientConnectionResetError, ConnectionError) as error:
            raise CallerGone("the caller left") from error

    async def _end(self, data: bytes) -> None:
        if data:
            await self._send(data)
        if self._stream is None:
            return
        try:
            await self._stream.write_eof()
        except (ClientConnectionResetError, ConnectionError) as error:
            raise CallerGone("the caller left") from error

    def _headers(self, head: ResponseHead) -> list[Header]:
        named = {name.lower() for name, _ in head.headers}
        own = [] if "x-request-id" in named else [("x-request-id", self._request_id)]
        if self._charge is not None:
            own += self._charge.headers
        cors = list(cors_headers(self._request.headers).items())
        return path_headers(ResponseHead(head.status, [*head.headers, *own]), self._request_id, cors)


def _media_type(head: ResponseHead) -> str:
    for name, value in head.headers:
        if name.lower() == "content-type":
            return value.partition(";")[0].strip().lower()
    return ""
