"""One request that runs in a child, seen from the worker."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import deque
from typing import Protocol

from nvcf_worker.errors import ProcessDied
from nvcf_worker.exchange.files import FileContext
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.process import logs
from nvcf_worker.run.processes.channel import Channel
from nvcf_worker.run.processes.frames import PIECE, WINDOW, Frame
from nvcf_worker.run.processes.packing import Answer, FilePlaces, Start, pack_error, unpack_error

log = logging.getLogger("nvcf_worker")


class Owner(Protocol):
    """Who is told of a call's end."""

    def call_ended(self, call: Call) -> None:
        """The child has done with it, or is gone."""


class Call:
    """From START to the frame that ends it; then `ended` is set. Used on the event loop only.

    `tries`: which try of the request this is, deliveries and repetitions together. `begun`: it has a child.
    """

    def __init__(self, number: int, request: Request, tries: int, owner: Owner) -> None:
        self.number = number
        self.request = request
        self.tries = tries
        self.begun = asyncio.Event()
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.died: ProcessDied | None = None
        self.alone_in_death = False
        self._owner = owner
        self._channel: Channel | None = None
        self._parts: list[bytes] = []
        self._stream: CallStream | None = None
        self._upload: asyncio.Task[None] | None = None
        self._credit = WINDOW
        self._credited = asyncio.Event()
        self._cancelled = False

    def begin(self, channel: Channel) -> None:
        """Give the request to a child."""
        self._channel = channel
        self.begun.set()
        channel.send(Frame.START, self.number, start_of(self.request, self.tries).pack())
        if self._cancelled:
            channel.send(Frame.CANCEL, self.number)

    @property
    def repeatable(self) -> bool:
        """Whether another child could run it: its body is here, or has not been asked for yet."""
        return self.request._whole_body is not None or self._upload is None

    def cancel(self) -> None:
        """Stop the handler; `ended` is set when it has stopped."""
        if not self._cancelled and not self.ended.is_set():
            self._cancelled = True
            if self._channel is not None:
                self._channel.send(Frame.CANCEL, self.number)

    def on_frame(self, kind: Frame, payload: bytes) -> None:
        """A frame of this call from its child."""
        if kind is Frame.CHUNK and self._stream is not None:
            self._stream.add(payload)
        elif kind is Frame.CREDIT:
            self._credit += int.from_bytes(payload)
            self._credited.set()
        elif kind is Frame.PART:
            self._parts.append(payload)
        elif kind is Frame.NEED_BODY:
            self._upload = asyncio.create_task(self._send_body())
        elif kind is Frame.PROGRESS:
            self._tell_progress(payload)
        elif kind is Frame.OUTPUT:
            # From here on the worker looks for result files, and removes the directory in the end.
            if isinstance(self.request._context, FileContext):
                self.request._context.files.output_made = True
        elif kind is Frame.STREAM:
            self._begin_stream(Answer.unpack(payload))
        else:
            self._last_frame(kind, payload)

    def _tell_progress(self, payload: bytes) -> None:
        try:
            self.request.progress(*pickle.loads(payload))  # noqa: S301 - from our own child
        except Exception:
            # A partial result of a class that only the child can make. Raised from here it would end the
            # channel, and with it the child and whatever else runs there.
            log.warning("progress of request %s cannot be told", self.request.id, exc_info=True)

    def _begin_stream(self, answer: Answer) -> None:
        self._stream = CallStream(self)
        if not self.outcome.done():
            reply = StreamReply(answer.status, answer.headers, answer.body, self._stream, answer.length)
            self.outcome.set_result(reply)

    def _last_frame(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.REPLY:
            answer = Answer.unpack(payload)
            self._parts.append(answer.body)
            if not self.outcome.done():
                self.outcome.set_result(Reply(answer.status, answer.headers, b"".join(self._parts)))
            self._end(None)
        elif kind is Frame.END:
            self._end(None)
        elif kind is Frame.FAILED:
            self._end(unpack_error(payload))
        elif kind is Frame.GONE:
            self._end(asyncio.CancelledError())

    def child_died(self, error: ProcessDied, *, alone: bool) -> None:
        """Its child is gone."""
        self.died = error
        self.alone_in_death = alone
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        if self._upload is not None:
            self._upload.cancel()
        if self._stream is not None:
            self._stream.finish(error)
        elif not self.outcome.done():
            if error is None or isinstance(error, asyncio.CancelledError):
                self.outcome.cancel()
            else:
                self.outcome.set_exception(error)
        self._owner.call_ended(self)

    async def wait_ended(self) -> None:
        """Wait until the handler has really ended, through cancellations, which are passed on then."""
        cancelled = False
        while not self.ended.is_set():
            try:
                await self.ended.wait()
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    def read(self, size: int) -> None:
        """The answer's reader took so many bytes."""
        if self._channel is not None and not self.ended.is_set():
            self._channel.send(Frame.CREDIT, self.number, size.to_bytes(4))

    async def _send_body(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            async for chunk in self.request.stream():
                for at in range(0, len(chunk), PIECE):
                    while self._credit <= 0:
                        self._credited.clear()
                        await self._credited.wait()
                    piece = chunk[at : at + PIECE]
                    self._credit -= len(piece)
                    channel.send(Frame.BODY, self.number, piece)
                    await channel.drain()
            channel.send(Frame.BODY_END, self.number)
        except Exception as error:  # noqa: BLE001 - raised in the child, where the body is read
            channel.send(Frame.BODY_FAILED, self.number, pack_error(error))


class CallStream:
    """The rest of a streamed answer, as delivery reads it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._chunks: deque[bytes] = deque()
        self._finished = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unreported = 0

    def add(self, chunk: bytes) -> None:
        """A chunk came."""
        self._chunks.append(chunk)
        self._wake()

    def finish(self, error: BaseException | None) -> None:
        """Nothing more comes."""
        self._finished = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._finished:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks = self._chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._unreported += len(chunk)
        if self._unreported >= WINDOW // 4:
            self._call.read(self._unreported)
            self._unreported = 0
        return chunk

    async def aclose(self) -> None:
        """Stop the handler and wait until it has ended."""
        self._chunks.clear()
        self._call.cancel()
        await self._call.wait_ended()


def start_of(request: Request, tries: int) -> Start:
    """What a child needs of a request to make its own; `tries` is what it is told as `attempt`."""
    work, function, context = request._work, request._function, request._context
    known = context if isinstance(context, FileContext) else None
    body = request._whole_body
    message = type(work.message)()
    message.CopyFrom(work.message)
    message.requestBody = b""
    return Start(
        message=message.SerializeToString(),
        attempt=tries,
        received_at=work.received_at,
        region=work.region,
        trace=dict(work.trace) if work.trace is not None else logs.current_trace() or None,
        method=request.method,
        target=request.target,
        sent=request._sent,
        body=body if body is not None and len(body) <= PIECE else None,
        function_id=function.function_id,
        version_id=function.version_id,
        headers=function.headers,
        files=None if known is None else places_of(known),
    )


def places_of(context: FileContext) -> FilePlaces:
    """Where a request's files are."""
    asset_base, output_base = context.files.bases
    return FilePlaces(str(asset_base), str(output_base), dict(context.files.assets), context.carries_files)
