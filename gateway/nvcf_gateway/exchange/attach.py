"""Delivery by workers: `request-attach` and the inline reply [ext] (protocol.md, section 3)."""

from __future__ import annotations

import asyncio
import logging
import re

from aiohttp import web
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_gateway.access.authorization import bearer_token
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import AnsweredElsewhere, CallerGone, HttpProblem
from nvcf_gateway.exchange.bodies import BodySuperseded, BodyTooLarge
from nvcf_gateway.exchange.pending import Pending, PendingRequests
from nvcf_gateway.exchange.reply_subjects import ReplySubjects
from nvcf_gateway.exchange.sinks import BODILESS, Sink, checked_head
from nvcf_gateway.exchange.states import State
from nvcf_gateway.http.responses import SERVER
from nvcf_proto import headers as names
from nvcf_proto.errors import H1Error
from nvcf_proto.h1 import ResponseDecoder, ResponseHead, encode_request_head, encode_response_head
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.settings import MAX_CALLER_HEAD_BYTES, MAX_RESPONSE_HEADERS

_log = logging.getLogger(__name__)

DELIVERY_ATTEMPT = "Nvcf-Delivery-Attempt"
"""[ext] How often the queue has delivered the request, stated by our workers on GET attach."""

HEAD_TIMEOUT = 30.0
_ATTEMPT = re.compile(r"[1-9][0-9]{0,5}")


class Attach:
    """HTTP side: GET sends the caller's body, POST takes the response."""

    def __init__(self, pending: PendingRequests) -> None:
        self._pending = pending

    async def get(self, request: web.BaseRequest) -> web.StreamResponse:
        """Stream the rest of the caller's body, or the whole request as h1."""
        pending = self._pending.by_request_token(bearer_token(request.headers))
        if pending is None or not pending.take_body(_attempt(request)):
            raise HttpProblem(401, "the token is unknown or used")
        whole = request.headers.get("Accept", "").strip().lower() == names.OCTET_STREAM_H1
        kind = names.OCTET_STREAM_H1 if whole else names.OCTET_STREAM
        response = web.StreamResponse(headers={"Content-Type": kind, "Server": SERVER})
        first = _whole_head(pending) if whole else b""
        if pending.body.rest_length is not None:
            response.content_length = len(first) + pending.body.rest_length
        try:
            await response.prepare(request)
            if first:
                await response.write(first)
            async for chunk in pending.body.stream():
                await response.write(chunk)
            await response.write_eof()
        except BodyTooLarge as error:
            pending.reject(HttpProblem(413, str(error)))
            _abort(request)
        except HttpProblem as problem:
            pending.reject(problem)
            _abort(request)
        except (BodySuperseded, OSError) as error:
            if not isinstance(error, ConnectionError):
                _log.warning("body delivery ended: %s", error, extra={"request_id": pending.request_id})
            _abort(request)
        return response

    async def post(self, request: web.BaseRequest) -> web.StreamResponse:
        """Take a response: once its head is accepted, the body is streamed to the caller."""
        pending = self._pending.by_response_token(bearer_token(request.headers))
        if pending is None or not pending.open:
            raise HttpProblem(401, "the token is unknown or used")
        if pending.storing is not None:
            # Most likely the same response: its worker waits only a moment for the acknowledgement.
            await asyncio.wait({pending.storing})
            if not pending.open:
                return web.Response(status=200)
        if request.content_type != names.OCTET_STREAM_H1:
            raise HttpProblem(415, f"Content-Type must be {names.OCTET_STREAM_H1}")
        decoder = ResponseDecoder()
        try:
            head, rest = await _read_head(request, decoder)
        except H1Error as error:
            raise HttpProblem(400, f"malformed response: {error}") from None
        if not pending.begin_stream(asyncio.current_task()):
            raise HttpProblem(401, "the token is unknown or used")
        refusal = too_large(head)
        if refusal is not None:
            head, rest = refusal
        await self._stream(request, pending, head, rest, dropped=refusal is not None)
        return web.Response(status=200)

    async def _stream(
        self,
        request: web.BaseRequest,
        pending: Pending,
        head: ResponseHead,
        rest: bytes,
        *,
        dropped: bool = False,
    ) -> None:
        """Pass a response on; with `dropped` nothing of the worker's body."""
        sink = pending.sink
        pending.status = head.status
        try:
            try:
                await sink.start(head)
            except CallerGone:
                raise HttpProblem(500, "the caller is gone") from None
            # A response without a body is complete with its head, whatever its Content-Length says.
            if pending.head.method != "HEAD" and head.status not in BODILESS:
                await _pass_body(request, sink, rest, dropped=dropped)
            await sink.finish()
        except AnsweredElsewhere:
            pending.supersede()
        except CallerGone:
            pending.finish_stream()
        except H1Error as error:
            pending.break_stream()
            raise HttpProblem(400, f"malformed response: {error}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if pending.state is State.ANSWERED and task is not None:
                # The caller left, not the worker: the worker gets its 200.
                task.uncancel()
                return
            pending.break_stream()
            raise
        except Exception:
            pending.break_stream()
            raise
        else:
            comes_again = pending.detached and self._pending.stored(pending, head.status)
            pending.finish_stream(comes_again=comes_again)


async def _pass_body(request: web.BaseRequest, sink: Sink, first: bytes, *, dropped: bool) -> None:
    if first:
        await sink.write(first)
    async for chunk in request.content.iter_any():
        if not dropped:
            await sink.write(chunk)


def _attempt(request: web.BaseRequest) -> int | None:
    text = request.headers.get(DELIVERY_ATTEMPT, "")
    return int(text) if _ATTEMPT.fullmatch(text) else None


def _whole_head(pending: Pending) -> bytes:
    head = pending.head
    headers = [(name, names.field_bytes(value)) for name, value in head.headers]
    return encode_request_head(head.method, head.target, headers) + pending.body.prefix


async def _read_head(request: web.BaseRequest, decoder: ResponseDecoder) -> tuple[ResponseHead, bytes]:
    try:
        async with asyncio.timeout(HEAD_TIMEOUT):
            async for chunk in request.content.iter_any():
                match decoder.feed(chunk):
                    case [ResponseHead() as head]:
                        return checked_head(head), b""
                    case [ResponseHead() as head, bytes() as rest]:
                        return checked_head(head), rest
    except TimeoutError:
        raise HttpProblem(408, f"no complete response head within {HEAD_TIMEOUT:g} s") from None
    decoder.close()
    raise H1Error("ended before the head was complete")


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


class InlineReplies:
    """Broker side: complete small responses in one message."""

    def __init__(
        self, client: Client, gateway_id: str, pending: PendingRequests, background: BackgroundTasks
    ) -> None:
        self._pending = pending
        self._background = background
        self.subjects = ReplySubjects(client, gateway_id, background, self.received)

    async def received(self, message: Msg) -> None:
        """Pass a response to its caller and acknowledge it.

        It is refused with 410 if nobody waits for it, and with 400 if it is malformed.
        """
        token = message.subject.rsplit(".", 1)[1]
        pending = self._pending.by_inline_token(token)
        if pending is None:
            return await self._refuse(message, 410)
        try:
            head, body = _decode_inline(message.data, bodiless=pending.head.method == "HEAD")
        except (DecodeError, H1Error) as error:
            if self.subjects.refused(message):
                _log.warning("inline reply refused: %s", error, extra={"request_id": pending.request_id})
                await _refuse(message, 400)
            return None
        if pending.inline_storage is not None:
            if pending.is_storing:
                self.subjects.refused(message)
                return None
            # Storing takes a while, and the next reply must not wait for it.
            store = self._store(message, pending, head, body)
            pending.storing = self._background.spawn(store, f"store {pending.request_id}")
            return None
        if not pending.take_inline(head, body):
            return await self._refuse(message, 410)
        return await _confirm(message)

    async def _refuse(self, message: Msg, status: int) -> None:
        if self.subjects.refused(message):
            await _refuse(message, status)

    async def _store(self, message: Msg, pending: Pending, head: ResponseHead, body: bytes) -> None:
        """Store the response, then acknowledge it. Without an acknowledgement the worker tries attach."""
        storage = pending.inline_storage
        if storage is None or not pending.open:
            return await self._refuse(message, 410)
        try:
            first = await storage.save(head, body)
        except HttpProblem:
            return None
        if not first:
            # Another execution was faster: this one is done, and the caller gets that one's response.
            pending.give_way()
            return await _confirm(message)
        if pending.detached:
            pending.notify(answered=True)
            pending.finish_inline(comes_again=self._pending.stored(pending, head.status))
        elif not pending.take_inline(head, body):
            return await self._refuse(message, 410)
        return await _confirm(message)


async def _confirm(message: Msg) -> None:
    # `Msg.respond` would send the headers of the message back.
    if message.reply:
        await message._client.publish(message.reply, b"")


async def _refuse(message: Msg, status: int) -> None:
    if message.reply:
        await message._client.publish(message.reply, b"", headers={names.REPLY_STATUS: str(status)})


def _decode_inline(data: bytes, *, bodiless: bool) -> tuple[ResponseHead, bytes]:
    reply = nvcf_pb2.InlineResponse.FromString(data)
    if not reply.endOfResponse:
        raise H1Error("an inline reply must be complete (endOfResponse)")
    headers = [(pair.key, pair.value) for pair in reply.headers]
    if len(headers) > MAX_RESPONSE_HEADERS:
        raise H1Error(f"more than {MAX_RESPONSE_HEADERS} headers")
    status = reply.httpStatusCode if reply.HasField("httpStatusCode") else 200
    # Encoding checks names and values as strictly as a decoded head has been.
    encode_response_head(status, headers)
    head = checked_head(ResponseHead(status, headers))
    length = next((value for name, value in head.headers if name.lower() == "content-length"), None)
    if length is not None and int(length) != len(reply.body) and not bodiless:
        raise H1Error("Content-Length is not the length of the body")
    return too_large(head) or (head, reply.body)


def too_large(head: ResponseHead) -> tuple[ResponseHead, bytes] | None:
    """Return what a caller gets instead of a response whose head is too large; None if it is not."""
    size = sum(len(name) + len(value) + 4 for name, value in head.headers)
    if size <= MAX_CALLER_HEAD_BYTES:
        return None
    detail = (
        f"the function's answer has {size} bytes of headers; at most {MAX_CALLER_HEAD_BYTES} are passed on"
    )
    body = HttpProblem(500, detail).problem.to_json()
    headers = [("Content-Type", names.PROBLEM_JSON), ("Content-Length", str(len(body)))]
    return ResponseHead(500, headers), body
