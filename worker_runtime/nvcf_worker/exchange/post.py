"""Responses by POST (protocol.md, section 3.3): complete ones are repeated, streams are sent once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from nvcf_proto import h1
from nvcf_worker.errors import CallerGone, DeliveryError, GatewayGone, StreamLost, UnknownToken
from nvcf_worker.exchange.attach import AttachClient, Upload
from nvcf_worker.function.response import Reply, StreamReply
from nvcf_worker.message import AttachTarget
from nvcf_worker.process.durations import Backoff

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

POST_ATTEMPTS = 6
REFUSED_ATTEMPTS = 3
POST_BACKOFF = Backoff(first=0.05, limit=2.0)
STATUS_WAIT = 1.0
REFUSAL_WAIT = 0.25
JOINED_BODY = 64 * 1024
PIECE = 256 * 1024


class StreamBroken(DeliveryError):
    """The handler failed after the head of its response had been sent."""


async def post_complete(
    attach: AttachClient, target: AttachTarget, reply: Reply, sent: Callable[[], None]
) -> None:
    """POST a complete response; call `sent` and raise as `Transport.deliver` does."""
    head = h1.encode_response_head(reply.status, _with_length(reply))
    tries = _Tries()
    async for _ in tries:
        try:
            status = await _post_once(attach, target, head, reply.body, sent)
        except (aiohttp.ClientError, OSError) as error:
            tries.failed(error)
            continue
        if status < 500:
            _check(status)
            return
        tries.problem = f"the gateway answered {status}"
    raise tries.given_up()


async def _post_once(
    attach: AttachClient, target: AttachTarget, head: bytes, body: bytes, sent: Callable[[], None]
) -> int:
    upload = Upload(len(head) + len(body))
    exchange = asyncio.create_task(attach.post(target, upload))
    exchange.add_done_callback(lambda _: upload.exchange_ended())
    try:
        writer = await upload.writer()
        if writer is not None:
            try:
                for piece in pieces(head, body):
                    await writer.write(piece)
                upload.finish()
                sent()
            except (aiohttp.ClientError, OSError):
                # The gateway answered early, or the connection broke; the exchange tells which.
                upload.abort()
        return await exchange
    finally:
        upload.abort()
        await _ended(exchange)


@dataclass(slots=True, eq=False)
class StreamPost:
    """One POST of a streamed response. The calling task reads the handler's stream."""

    attach: AttachClient
    target: AttachTarget
    reply: StreamReply
    _interrupted: bool = False
    _broke: bool = False

    async def run(self, sent: Callable[[], None]) -> None:
        """Send the stream; raise as `Transport.deliver` does."""
        head = h1.encode_response_head(self.reply.status, self.reply.headers)
        tries = _Tries()
        async for _ in tries:
            exchange, upload = self._begin(len(head))
            try:
                writer = await upload.writer()
                if writer is not None:
                    # From here on the stream is consumed, so it cannot be repeated.
                    self.reply.begun = True
                    await self._write(writer, head, upload, exchange)
                    sent()
                    _check(await exchange)
                    return
                status = await exchange
                _check(status if status != 200 else 500)
            except aiohttp.ClientError as error:
                if upload.lent:
                    upload.abort()
                    await self._raise_status(exchange)
                    raise StreamLost(f"the connection to the gateway broke: {error}") from error
                tries.failed(error)
            finally:
                upload.abort()
                await _ended(exchange)
        raise tries.given_up()

    @staticmethod
    async def _raise_status(exchange: asyncio.Task[int]) -> None:
        """After a failed write, raise what the gateway answered before it closed the connection."""
        await asyncio.wait([exchange], timeout=STATUS_WAIT)
        if exchange.done() and not exchange.cancelled() and exchange.exception() is None:
            _check(exchange.result())

    def _begin(self, head_size: int) -> tuple[asyncio.Task[int], Upload]:
        length = self.reply.length
        upload = Upload(None if length is None else head_size + length)
        exchange = asyncio.create_task(self.attach.post(self.target, upload))
        owner = this_task()

        def ended(done: asyncio.Task[int]) -> None:
            upload.exchange_ended()
            if upload.lent and not upload.ended:
                self._broke = not done.cancelled() and done.exception() is not None
                self._interrupted = True
                if not self.reply.patient:
                    # The handler may be far from its next item, which nobody wants any more.
                    owner.cancel()

        exchange.add_done_callback(ended)
        return exchange, upload

    async def _write(
        self, writer: AbstractStreamWriter, head: bytes, upload: Upload, exchange: asyncio.Task[int]
    ) -> None:
        source = self.reply.source
        try:
            await writer.write(head + self.reply.first)
            if self.reply.cautious:
                await asyncio.wait([exchange], timeout=REFUSAL_WAIT)
                if self._interrupted:
                    raise self._left()
            while True:
                try:
                    chunk = await source.__anext__()
                except StopAsyncIteration:
                    break
                except Exception as error:
                    raise StreamBroken("the handler failed in the middle of its response") from error
                if self._interrupted:
                    raise self._left()
                if chunk:
                    await writer.write(chunk)
        except asyncio.CancelledError:
            if self._interrupted and not self.reply.patient and this_task().uncancel() == 0:
                raise self._left() from None
            raise
        upload.finish()

    def _left(self) -> DeliveryError:
        if self._broke:
            return StreamLost("the connection to the gateway broke")
        return CallerGone("the gateway ended the exchange before the response was complete")


@dataclass(slots=True, eq=False)
class _Tries:
    """Tries of one POST, with growing pauses; fewer if the host refuses connections."""

    problem: str = ""
    _attempt: int = 0
    _refused: int = 0

    def __aiter__(self) -> _Tries:
        return self

    async def __anext__(self) -> int:
        if self._attempt >= POST_ATTEMPTS or self._refused >= REFUSED_ATTEMPTS:
            raise StopAsyncIteration
        if self._attempt:
            await asyncio.sleep(POST_BACKOFF.delay(self._attempt - 1, random.random()))  # noqa: S311 - jitter
        self._attempt += 1
        return self._attempt

    def failed(self, error: Exception) -> None:
        """Count a try without a connection, or whose connection broke."""
        self._refused += isinstance(error, aiohttp.ClientConnectorError)
        self.problem = f"{type(error).__name__}: {error}"

    def given_up(self) -> GatewayGone:
        """Return the error to raise after the last try."""
        return GatewayGone(f"gave up after {self._attempt} attempts; {self.problem}")


def _with_length(reply: Reply) -> list[tuple[str, str]]:
    """Return the headers with a Content-Length, unless there is one (HEAD) or must be none."""
    if reply.status in (204, 304) or any(name.lower() == "content-length" for name, _ in reply.headers):
        return reply.headers
    return [*reply.headers, ("content-length", str(len(reply.body)))]


def pieces(head: bytes, body: bytes) -> Iterator[bytes | memoryview]:
    """Yield head and body in pieces, for back-pressure; a small response is one piece."""
    if len(body) <= JOINED_BODY:
        yield head + body
        return
    yield head
    view = memoryview(body)
    for start in range(0, len(body), PIECE):
        yield view[start : start + PIECE]


def _check(status: int) -> None:
    if status == 200:
        return
    if status == 401:
        raise UnknownToken("the gateway does not know the token of the request any more")
    raise DeliveryError(f"the gateway refused the response with {status}")


def this_task() -> asyncio.Task[object]:
    """Return the running task."""
    task: asyncio.Task[object] | None = asyncio.current_task()
    if task is None:
        raise RuntimeError("not called from a task")
    return task


async def _ended(exchange: asyncio.Task[int]) -> None:
    """End an HTTP exchange and collect its outcome, so that nothing is left running."""
    if not exchange.done():
        exchange.cancel()
    await asyncio.wait([exchange])
    if not exchange.cancelled():
        # The outcome was used where it matters; this only marks it as retrieved.
        exchange.exception()
