"""The worker's side of all that callers of one request hear: progress, polls, the answer, other ways back.

One request, any number of people who wait for it one after the other or at once (protocol.md sections 2, 4):
the call itself by its own door, polls by theirs, and a gateway that keeps the answer when nobody waits. The
decisions are in `waiters`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from nvcf_worker.active import ActiveRequest, End
from nvcf_worker.attach import HttpDownload
from nvcf_worker.backoff import Backoff
from nvcf_worker.channels import Channels
from nvcf_worker.errors import (
    BodyUnavailable,
    CallerGone,
    DeliveryError,
    GatewayGone,
    RequestCancelled,
    StreamLost,
    Undeliverable,
)
from nvcf_worker.execution import Outcome, StreamReply
from nvcf_worker.replay import ReplaySource
from nvcf_worker.rescue import NoDoor
from nvcf_worker.response import Reply
from nvcf_worker.waiters import (
    MARGIN,
    NEVER,
    RESCUE_SECONDS,
    Step,
    Waiter,
    Waiters,
    compatible,
    next_step,
    wanted_again,
)
from nvcf_worker.work import Door, Work, poll_seconds, request_time

log = logging.getLogger("nvcf_worker")

LOOK_AGAIN = Backoff(first=0.5, limit=15.0)
LEAVING_PATIENCE = 10.0


class Conversation:
    """Used on the event loop only. `compatible` is known once the request's headers are."""

    __slots__ = (
        "_active",
        "_changed",
        "_channels",
        "_door",
        "_final",
        "_lost",
        "_tasks",
        "_unlisten",
        "_waiters",
        "_wanted_again",
        "closed",
        "compatible",
    )

    def __init__(self, active: ActiveRequest, channels: Channels) -> None:
        self._active = active
        self._channels = channels
        self._door: Door = active.work.door
        self._waiters = Waiters()
        self._waiters.waiting.append(Waiter(self._door, NEVER))
        self._final: Outcome | None = None
        self._lost = False
        self._changed: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] | None = None
        self._unlisten: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._wanted_again = False
        self.compatible = False
        self.closed = False

    def begin(self, headers: list[tuple[str, str]], now: float) -> None:
        """The request's headers are known: decide on compatibility mode. `now` is Unix time.

        A call that arrives when its time is over is never told 202: its gateway did that, or is gone.
        """
        lowered = [(name.lower(), value) for name, value in headers]
        self.compatible = compatible(lowered, disabled=self._channels.compatibility_disabled)
        self._wanted_again = wanted_again(lowered)
        if not self.compatible:
            return
        due = request_time(self._active.work) + poll_seconds(lowered) - MARGIN
        if due > now:
            self._waiters.waiting[0].due = due
        elif self._active.work.attempt > 1:
            # It is still in the queue although its time is over: an earlier worker has told its caller.
            self._waiters.told = True

    # --- progress and polls -----------------------------------------------------------------------

    @property
    def wanted_again(self) -> bool:
        """Whether somebody may still ask for the answer when the way to whoever waited is lost."""
        return self._wanted_again or self._waiters.told

    def tick(self, now: float) -> None:
        """Tell those whose time is over how far it is. `now` is Unix time."""
        if self._final is None and self._waiters.next_due <= now:
            self._tell(self._waiters.overdue(now))

    def progress(self, percent: float, partial: Any) -> None:
        """The handler reports progress; who waits is told at once."""
        if self._final is None:
            self._tell(self._waiters.progressed(percent, partial))

    def polled(self, door: Door, due: float) -> None:
        """Somebody polls and waits until `due` (Unix time). Not to be called once `closed`."""
        if not self.compatible:
            due = NEVER
        tell = self._waiters.add(Waiter(door, due))
        if self._final is None:
            self._tell(tell)
        elif self._changed is not None:
            self._changed.set()

    def _tell(self, found: Iterable[Waiter]) -> None:
        found = tuple(found)
        if not found:
            return
        try:
            reply = self._waiters.progress_reply()
        except (TypeError, ValueError) as error:
            log.warning("the partial response cannot be sent: %s", error)
            self._waiters.partial = None
            reply = self._waiters.progress_reply()
        for waiter in found:
            self._spawn(self._send_progress(waiter.door, reply))

    async def _send_progress(self, door: Door, reply: Reply) -> None:
        if door.reply_subject is None and self._unlisten is None:
            # Before the caller knows that it shall poll.
            self._unlisten = await self._channels.listen(self._active.work.request_id)
        try:
            await self._channels.deliverer.deliver(door, reply, _nothing)
        except CallerGone as error:
            log.info("nobody was there to be told of the progress: %s", error)
        except DeliveryError as error:
            log.warning("the progress could not be told: %s", error)

    def _spawn(self, step: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            self._tasks = set()
        task = asyncio.create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the answer ---------------------------------------------------------------------------------

    async def deliver(self, outcome: Outcome, written: Callable[[], None]) -> None:
        """Get the answer to all who wait, or to a gateway that keeps it.

        `written` is called when the answer no longer needs its slot. Raises CallerGone when nobody wants
        it, Undeliverable when no way was found in time, another DeliveryError when a stream broke.
        """
        self._final = outcome
        if isinstance(outcome, StreamReply) and (self.wanted_again or self._active.work.attempt > 1):
            outcome.source, outcome.patient = ReplaySource(outcome.source), True
            # The first worker's way may have ended with it.
            outcome.cautious = self._active.work.attempt > 1
        try:
            await self._deliver(outcome, written)
        finally:
            if isinstance(outcome, StreamReply):
                await outcome.source.aclose()

    async def _deliver(self, outcome: Outcome, written: Callable[[], None]) -> None:
        gone = await self._hand_out(outcome, written)
        if gone is None:
            return
        with self._channels.held.one_more() as few:
            if isinstance(outcome, Reply) and few:
                # It is complete and only waits: the handler's place is free for others.
                written()
            await self._look_for_a_way(outcome, written, gone)

    async def _look_for_a_way(self, outcome: Outcome, written: Callable[[], None], gone: bool) -> None:
        self._changed = asyncio.Event()
        since, attempt = time.monotonic(), 0
        while True:
            found = await self._channels.rescuer.ask(self._active.work.request_id)
            offered = isinstance(found, Door)
            if isinstance(found, Door):
                self._waiters.waiting.append(Waiter(found, NEVER))
                if await self._hand_out(outcome, written) is None:
                    return
                found = NoDoor.NO_ANSWER
            # Whoever offered a door wants the answer: one that failed is no reason to abandon it.
            await self._find_another_way(found, gone and not offered, time.monotonic() - since, attempt)
            attempt += 1
            refused = await self._hand_out(outcome, written)
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
            self._waiters.waiting.append(Waiter(self._door, NEVER))

    async def _pause(self, attempt: int) -> None:
        """Until somebody polls, or it is time to look again."""
        assert self._changed is not None  # noqa: S101 # set before the first pause
        try:
            async with asyncio.timeout(LOOK_AGAIN.delay(attempt, random.random())):  # noqa: S311 - jitter
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    async def _hand_out(self, outcome: Outcome, written: Callable[[], None]) -> bool | None:
        """Answer all who wait now.

        None: at least one has the answer. True: a gateway said that its caller is gone. False: nobody was
        there, or no gateway could be reached.
        """
        waiting = self._waiters.take_all()
        if not waiting:
            return False
        if isinstance(outcome, StreamReply):
            # A stream can be sent once; the others may ask again.
            self._waiters.waiting += waiting[1:]
            waiting = waiting[:1]
        if len(waiting) == 1:
            return await self._answer(waiting[0].door, outcome, written)
        results = await asyncio.gather(
            *(self._answer(waiter.door, outcome, written) for waiter in waiting), return_exceptions=True
        )
        if None in results:
            return None
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return True in results

    async def _answer(self, door: Door, outcome: Outcome, written: Callable[[], None]) -> bool | None:
        try:
            await self._channels.deliverer.deliver(door, outcome, written)
        except CallerGone as error:
            log.info("not taken: %s", error)
            if not _from_the_start(outcome):
                raise StreamLost(str(error)) if self.wanted_again else error from None
            if isinstance(outcome, StreamReply):
                outcome.cautious = False
            return True
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

    # --- the body -------------------------------------------------------------------------------------

    async def fetch_body(self, *, whole_request: bool) -> HttpDownload:
        """Open the download of the request's body, from another gateway if its own is gone.

        Raises BodyUnavailable; stops the request and raises RequestCancelled when it cannot go on.
        """
        started = time.monotonic()
        for attempt in itertools.count():
            refusal: BodyUnavailable | None = None
            try:
                return await self._fetch(whole_request)
            except GatewayGone as error:
                log.warning("%s", error)
            except BodyUnavailable as error:
                if not error.unknown_token:
                    raise
                refusal = error
            found = await self._channels.rescuer.ask(self._active.work.request_id)
            over = attempt > 0 and time.monotonic() - started > RESCUE_SECONDS
            if isinstance(found, Door) and not over:
                self._use(found)
                if found.target.request_token is None:
                    raise BodyUnavailable("the gateway that had the body is gone, and so is the body")
            elif refusal is not None:
                raise refusal
            elif found is NoDoor.NOT_WANTED or over:
                raise self._stopped(End.CALLER_GONE if found is NoDoor.NOT_WANTED else End.UNREACHABLE)
            if attempt or not isinstance(found, Door):
                await asyncio.sleep(LOOK_AGAIN.delay(attempt, random.random()))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    def _stopped(self, end: End) -> RequestCancelled:
        self._active.stop(end)
        return RequestCancelled(end.value)

    async def _fetch(self, whole_request: bool) -> HttpDownload:
        return await self._channels.attach.fetch(
            self._door.target, whole_request=whole_request, attempt=self._active.work.attempt
        )

    def _use(self, door: Door) -> None:
        """The request's own gateway is gone: what is left to say goes through this door."""
        for waiter in self._waiters.waiting:
            if waiter.door is self._door:
                waiter.door, waiter.due = door, NEVER
        self._door = door

    # --- the end --------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Answer who came late, and end what is still being told."""
        self.closed = True
        if self._active.end is None and self._final is not None:
            late = [waiter.door for waiter in self._waiters.take_all() if waiter.due != NEVER]
            reply = self._final if isinstance(self._final, Reply) else self._waiters.progress_reply()
            for door in late:
                self._spawn(self._send_progress(door, reply))
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks, timeout=LEAVING_PATIENCE)
            for task in unfinished:
                task.cancel()
        if self._unlisten is not None:
            await self._unlisten()


def _from_the_start(outcome: Outcome) -> bool:
    """Whether all of an answer can be sent (again)."""
    if not isinstance(outcome, StreamReply) or not outcome.begun:
        return True
    outcome.begun = False
    return isinstance(outcome.source, ReplaySource) and outcome.source.rewind()


def poll_due(poll: Work) -> float:
    """When a poll wants its 202 at the latest, Unix time."""
    sent = ((pair.key.lower(), pair.value) for pair in poll.message.requestHeaders)
    return request_time(poll) + poll_seconds(sent) - MARGIN


def _nothing() -> None:
    return None
