"""A request in the child process that runs it."""

from __future__ import annotations

import asyncio
import functools
import pickle
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import BodyUnavailable
from nvcf_worker.exchange.files import RequestFiles, check_percent
from nvcf_worker.function.body import Download, RequestBody
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.function.headers import NamedFiles
from nvcf_worker.function.request import Asset, FunctionContext
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.message import NOWHERE, Work
from nvcf_worker.process import logs
from nvcf_worker.run.executor import Executor, request_type
from nvcf_worker.run.processes.channel import PIECE, BodySender, Channel, Frame
from nvcf_worker.run.processes.packing import (
    FilePlaces,
    PackedRequest,
    PackedResponse,
    pack_error,
    unpack_error,
)


class ServedRequest:
    """Runs one request and sends its response. Used on the event loop only."""

    def __init__(self, executor: Executor, channel: Channel, number: int, payload: bytes) -> None:
        self._executor = executor
        self._channel = channel
        self._number = number
        self._packed = PackedRequest.unpack(payload)
        self._loop = asyncio.get_running_loop()
        self._response = BodySender(Frame.CHUNK, number)
        self._body: ChannelBody | None = None
        self.scope = CancelScope()
        message = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(self._packed.message)
        self.work = Work(
            message=message,
            request_id=message.requestId,
            region=self._packed.region,
            ack_subject="",
            attempt=self._packed.attempt,
            received_at=self._packed.received_at,
            reply_address=NOWHERE,
            trace=self._packed.trace,
        )

    def on_frame(self, kind: Frame, payload: bytes) -> None:
        """Handle a frame of this request."""
        if kind is Frame.CANCEL:
            self.cancel()
        elif kind is Frame.CREDIT:
            self._response.add_credit(payload)
        elif self._body is not None:
            self._body.on_frame(kind, payload)

    def cancel(self) -> None:
        """Cancel the handler."""
        self.scope.stop(End.CALLER_GONE)

    async def run(self) -> None:
        """Run the request to its end. Errors are sent to the worker, not raised."""
        logs.request_id.set(self.work.request_id)
        if self.work.trace is not None:
            logs.attach_trace(self.work.trace)
        try:
            self.scope.interruptible = True
            if self.scope.end is not None:
                raise asyncio.CancelledError
            response = await self._run_handler()
            if isinstance(response, StreamReply):
                await self._send_stream(response)
            else:
                await self._send_reply(response)
        except asyncio.CancelledError:
            self._send(Frame.CANCELLED)
        except Exception as error:  # noqa: BLE001 - the worker logs it and responds
            self._send(Frame.FAILED, pack_error(error))
        finally:
            self.scope.interruptible = False

    async def _run_handler(self) -> Outcome:
        packed = self._packed
        handler, parameters = self._executor.select(packed.method, packed.target)
        body = RequestBody(packed.body or b"", self._open_body if packed.body is None else None)
        self.scope.body = body
        context = None
        if packed.files is not None:
            context = ChildContext(packed.files, self.work.request_id, self._send_from_any_thread)
        function = FunctionContext(packed.function_id, packed.version_id, packed.headers)
        method, target, cancelled = packed.method, packed.target, self.scope.cancelled
        request = request_type(handler)(
            self.work, function, body, cancelled, method, target, parameters, packed.sent, context
        )
        return await self._executor.run(request, self.scope, handler)

    async def _open_body(self) -> Download:
        self._body = ChannelBody(self._channel, self._number)
        self._send(Frame.NEED_BODY)
        return self._body

    async def _send_reply(self, reply: Reply) -> None:
        body, at = reply.body, 0
        while len(body) - at > PIECE:
            self._send(Frame.PART, body[at : at + PIECE])
            at += PIECE
            await self._channel.drain()
        last = PackedResponse(reply.status, reply.headers, body[at:] if at else body)
        self._send(Frame.REPLY, last.pack())

    async def _send_stream(self, reply: StreamReply) -> None:
        try:
            first = reply.first
            head = PackedResponse(reply.status, reply.headers, first[:PIECE], reply.length)
            self._send(Frame.STREAM, head.pack())
            await self._response.send(self._channel, first[PIECE:])
            while True:
                try:
                    chunk = await reply.source.__anext__()
                except StopAsyncIteration:
                    break
                await self._response.send(self._channel, chunk)
        finally:
            # The request holds its place in the child until the handler has ended.
            await reply.source.aclose()
        self._send(Frame.END)

    def _send(self, kind: Frame, payload: bytes = b"") -> None:
        self._channel.send(kind, self._number, payload)

    def _send_from_any_thread(self, kind: Frame, payload: bytes) -> None:
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        # Directly if possible, because progress must be sent before the response.
        if on_loop:
            self._send(kind, payload)
        else:
            self._loop.call_soon_threadsafe(self._send, kind, payload)


class ChannelBody:
    """The request's body as it comes from the worker, which sends more as it is read."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    def on_frame(self, kind: Frame, payload: bytes) -> None:
        """Take a piece, the end or an error."""
        if kind is Frame.BODY:
            self._pieces.append(payload)
        elif kind is Frame.BODY_END:
            self._ended = True
        elif kind is Frame.BODY_FAILED:
            self._error = unpack_error(payload)
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            if self._pieces:
                piece = self._pieces.popleft()
                self._channel.send(Frame.CREDIT, self._number, len(piece).to_bytes(4))
                yield piece
            elif self._error is not None:
                raise self._error
            elif self._ended:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def close(self) -> None:
        """Stop reading: a reader that waits gets BodyUnavailable."""
        if not self._ended and self._error is None:
            self._error = BodyUnavailable("the request was cancelled while its body was read")
            self._changed.set()


class ChildContext:
    """The RequestContext in a child process.

    The worker fetches, uploads and removes the files, which both processes share; progress is sent to it.
    """

    def __init__(self, places: FilePlaces, request_id: str, send: Callable[[Frame, bytes], None]) -> None:
        self._places = places
        self._request_id = request_id
        self._send = send

    @functools.cached_property
    def _files(self) -> RequestFiles:
        places = self._places
        return RequestFiles(Path(places.asset_base), Path(places.output_base), self._request_id)

    @property
    def assets(self) -> Mapping[str, Asset]:
        """The downloaded assets by id."""
        return self._places.assets

    @property
    def output_dir(self) -> Path:
        """The output directory, created on first use."""
        reported = self._files.output_made
        directory = self._files.output_dir
        if not reported:
            self._send(Frame.OUTPUT, b"")
        return directory

    def named_files(self) -> NamedFiles | None:
        """Return the directories as the request's headers name them; None if there are none."""
        output = str(self.output_dir) if self._places.carries_files else ""
        if not output and not self._places.assets:
            return None
        return NamedFiles(str(self._files.asset_dir), tuple(self._places.assets), output)

    def progress(self, percent: float, partial: Any) -> None:
        """Report progress, from any thread. Raises TypeError, or what pickle raises for `partial`."""
        check_percent(percent)
        self._send(Frame.PROGRESS, pickle.dumps((percent, partial)))
