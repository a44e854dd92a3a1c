"""One request in a child process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import BodyUnavailable
from nvcf_worker.function.body import Download, RequestBody
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.function.request import FunctionContext
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.message import NOWHERE, Work
from nvcf_worker.process import logs
from nvcf_worker.run.executor import Executor, request_type
from nvcf_worker.run.processes.channel import Channel
from nvcf_worker.run.processes.child_context import ChildContext
from nvcf_worker.run.processes.frames import PIECE, WINDOW, Frame
from nvcf_worker.run.processes.packing import Answer, Start, pack_error, unpack_error

log = logging.getLogger("nvcf_worker")


class ServedCall:
    """Runs one call and sends what comes of it. Used on the event loop only."""

    def __init__(self, executor: Executor, channel: Channel, number: int, payload: bytes) -> None:
        self._executor = executor
        self._channel = channel
        self._number = number
        self._start = Start.unpack(payload)
        self._loop = asyncio.get_running_loop()
        self._credit = WINDOW
        self._credited = asyncio.Event()
        self._upload: Upload | None = None
        self.scope = CancelScope()
        self._work = self._read_work()

    def _read_work(self) -> Work:
        start = self._start
        message = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(start.message)
        return Work(
            message=message,
            request_id=message.requestId,
            region=start.region,
            ack_subject="",
            attempt=start.attempt,
            received_at=start.received_at,
            target=NOWHERE,
            reply_subject=None,
            reply_max_bytes=0,
            trace=start.trace,
        )

    def on_frame(self, kind: int, payload: bytes) -> None:
        """A frame of this call."""
        if kind == Frame.CANCEL:
            self.cancel()
        elif kind == Frame.CREDIT:
            self._credit += int.from_bytes(payload)
            self._credited.set()
        elif self._upload is not None:
            self._upload.on_frame(kind, payload)

    def cancel(self) -> None:
        """Stop the handler."""
        self.scope.stop(End.CALLER_GONE)

    async def run(self) -> None:
        """Run the request to its end; never raises."""
        logs.request_id.set(self._work.request_id)
        if self._work.trace is not None:
            logs.attach_trace(self._work.trace)
        try:
            self.scope.interruptible = True
            if self.scope.end is not None:
                raise asyncio.CancelledError
            await self._deliver(await self._run_handler())
        except asyncio.CancelledError:
            if self.scope.end is None:
                self._send(Frame.FAILED, pack_error(RuntimeError("the handler let a cancellation escape")))
            else:
                self._send(Frame.GONE)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the worker logs it and answers
            self._send(Frame.FAILED, pack_error(error))
        finally:
            self.scope.interruptible = False

    async def _run_handler(self) -> Outcome:
        start = self._start
        handler, parameters = self._executor.select(start.method, start.target)
        body = RequestBody(start.body or b"", self._open if start.body is None else None)
        self.scope.body = body
        context = None
        if start.files is not None:
            context = ChildContext(start.files, self._work.request_id, self._send_from_anywhere)
        request = request_type(handler)(
            self._work,
            FunctionContext(start.function_id, start.version_id, start.headers),
            body,
            self.scope.cancelled,
            method=start.method,
            target=start.target,
            sent=start.sent,
            path_params=parameters,
            context=context,
        )
        return await self._executor.run(request, self.scope, handler)

    async def _open(self) -> Download:
        self._upload = Upload(self._channel, self._number)
        self._send(Frame.NEED_BODY)
        return self._upload

    async def _deliver(self, outcome: Outcome) -> None:
        if isinstance(outcome, StreamReply):
            await self._stream(outcome)
            return
        await self._reply(outcome)

    async def _reply(self, reply: Reply) -> None:
        body, at = reply.body, 0
        while len(body) - at > PIECE:
            self._send(Frame.PART, body[at : at + PIECE])
            at += PIECE
            await self._channel.drain()
        self._send(Frame.REPLY, Answer(reply.status, reply.headers, body[at:] if at else body).pack())

    async def _stream(self, reply: StreamReply) -> None:
        try:
            first = reply.first
            head = Answer(reply.status, reply.headers, first[:PIECE], reply.length)
            self._send(Frame.STREAM, head.pack())
            await self._chunk(first[PIECE:])
            while True:
                try:
                    chunk = await reply.source.__anext__()
                except StopAsyncIteration:
                    break
                await self._chunk(chunk)
        finally:
            # Until the handler has really ended its place counts as taken.
            await reply.source.aclose()
        self._send(Frame.END)

    async def _chunk(self, chunk: bytes) -> None:
        for at in range(0, len(chunk), PIECE):
            while self._credit <= 0:
                self._credited.clear()
                await self._credited.wait()
            piece = chunk[at : at + PIECE]
            self._credit -= len(piece)
            self._send(Frame.CHUNK, piece)

    def _send(self, kind: Frame, payload: bytes = b"") -> None:
        self._channel.send(kind, self._number, payload)

    def _send_from_anywhere(self, kind: Frame, payload: bytes) -> None:
        try:
            on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            on_loop = False
        # Directly where possible: what a handler tells must be sent before what it returns.
        if on_loop:
            self._send(kind, payload)
        else:
            self._loop.call_soon_threadsafe(self._send, kind, payload)


class Upload:
    """The body as it comes from the worker; more is asked for as it is read."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    def on_frame(self, kind: int, payload: bytes) -> None:
        """A piece, the end or a failure."""
        if kind == Frame.BODY:
            self._pieces.append(payload)
        elif kind == Frame.BODY_END:
            self._ended = True
        elif kind == Frame.BODY_FAILED:
            self._error = unpack_error(payload)
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._read()

    async def _read(self) -> AsyncIterator[bytes]:
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
        """Nothing more is wanted."""
        if not self._ended and self._error is None:
            self._error = BodyUnavailable("the request was cancelled while its body was read")
            self._changed.set()
