"""Handing a finished answer over: to all who wait, else to a gateway that keeps it, else a little later."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from nvcf_proto.problem import problem_for
from nvcf_worker.errors import CallerGone, DeliveryError, GatewayGone, StreamLost, Undeliverable
from nvcf_worker.exchange.fallback_gateway import NoDoor
from nvcf_worker.exchange.post import StreamBroken
from nvcf_worker.exchange.replay import ReplaySource
from nvcf_worker.exchange.transports import Channels
from nvcf_worker.exchange.waiters import NEVER, Step, Waiter, Waiters, next_step
from nvcf_worker.function.response import Outcome, Reply, StreamReply, problem_reply
from nvcf_worker.message import Door
from nvcf_worker.process.backoff import Backoff

log = logging.getLogger("nvcf_worker")

LOOK_AGAIN = Backoff(first=0.5, limit=15.0)
SOURCE = "inference-service"


class Handover:
    """One answer on its way; used once, by the request's own task.

    `own_door` is the door of the call itself; `kept`: its caller may come back for the answer; `written` is
    called when the answer no longer needs its slot.
    """

    def __init__(
        self,
        request_id: str,
        channels: Channels,
        waiters: Waiters,
        outcome: Outcome,
        *,
        kept: bool,
        own_door: Callable[[], Door],
        written: Callable[[], None],
    ) -> None:
        self._request_id = request_id
        self._channels = channels
        self._waiters = waiters
        self._outcome = outcome
        self._kept = kept
        self._own_door = own_door
        self._written = written
        self._somebody_came = asyncio.Event()
        self._lost = False
        self.streaming = False
        """Whether the answer goes to one who waits right now and to no other: they are told of progress."""

    def somebody_came(self) -> None:
        """Another one waits."""
        self._somebody_came.set()

    async def run(self) -> None:
        """Return when the answer is with somebody.

        Raises CallerGone when nobody wants it, Undeliverable when no way was found in time, another
        DeliveryError when a stream broke.
        """
        gone = await self._hand_out()
        if gone is None:
            return
        with self._channels.held.one_more() as few:
            if isinstance(self._outcome, Reply) and few:
                # It is complete and only waits: the handler's place is free for others.
                self._written()
            await self._look_for_a_way(gone)

    async def _look_for_a_way(self, gone: bool) -> None:
        since, attempt = time.monotonic(), 0
        while True:
            found = await self._channels.rescuer.ask(self._request_id)
            offered = isinstance(found, Door)
            if isinstance(found, Door):
                self._waiters.waiting.append(Waiter(found, NEVER))
                if await self._hand_out() is None:
                    return
                found = NoDoor.NO_ANSWER
            # Whoever offered a door wants the answer: one that failed is no reason to abandon it.
            await self._find_another_way(found, gone and not offered, time.monotonic() - since, attempt)
            attempt += 1
            refused = await self._hand_out()
            if refused is None:
                return
            gone = gone or refused

    async def _find_another_way(self, found: NoDoor, gone: bool, waited: float, attempt: int) -> None:
        step = next_step(
            refused=found is NoDoor.NOT_WANTED, gone=gone, told=self._waiters.told, waited=waited
        )
        if step is Step.ABANDON:
            raise CallerGone("the request is over: nobody wants its answer any more")
        if step is Step.GIVE_UP:
            raise Undeliverable("no gateway could be reached in time")
        if not self._lost:
            self._lost = True
            log.info("the answer waits for somebody to take it")
        await self._pause(attempt)
        if not self._waiters.waiting and not self._waiters.told:
            self._waiters.waiting.append(Waiter(self._own_door(), NEVER))

    async def _pause(self, attempt: int) -> None:
        """Until somebody polls, or it is time to look again."""
        try:
            async with asyncio.timeout(LOOK_AGAIN.delay(attempt, random.random())):  # noqa: S311 - jitter
                await self._somebody_came.wait()
        except TimeoutError:
            return
        self._somebody_came.clear()

    async def _hand_out(self) -> bool | None:
        """Answer all who wait now.

        None: at least one has the answer. True: a gateway said that its caller is gone. False: nobody was
        there, or no gateway could be reached.
        """
        waiting = self._waiters.take_all()
        if not waiting:
            return False
        if isinstance(self._outcome, StreamReply):
            return await self._stream_to_one(waiting)
        if len(waiting) == 1:
            return await self._answer(waiting[0].door)
        results = await asyncio.gather(
            *(self._answer(waiter.door) for waiter in waiting), return_exceptions=True
        )
        if None in results:
            return None
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return True in results

    async def _stream_to_one(self, waiting: list[Waiter]) -> bool | None:
        """A stream can be sent once. The others hear how far it is, and ask again."""
        first, *self._waiters.waiting = waiting
        self.streaming = True
        try:
            return await self._answer(first.door)
        finally:
            self.streaming = False

    async def _answer(self, door: Door) -> bool | None:
        outcome = self._outcome
        try:
            await self._channels.deliverer.deliver(door, outcome, self._written)
        except CallerGone as error:
            log.info("not taken: %s", error)
            if not _from_the_start(outcome):
                raise StreamLost(str(error)) if self._kept or self._waiters.told else error from None
            if isinstance(outcome, StreamReply):
                outcome.cautious = False
            return True
        except StreamBroken:
            await self._tell_broken(door)
            raise
        except StreamLost as error:
            log.info("not taken: %s", error)
            if not _from_the_start(outcome):
                raise
            return False
        except GatewayGone as error:
            # Said once: it is tried again and again.
            log.log(logging.DEBUG if self._lost else logging.WARNING, "no way to the gateway: %s", error)
            return False
        return None

    async def _tell_broken(self, door: Door) -> None:
        """Answer with an error in case the gateway has not seen the beginning of the stream that broke.

        A busy gateway never hears of an exchange that ends before it looks, and its caller would wait for
        the rest of the poll time. When it has, the token is used up and this is refused.
        """
        detail = f"The function failed to handle request {self._request_id}."
        reply = problem_reply(problem_for(500, detail, source=SOURCE))
        try:
            await self._channels.deliverer.post(door, reply)
        except DeliveryError as error:
            log.debug("the caller has noticed: %s", error)


def _from_the_start(outcome: Outcome) -> bool:
    """Whether all of an answer can be sent (again)."""
    if not isinstance(outcome, StreamReply) or not outcome.begun:
        return True
    outcome.begun = False
    return isinstance(outcome.source, ReplaySource) and outcome.source.rewind()
