"""A request that runs in a child process, as the worker sees it."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import deque
from collections.abc import Callable

from nvcf_worker.errors import ProcessDied
from nvcf_worker.exchange.files import FileContext
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.process import logs
from nvcf_worker.run.processes.channel import PIECE, WINDOW, BodySender, Channel, Frame
from nvcf_worker.run.processes.packing import (
    FilePlaces,
    PackedRequest,
    PackedResponse,
    pack_error,
    unpack_error,
)
from nvcf_worker.run.threads import wait_uninterrupted

log = logging.getLogger("nvcf_worker")


class RemoteRequest:
    """One try of a request, from its START frame to the frame that ends it. Used on the event loop only.

    tries: number of this try, deliveries and retries in the worker together.
    on_end: called when the child has finished with the request, or has died.
    `begun` is set when the request has a child, `ended` is done at its end.
    """

    def __init__(
        self, number: int, request: Request, tries: int, on_end: Callable[[RemoteRequest], None]
    ) -> None:
        self.number = number
        self.request = request
        self.tries = tries
        self.begun = asyncio.Event()
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.died: ProcessDied | None = None
        self.died_alone = False
        self._on_end = on_end
        self._channel: Channel | None = None
        self._parts: list[bytes] = []
        self._stream: RemoteStream | None = None
        self._upload: asyncio.Task[None] | None = None
        self._body = BodySender(Frame.BODY, number)
        self._cancelled = False

    def begin(self, channel: Channel) -> None:
        """Send the request to a child."""
        self._channel = channel
        self.begun.set()
        channel.send(Frame.START, self.number, packed(self.request, self.tries).pack())
        if self._cancelled:
            channel.send(Frame.CANCEL, self.number)

    @property
    def repeatable(self) -> bool:
        """Whether another child could run the request: its body is here, or was not read yet."""
        return self.request._whole_body is not None or self._upload is None

    def cancel(self) -> None:
        """Cancel the handler; `ended` is done when the handler has ended."""
        if not self._cancelled and not self.ended.done():
            self._cancelled = True
            if self._channel is not None:
                self._channel.send(Frame.CANCEL, self.number)

    def on_frame(self, kind: Frame, payload: bytes) -> None:
        """Handle a frame of this request from its child."""
        if kind is Frame.CHUNK and self._stream is not None:
            self._stream.add(payload)
        elif kind is Frame.CREDIT:
            self._body.add_credit(payload)
        elif kind is Frame.PART:
            self._parts.append(payload)
        elif kind is Frame.NEED_BODY and self._channel is not None:
            self._upload = asyncio.create_task(self._send_body(self._channel))
        elif kind is Frame.PROGRESS:
            self._report_progress(payload)
        elif kind is Frame.OUTPUT:
            # From now on the worker looks for result files, and it removes the directory at the end.
            if isinstance(self.request._context, FileContext):
                self.request._context.files.output_made = True
        elif kind is Frame.STREAM:
            self._begin_stream(PackedResponse.unpack(payload))
        else:
            self._on_last_frame(kind, payload)

    def _report_progress(self, payload: bytes) -> None:
        try:
            self.request.progress(*pickle.loads(payload))  # noqa: S301 - from our own child
        except Exception:
            # E.g. a partial result of a class that only the child can import. It must not get out of here:
            # it would close the channel, and so end the child and all its requests.
            log.warning("progress of request %s cannot be reported", self.request.id, exc_info=True)

    def _begin_stream(self, head: PackedResponse) -> None:
        self._stream = RemoteStream(self)
        if not self.outcome.done():
            self.outcome.set_result(
                StreamReply(head.status, head.headers, head.body, self._stream, head.length)
            )

    def _on_last_frame(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.REPLY:
            response = PackedResponse.unpack(payload)
            self._parts.append(response.body)
            if not self.outcome.done():
                self.outcome.set_result(Reply(response.status, response.headers, b"".join(self._parts)))
            self._end(None)
        elif kind is Frame.END:
            self._end(None)
        elif kind is Frame.FAILED:
            self._end(unpack_error(payload))
        elif kind is Frame.CANCELLED:
            self._end(asyncio.CancelledError())

    def child_died(self, error: ProcessDied, *, alone: bool) -> None:
        """End the request, because its child has died. `alone`: nothing else ran in the child."""
        self.died = error
        self.died_alone = alone
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self.ended.done():
            return
        self.ended.set_result(None)
        if self._upload is not None:
            self._upload.cancel()
        if self._stream is not None:
            self._stream.finish(error)
        elif not self.outcome.done():
            if error is None or isinstance(error, asyncio.CancelledError):
                self.outcome.cancel()
            else:
                self.outcome.set_exception(error)
        self._on_end(self)

    def add_credit(self, size: int) -> None:
        """Tell the child that the reader of the response has read `size` bytes."""
        if self._channel is not None and not self.ended.done():
            self._channel.send(Frame.CREDIT, self.number, size.to_bytes(4))

    async def _send_body(self, channel: Channel) -> None:
        try:
            async for chunk in self.request.stream():
                await self._body.send(channel, chunk)
            channel.send(Frame.BODY_END, self.number)
        except Exception as error:  # noqa: BLE001 - raised in the child, where the body is read
            channel.send(Frame.BODY_FAILED, self.number, pack_error(error))


class RemoteStream:
    """The rest of a streamed response, as delivery reads it. Chunks that have piled up are joined."""

    def __init__(self, request: RemoteRequest) -> None:
        self._request = request
        self._chunks: deque[bytes] = deque()
        self._finished = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._uncredited = 0

    def add(self, chunk: bytes) -> None:
        """Add a chunk."""
        self._chunks.append(chunk)
        self._changed.set()

    def finish(self, error: BaseException | None) -> None:
        """End the stream after the chunks that are there, with an error if there is one."""
        self._finished = True
        self._error = error
        self._changed.set()

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._finished:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        chunks = self._chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._uncredited += len(chunk)
        if self._uncredited >= WINDOW // 4:
            self._request.add_credit(self._uncredited)
            self._uncredited = 0
        return chunk

    async def aclose(self) -> None:
        """Cancel the handler and wait until it has ended."""
        self._chunks.clear()
        self._request.cancel()
        await wait_uninterrupted(self._request.ended)


def packed(request: Request, tries: int) -> PackedRequest:
    """Return what a child needs to make the same request; `tries` becomes its `attempt`."""
    work, function, context = request._work, request._function, request._context
    body = request._whole_body
    message = type(work.message)()
    message.CopyFrom(work.message)
    message.requestBody = b""
    return PackedRequest(
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
        files=_places(context) if isinstance(context, FileContext) else None,
    )


def _places(context: FileContext) -> FilePlaces:
    files = context.files
    return FilePlaces(
        str(files.asset_base), str(files.output_base), dict(files.assets), context.carries_files
    )
