"""One invocation: from a caller's request through the queue to the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from nvcf_gateway.auth import Authenticator, Authorizer, Caller
from nvcf_gateway.bodies import CallerBody
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.cors import response_headers
from nvcf_gateway.errors import CallerGone, HttpProblem, QueueError, QueueFull
from nvcf_gateway.exec_json import exec_status, parse_exec, wrap_answer
from nvcf_gateway.owner import TaskOwner
from nvcf_gateway.pending import Outcome, Pending, PendingRequests
from nvcf_gateway.queue import RequestQueue
from nvcf_gateway.replies import json_response
from nvcf_gateway.routing import Target
from nvcf_gateway.sinks import CollectSink, Sink, StreamSink
from nvcf_gateway.timing import poll_seconds
from nvcf_gateway.work import Delivery, Work, build_request, forwarded_headers, header_text, message_headers
from nvcf_proto import headers as names
from nvcf_proto.h1 import H1Error, RequestHead, ResponseHead
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion
from nvcf_proto.settings import CALL_MAX_SECONDS, GATEWAY_EXTRA_WAIT, MAX_DIRECT_RESPONSE, MAX_INLINE_BODY
from nvcf_proto.subjects import inline_reply_subject

_log = logging.getLogger(__name__)

READ_AHEAD_PATIENCE = 5.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Header = tuple[str, str]


@dataclass(frozen=True)
class Call:
    """One authorised invocation, ready to be queued."""

    caller: Caller
    version: FunctionVersion
    head: RequestHead
    body: CallerBody
    poll_seconds: int
    request_id: str
    started: float
    full_by_attach: bool = False


class Invoker:
    """Invocations of this replica."""

    def __init__(
        self,
        config: GatewayConfig,
        gateway_id: str,
        attach_url: Callable[[], str],
        authenticator: Authenticator,
        authorizer: Authorizer,
        queue: RequestQueue,
        pending: PendingRequests,
        owner: TaskOwner,
    ) -> None:
        self._config = config
        self._gateway_id = gateway_id
        self._attach_url = attach_url
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._queue = queue
        self._pending = pending
        self._owner = owner

    async def pass_through(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Any method and path, straight to the function."""
        caller, version = self._admit(request, target)
        call = await self._call(request, caller, version, target=request.raw_path, path_route=False)
        sink = StreamSink(request, lambda head: [*head.headers, (names.NVCF_REQID, call.request_id)])
        return await self._stream_answer(request, call, sink)

    async def pexec(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Raw body in and out."""
        caller, version = self._admit(request, target)
        call = await self._call(request, caller, version, target=version.inference_url, path_route=True)
        cors = list(response_headers(request.headers).items())
        sink = StreamSink(request, lambda head: _path_headers(head, call.request_id, cors))
        return await self._stream_answer(request, call, sink)

    async def exec(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """JSON wrapper in and out."""
        caller, version = self._admit(request, target)
        await _expect_continue(request)
        wrapped = parse_exec(await _read_all(request, self._config.exec_body_bytes))
        seconds = wrapped.poll_seconds or _caller_poll_seconds(request, path_route=True)
        headers = [
            (name, value)
            for name, value in forwarded_headers(_raw_headers(request), seconds, pass_through=False)
            if name.lower() not in ("content-type", "content-length")
        ]
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(wrapped.body)))]
        body = self._body(_Bytes(wrapped.body), len(wrapped.body))
        await body.read_ahead(MAX_INLINE_BODY, READ_AHEAD_PATIENCE)
        head = RequestHead("POST", version.inference_url, headers)
        call = Call(caller, version, head, body, seconds, new_id(), time.time())
        sink = CollectSink(MAX_DIRECT_RESPONSE)
        if not await self._run(request, call, sink):
            return _timed_out(request, call.request_id)
        if sink.head is None:
            raise HttpProblem(502, "the worker left in the middle of its answer")
        status, answer = wrap_answer(call.request_id, sink.head, sink.body)
        extra = _path_headers(ResponseHead(sink.head.status), call.request_id, [])
        return json_response(status, answer, headers=extra)

    def _admit(self, request: web.BaseRequest, target: Target) -> tuple[Caller, FunctionVersion]:
        caller = self._authenticator.caller(request.headers)
        return caller, self._authorizer.version(caller, target)

    async def _call(
        self,
        request: web.BaseRequest,
        caller: Caller,
        version: FunctionVersion,
        *,
        target: str,
        path_route: bool,
    ) -> Call:
        seconds = _caller_poll_seconds(request, path_route=path_route)
        full = request.headers.get(names.NVCF_FEATURE_STREAM_FULL_REQUEST, "").lower() == "true"
        headers = forwarded_headers(_raw_headers(request), seconds, pass_through=not path_route)
        started = time.time()
        body = self._body(request.content, request.content_length)
        if request.can_read_body:
            await _expect_continue(request)
            await body.read_ahead(0 if full else MAX_INLINE_BODY, READ_AHEAD_PATIENCE)
        head = RequestHead(request.method, target, headers)
        return Call(caller, version, head, body, seconds, new_id(), started, full)

    def _body(self, source: web.BaseRequest | object, length: int | None) -> CallerBody:
        return CallerBody(
            source,  # type: ignore[arg-type] # StreamReader and _Bytes have what ByteSource asks for
            length,
            spool_memory_bytes=self._config.spool_memory_bytes,
            directory=self._config.spool_directory,
        )

    async def _stream_answer(
        self, request: web.BaseRequest, call: Call, sink: StreamSink
    ) -> web.StreamResponse:
        if not await self._run(request, call, sink):
            return _timed_out(request, call.request_id)
        if sink.response is None:
            raise HttpProblem(502, "the worker left in the middle of its answer")
        return sink.response

    async def _run(self, request: web.BaseRequest, call: Call, sink: Sink) -> bool:
        """Queue the call and wait for its answer in `sink`; False when the poll time is over."""
        loop = asyncio.get_running_loop()
        age = time.time() - call.started
        pending = Pending(call.request_id, call.version.id, sink, call.body, call.head)
        if call.full_by_attach or not call.body.complete:
            pending.request_token = new_id()
        pending.last_deadline = loop.time() - age + CALL_MAX_SECONDS
        sequence: int | None = None
        finished = False
        self._pending.add(pending)
        try:
            async with asyncio.timeout(call.poll_seconds + GATEWAY_EXTRA_WAIT - age) as waiter:
                pending.waiter = waiter
                sequence = await self._publish(request, call, pending)
                outcome = await pending.outcome
                finished = await self._complete(outcome, pending, sink)
        except TimeoutError:
            if pending.streaming is not None:
                sink.abort()
                raise HttpProblem(504, "the call took longer than a call may last") from None
            return False
        finally:
            pending.waiter = None
            self._pending.remove(pending)
            if not pending.outcome.done():
                pending.outcome.cancel()
            if pending.streaming is not None and not finished:
                pending.streaming.cancel()
            call.body.close()
            if not finished:
                self._owner.spawn(self._withdraw(call, sequence), f"withdraw {call.request_id}")
        return True

    async def _publish(self, request: web.BaseRequest, call: Call, pending: Pending) -> int | None:
        work = Work(
            request_id=call.request_id,
            nca_id=call.caller.nca_id,
            subject=call.caller.subject,
            method=call.head.method,
            path=call.head.target,
            headers=call.head.headers,
            requested_at=int(call.started * 1e9),
        )
        delivery = Delivery(self._attach_url(), pending.response_token, pending.request_token)
        payload = build_request(work, delivery, call.body.prefix, full_by_attach=call.full_by_attach)
        inline = self._config.inline_reply_bytes
        reply = inline_reply_subject(self._gateway_id, pending.inline_token) if inline else None
        headers = message_headers(request.headers, reply, inline)
        try:
            return await self._queue.publish(call.version.id, call.request_id, payload, headers)
        except QueueFull as error:
            raise HttpProblem(429, str(error), headers={"Retry-After": "1"}) from None
        except QueueError as error:
            _log.error("%s", error, extra={"request_id": call.request_id})
            raise HttpProblem(500, str(error)) from None

    @staticmethod
    async def _complete(outcome: Outcome, pending: Pending, sink: Sink) -> bool:
        if outcome is Outcome.STREAMED:
            return True
        if outcome is Outcome.BROKEN:
            sink.abort()
            return False
        assert pending.inline is not None  # noqa: S101 # set together with this outcome
        head, body = pending.inline
        try:
            await sink.complete(head, body)
        except CallerGone:
            # Delivered as far as the worker is concerned.
            return True
        except H1Error as error:
            sink.abort()
            _log.warning("inline answer dropped: %s", error, extra={"request_id": pending.request_id})
        return True

    async def _withdraw(self, call: Call, sequence: int | None) -> None:
        """Nobody waits any more: tell the workers and take the request out of the queue."""
        try:
            await self._queue.cancel(call.version.id, call.request_id)
            await self._queue.remove(call.version.id, call.request_id, sequence)
        except QueueError as error:
            _log.warning("%s", error, extra={"request_id": call.request_id})


class _Bytes:
    """Bytes in memory as a body source."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    async def read(self, n: int = -1) -> bytes:
        end = len(self._data) if n < 0 else self._offset + n
        part = self._data[self._offset : end]
        self._offset += len(part)
        return part

    def at_eof(self) -> bool:
        return self._offset >= len(self._data)


def _raw_headers(request: web.BaseRequest) -> list[Header]:
    return [(header_text(name), header_text(value)) for name, value in request.raw_headers]


def _caller_poll_seconds(request: web.BaseRequest, *, path_route: bool) -> int:
    return poll_seconds(
        request.headers.get(names.NVCF_POLL_SECONDS),
        accept=request.headers.get("Accept"),
        path_route=path_route,
    )


async def _expect_continue(request: web.BaseRequest) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(_CONTINUE)
        # What was written is no part of the response whose size the writer counts.
        request.writer.output_size = 0


async def _read_all(request: web.BaseRequest, limit: int) -> bytes:
    if request.content_length is not None and request.content_length > limit:
        raise HttpProblem(413, f"the body of exec is at most {limit} bytes: use pexec for larger ones")
    parts, size = [], 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise HttpProblem(413, f"the body of exec is at most {limit} bytes: use pexec for larger ones")
        parts.append(chunk)
    return b"".join(parts)


def _path_headers(head: ResponseHead, request_id: str, cors: list[Header]) -> list[Header]:
    """Headers of an exec or pexec answer: the function's, and what the contract adds."""
    exposed = [value for name, value in head.headers if name.lower() == "access-control-expose-headers"]
    own = {names.NVCF_REQID.lower(), names.NVCF_STATUS.lower(), "access-control-expose-headers"}
    own |= {name.lower() for name, _ in cors}
    headers = [(name, value) for name, value in head.headers if name.lower() not in own]
    headers += cors
    headers.append((names.NVCF_REQID, request_id))
    headers.append((names.NVCF_STATUS, exec_status(head.status)))
    headers.append(("Access-Control-Expose-Headers", ", ".join([*exposed, names.NVCF_REQID.lower()])))
    return headers


def _timed_out(request: web.BaseRequest, request_id: str) -> web.StreamResponse:
    headers: CIMultiDict[str] = CIMultiDict({names.NVCF_REQID: request_id})
    if not request.content.at_eof():
        headers["Connection"] = "close"
    return web.Response(status=504, headers=headers)
