"""Delivering a finished response: to all who wait, else to a fallback gateway, else a little later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field

from nvcf_proto.problem import problem_for
from nvcf_worker.errors import (
    Abandoned,
    CallerGone,
    DeliveryError,
    GatewayGone,
    StreamLost,
    Undeliverable,
    UnknownToken,
)
from nvcf_worker.exchange.post import StreamBroken
from nvcf_worker.exchange.transport import NoGateway, Transport
from nvcf_worker.exchange.waiters import NEVER, Step, Waiter, Waiters, next_step
from nvcf_worker.function.response import Outcome, Reply, Source, StreamReply, problem_reply
from nvcf_worker.message import ReplyAddress
from nvcf_worker.process.durations import Backoff

log = logging.getLogger("nvcf_worker")

RETRY = Backoff(first=0.5, limit=15.0)
SOURCE = "inference-service"
MAX_BACKLOG = 256
"""Responses that may wait without a slot; more would pile up in memory."""

REPLAY_LIMIT = 256 * 1024
"""Bytes of a stream that are kept: far more than it is ahead of the news that its caller is gone."""


class Backlog:
    """Counts the finished responses of one worker that nobody has taken yet."""

    def __init__(self) -> None:
        self._count = 0

    @contextlib.contextmanager
    def one_more(self) -> Iterator[bool]:
        """Count one response; yield whether it may give its slot up while it waits."""
        self._count += 1
        try:
            yield self._count <= MAX_BACKLOG
        finally:
            self._count -= 1


@dataclass(eq=False)
class ResponseDelivery:
    """Delivers one response; used once, by the request's own task.

    address: returns the present reply address of the call itself. retained: whether a stream that its gateway
    ends early is wanted all the same. kept: whether the caller may come back for the response. has_fallback:
    whether gateways answer fallback lookups. sent: called when the response no longer needs its slot.
    streaming: whether the response is being sent to one caller; all others only get progress meanwhile.
    """

    request_id: str
    transport: Transport
    backlog: Backlog
    waiters: Waiters
    response: Outcome
    _: KW_ONLY
    retained: bool
    kept: bool
    has_fallback: bool
    address: Callable[[], ReplyAddress]
    sent: Callable[[], None]
    streaming: bool = False
    _polled: asyncio.Event = field(default_factory=asyncio.Event)
    _logged: bool = False

    def polled(self) -> None:
        """Note that somebody new waits."""
        self._polled.set()

    async def run(self) -> None:
        """Return when somebody has the response.

        Raises Abandoned or CallerGone when nobody wants it, Undeliverable when no gateway was found in time,
        another DeliveryError when a stream broke.
        """
        gone = await self._send_to_all()
        if gone is None:
            return
        with self.backlog.one_more() as may_give_up_slot:
            if isinstance(self.response, Reply) and may_give_up_slot:
                # It is complete and only waits, so another request may run.
                self.sent()
            await self._retry(gone)

    async def _retry(self, gone: bool) -> None:
        since, attempt = time.monotonic(), 0
        while True:
            found = await self.transport.find_gateway(self.request_id)
            offered = isinstance(found, ReplyAddress)
            if isinstance(found, ReplyAddress):
                self.waiters.waiting.append(Waiter(found, NEVER))
                if await self._send_to_all() is None:
                    return
                found = NoGateway.NO_ANSWER
            # A gateway that offers an address wants the response: if sending fails, that is no refusal.
            await self._pause_or_give_up(found, gone and not offered, time.monotonic() - since, attempt)
            attempt += 1
            refused = await self._send_to_all()
            if refused is None:
                return
            gone = gone or refused

    async def _pause_or_give_up(self, found: NoGateway, gone: bool, waited: float, attempt: int) -> None:
        step = next_step(
            refused=found is NoGateway.NOT_WANTED,
            gone=gone,
            may_poll=self.kept or self.waiters.may_poll,
            has_fallback=self.has_fallback,
            waited=waited,
        )
        if step is Step.ABANDON:
            reason = found.value if found is NoGateway.NOT_WANTED else "its gateway does not know it any more"
            raise Abandoned(f"nobody wants the response: {reason}")
        if step is Step.GIVE_UP:
            raise Undeliverable("no gateway could be reached in time")
        if not self._logged:
            self._logged = True
            log.info("the response waits for a poll or for a gateway")
        await self._pause(attempt)
        if not self.waiters.waiting and not self.waiters.may_poll:
            self.waiters.waiting.append(Waiter(self.address(), NEVER))

    async def _pause(self, attempt: int) -> None:
        """Wait until somebody polls, or it is time for the next try."""
        try:
            async with asyncio.timeout(RETRY.delay(attempt, random.random())):  # noqa: S311 - jitter
                await self._polled.wait()
        except TimeoutError:
            return
        self._polled.clear()

    async def _send_to_all(self) -> bool | None:
        """Send the response to all who wait now.

        Returns None when at least one has it, True when a gateway said that its caller is gone, False when
        nobody waits or no gateway could be reached.
        """
        waiting = self.waiters.take_all()
        if not waiting:
            return False
        if isinstance(self.response, StreamReply):
            return await self._stream_to_one(waiting)
        if len(waiting) == 1:
            return await self._send(waiting[0].address)
        results = await asyncio.gather(
            *(self._send(waiter.address) for waiter in waiting), return_exceptions=True
        )
        if None in results:
            return None
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return True in results

    async def _stream_to_one(self, waiting: list[Waiter]) -> bool | None:
        """Send a stream, which can be sent once. The others get progress, and poll again."""
        first, *self.waiters.waiting = waiting
        self.streaming = True
        try:
            return await self._send(first.address)
        finally:
            self.streaming = False

    async def _send(self, address: ReplyAddress) -> bool | None:
        response = self.response
        try:
            await self.transport.deliver(address, response, self.sent)
        except CallerGone as error:
            log.info("not delivered: %s", error)
            if not _rewind(response):
                unclear = self.has_fallback and isinstance(error, UnknownToken)
                if self.retained or self.waiters.may_poll or unclear:
                    raise StreamLost(str(error), wanted_again=True) from None
                raise
            if isinstance(response, StreamReply):
                response.cautious = False
            return True
        except StreamBroken:
            await self._send_error(address)
            raise
        except StreamLost as error:
            log.info("not delivered: %s", error)
            if not _rewind(response):
                raise
            return False
        except GatewayGone as error:
            # A warning the first time only: it is tried again and again.
            log.log(
                logging.DEBUG if self._logged else logging.WARNING, "the gateway is not reached: %s", error
            )
            return False
        except Exception as error:
            failure = self._failure()
            if response == failure:
                raise
            # The response cannot be sent as it is; its caller must not wait for the rest of its time.
            unexpected = None if isinstance(error, DeliveryError) else error
            log.error("the response cannot be sent: %s", error, exc_info=unexpected)
            self.response = failure
            return await self._send(address)
        return None

    def _failure(self) -> Reply:
        detail = f"The function failed to handle request {self.request_id}."
        return problem_reply(problem_for(500, detail, source=SOURCE))

    async def _send_error(self, address: ReplyAddress) -> None:
        """Send an error response, in case the gateway has not seen the beginning of the broken stream.

        A busy gateway never learns of an exchange that ends before it reads it, and its caller would wait
        for the rest of the poll time. When it has seen it, the token is used up and this is refused.
        """
        try:
            await self.transport.post(address, self._failure())
        except DeliveryError as error:
            log.debug("the caller has seen the stream break: %s", error)


def _rewind(response: Outcome) -> bool:
    """Prepare a response for being sent again from its start; return False when that is impossible."""
    if not isinstance(response, StreamReply) or not response.begun:
        return True
    response.begun = False
    return isinstance(response.source, ReplaySource) and response.source.rewind()


class ReplaySource:
    """Keeps what a source gave, up to REPLAY_LIMIT bytes, so that it can be sent again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: list[bytes] = []
        self._again: deque[bytes] = deque()
        self._size = 0
        self._whole = True

    async def __anext__(self) -> bytes:
        if self._again:
            return self._again.popleft()
        try:
            chunk = await self._source.__anext__()
        except StopAsyncIteration:
            raise
        except BaseException:
            # Whatever was raised through the handler has ended it: the rest will never be made.
            self._forget()
            raise
        self._size += len(chunk)
        if self._size > REPLAY_LIMIT:
            self._forget()
        elif self._whole:
            self._kept.append(chunk)
        return chunk

    def rewind(self) -> bool:
        """Start again from the beginning; return False when the beginning is not kept any more."""
        if self._whole:
            self._again = deque(self._kept)
        return self._whole

    def _forget(self) -> None:
        self._whole = False
        self._kept.clear()

    async def aclose(self) -> None:
        """Stop the handler and wait until it has ended."""
        await self._source.aclose()
