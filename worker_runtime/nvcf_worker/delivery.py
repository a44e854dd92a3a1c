"""Getting an answer to the caller: inline reply, else POST `request-attach` (protocol.md sections 2, 3)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import aiohttp
import nats.errors

from nvcf_proto import h1
from nvcf_proto.headers import REPLY_STATUS
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.attach import AttachClient, Upload
from nvcf_worker.backoff import Backoff
from nvcf_worker.errors import CallerGone, DeliveryError
from nvcf_worker.execution import Outcome, StreamReply
from nvcf_worker.response import Reply
from nvcf_worker.work import AttachTarget, Work

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

    from nvcf_worker.replies import ReplyInbox

log = logging.getLogger("nvcf_worker")

INLINE_ANSWER_TIMEOUT = 2.0
MAX_UNCONFIRMED = 256
POST_ATTEMPTS = 6
POST_BACKOFF = Backoff(first=0.05, limit=2.0)
VERDICT_WAIT = 1.0
JOINED_BODY = 64 * 1024
PIECE = 256 * 1024


class StreamBroken(DeliveryError):
    """The handler failed after the head of its answer had been sent."""


class Deliverer:
    """Sends answers for one worker. `replies` gives the inbox of the present broker connection, if any."""

    def __init__(self, attach: AttachClient, replies: Callable[[], ReplyInbox | None]) -> None:
        self._attach = attach
        self._replies = replies

    async def deliver(self, work: Work, outcome: Outcome, written: Callable[[], None]) -> None:
        """Deliver and return when the gateway has confirmed it.

        `written` is called, once or more, as soon as the whole answer has left this process.
        Raises CallerGone when nobody waits for it, DeliveryError when it cannot be delivered.
        """
        if isinstance(outcome, StreamReply):
            await _StreamPost(self._attach, work.target, outcome).run(written)
            return
        if await self._deliver_inline(work, outcome, written):
            return
        await self._post_complete(work, outcome, written)

    async def _deliver_inline(self, work: Work, reply: Reply, written: Callable[[], None]) -> bool:
        inbox = self._replies()
        if work.reply_subject is None or inbox is None or len(reply.body) > work.reply_max_bytes:
            return False
        encoded = inline_response(reply)
        if len(encoded) > work.reply_max_bytes:
            return False
        # With a gateway that does not answer, unconfirmed replies must not pile up without bound: beyond
        # this number a request keeps its slot until it is confirmed.
        on_sent = written if len(inbox) < MAX_UNCONFIRMED else _nothing
        try:
            deadline = time.monotonic() + INLINE_ANSWER_TIMEOUT
            answer = await inbox.request(work.reply_subject, encoded, deadline=deadline, on_sent=on_sent)
        except nats.errors.Error as error:
            log.debug("inline reply could not be sent: %s", error)
            return False
        if answer is None:
            return False
        status = answer.headers.get(REPLY_STATUS) if answer.headers else None
        if status == "410":
            raise CallerGone("the caller is gone")
        return status is None

    async def _post_complete(self, work: Work, reply: Reply, written: Callable[[], None]) -> None:
        headers = [*reply.headers, ("content-length", str(len(reply.body)))]
        head = h1.encode_response_head(reply.status, headers if reply.status != 204 else reply.headers)
        problem = ""
        for attempt in range(POST_ATTEMPTS):
            if attempt:
                await asyncio.sleep(POST_BACKOFF.delay(attempt - 1, random.random()))  # noqa: S311 - jitter
            try:
                status = await self._post_once(work.target, head, reply.body, written)
            except (aiohttp.ClientError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status < 500:
                _check(status)
                return
            problem = f"the gateway answered {status}"
        raise DeliveryError(f"gave up after {POST_ATTEMPTS} attempts; {problem}")

    async def _post_once(
        self, target: AttachTarget, head: bytes, body: bytes, written: Callable[[], None]
    ) -> int:
        upload = Upload(len(head) + len(body))
        exchange = asyncio.create_task(self._attach.post(target, upload))
        exchange.add_done_callback(lambda _: upload.exchange_ended())
        try:
            writer = await upload.writer()
            if writer is not None:
                try:
                    for piece in pieces(head, body):
                        await writer.write(piece)
                    upload.finish()
                    written()
                except (aiohttp.ClientError, OSError):
                    # The gateway answered early or the connection broke: the exchange knows which.
                    upload.abort()
            return await exchange
        finally:
            upload.abort()
            await _ended(exchange)


class _StreamPost:
    """One POST of a streamed answer. The handler's stream is read by the calling task."""

    def __init__(self, attach: AttachClient, target: AttachTarget, reply: StreamReply) -> None:
        self._attach = attach
        self._target = target
        self._reply = reply
        self._interrupted = False

    async def run(self, written: Callable[[], None]) -> None:
        head = h1.encode_response_head(self._reply.status, self._reply.headers)
        problem = ""
        try:
            for attempt in range(POST_ATTEMPTS):
                if attempt:
                    await asyncio.sleep(POST_BACKOFF.delay(attempt - 1, random.random()))  # noqa: S311 - jitter
                exchange, upload = self._begin()
                try:
                    writer = await upload.writer()
                    if writer is not None:
                        # From here on the stream is consumed, so there is no second try.
                        await self._write(writer, head, upload)
                        written()
                        _check(await exchange)
                        return
                    status = await exchange
                    _check(status if status != 200 else 500)
                except aiohttp.ClientError as error:
                    if upload.lent:
                        upload.abort()
                        await self._raise_verdict(exchange)
                        raise DeliveryError(f"the connection to the gateway broke: {error}") from error
                    problem = f"{type(error).__name__}: {error}"
                finally:
                    upload.abort()
                    await _ended(exchange)
            raise DeliveryError(f"gave up after {POST_ATTEMPTS} attempts; {problem}")
        finally:
            await self._reply.source.aclose()

    @staticmethod
    async def _raise_verdict(exchange: asyncio.Task[int]) -> None:
        """After a failed write: raise what the gateway said, if it answered before it closed."""
        await asyncio.wait([exchange], timeout=VERDICT_WAIT)
        if exchange.done() and not exchange.cancelled() and exchange.exception() is None:
            _check(exchange.result())

    def _begin(self) -> tuple[asyncio.Task[int], Upload]:
        upload = Upload(None)
        exchange = asyncio.create_task(self._attach.post(self._target, upload))
        owner = this_task()

        def ended(_: asyncio.Task[int]) -> None:
            upload.exchange_ended()
            if upload.lent and not upload.ended:
                # The handler may be far from its next item; nobody wants it any more.
                self._interrupted = True
                owner.cancel()

        exchange.add_done_callback(ended)
        return exchange, upload

    async def _write(self, writer: AbstractStreamWriter, head: bytes, upload: Upload) -> None:
        source = self._reply.source
        try:
            await writer.write(head + self._reply.first)
            while True:
                try:
                    chunk = await source.__anext__()
                except StopAsyncIteration:
                    break
                except (asyncio.CancelledError, GeneratorExit):
                    raise
                except (Exception, SystemExit) as error:
                    raise StreamBroken("the handler failed in the middle of its answer") from error
                if chunk:
                    await writer.write(chunk)
        except asyncio.CancelledError:
            if self._interrupted and this_task().uncancel() == 0:
                raise CallerGone("the gateway ended the exchange before the answer was complete") from None
            raise
        upload.finish()


def _nothing() -> None:
    return None


def inline_response(reply: Reply) -> bytes:
    """The encoded InlineResponse of a complete answer."""
    message = nvcf_pb2.InlineResponse(body=reply.body, httpStatusCode=reply.status, endOfResponse=True)
    for name, value in reply.headers:
        message.headers.add(key=name, value=value)
    return message.SerializeToString()


def pieces(head: bytes, body: bytes) -> Iterator[bytes | memoryview]:
    """Head and body in pieces that give back-pressure a chance; a small answer is one piece."""
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
        raise CallerGone("the request is over: the gateway does not know its token any more")
    raise DeliveryError(f"the gateway refused the answer with {status}")


def this_task() -> asyncio.Task[object]:
    """The running task."""
    task: asyncio.Task[object] | None = asyncio.current_task()
    if task is None:
        raise RuntimeError("not called from a task")
    return task


async def _ended(exchange: asyncio.Task[int]) -> None:
    """End an exchange and collect it, so that nothing is left running."""
    if not exchange.done():
        exchange.cancel()
    await asyncio.wait([exchange])
    if not exchange.cancelled():
        # Whoever needed the outcome has it; this only marks it as seen.
        exchange.exception()
