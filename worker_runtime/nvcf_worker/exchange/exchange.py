"""The worker's side of all that callers of one request hear: progress, polls, the answer, other ways back.

One request, any number of people who wait for it one after the other or at once (protocol.md sections 2, 4):
the call itself by its own door, polls by theirs, and a gateway that keeps the answer when nobody waits. The
decisions are in `waiters`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from nvcf_worker.errors import CallerGone, DeliveryError
from nvcf_worker.exchange.handover import Handover
from nvcf_worker.exchange.replay import ReplaySource
from nvcf_worker.exchange.transports import Channels
from nvcf_worker.exchange.waiters import LATE, MARGIN, NEVER, Waiter, Waiters, compatible, wanted_again
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.message import Door, Work, poll_seconds, request_time
from nvcf_worker.queue.delivery import ActiveRequest

log = logging.getLogger("nvcf_worker")

LEAVING_PATIENCE = 10.0


class Conversation:
    """Used on the event loop only. `compatible` is known once the request's headers are."""

    __slots__ = (
        "_active",
        "_channels",
        "_final",
        "_handover",
        "_tasks",
        "_unlisten",
        "_waiters",
        "_wanted_again",
        "closed",
        "compatible",
        "door",
    )

    def __init__(self, active: ActiveRequest, channels: Channels) -> None:
        self._active = active
        self._channels = channels
        self.door: Door = active.work.door
        self._waiters = Waiters()
        self._waiters.waiting.append(Waiter(self.door, NEVER))
        self._final: Outcome | None = None
        self._handover: Handover | None = None
        self._tasks: set[asyncio.Task[None]] | None = None
        self._unlisten: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._wanted_again = False
        self.compatible = False
        self.closed = False

    def begin(self, headers: list[tuple[str, str]], now: float) -> None:
        """The request's headers are known: decide on compatibility mode. `now` is Unix time.

        A call that arrives when its gateway waits no more is never told 202: it has done that, or is gone.
        """
        lowered = [(name.lower(), value) for name, value in headers]
        self.compatible = compatible(lowered, disabled=self._channels.compatibility_disabled)
        self._wanted_again = wanted_again(lowered)
        if not self.compatible:
            return
        due = request_time(self._active.work) + poll_seconds(lowered) - MARGIN
        if due + LATE > now:
            self._waiters.waiting[0].due = due
        elif self._active.work.attempt > 1:
            # It is still in the queue although its time is over: an earlier worker has told its caller.
            self._waiters.told = True

    # --- progress and polls -----------------------------------------------------------------------

    @property
    def wanted_again(self) -> bool:
        """Whether somebody may still ask for the answer when the way to whoever waited is lost."""
        return self._wanted_again or self._waiters.told

    @property
    def _unfinished(self) -> bool:
        """Whether those who wait can only be told of progress: there is no answer, or another one gets it."""
        return self._final is None or (self._handover is not None and self._handover.streaming)

    def tick(self, now: float) -> None:
        """Tell those whose time is over how far it is. `now` is Unix time."""
        if self._unfinished and self._waiters.next_due <= now:
            self._tell(self._waiters.overdue(now))

    def progress(self, percent: float, partial: Any) -> None:
        """The handler reports progress; who waits is told at once."""
        if self._unfinished:
            self._tell(self._waiters.progressed(percent, partial))

    def polled(self, door: Door, due: float) -> None:
        """Somebody polls and waits until `due` (Unix time). Not to be called once `closed`."""
        if not self.compatible:
            due = NEVER
        tell = self._waiters.add(Waiter(door, due))
        if self._unfinished:
            self._tell(tell)
        elif self._handover is not None:
            self._handover.somebody_came()

    def _tell(self, found: Iterable[Waiter]) -> None:
        found = tuple(found)
        if not found:
            return
        try:
            reply = self._waiters.progress_reply()
        except (TypeError, ValueError, RecursionError) as error:
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

    async def listen_again(self) -> None:
        """The broker connection was replaced: whoever was told to poll is heard on the new one."""
        if self._unlisten is not None and not self.closed:
            self._unlisten = await self._channels.listen(self._active.work.request_id)

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
            self._handover = Handover(
                self._active.work.request_id,
                self._channels,
                self._waiters,
                outcome,
                kept=self._wanted_again,
                own_door=lambda: self.door,
                written=written,
            )
            await self._handover.run()
        finally:
            if isinstance(outcome, StreamReply):
                await outcome.source.aclose()

    def use(self, door: Door) -> None:
        """The request's own gateway is gone: what is left to say goes through this door."""
        for waiter in self._waiters.waiting:
            if waiter.door is self.door:
                waiter.door, waiter.due = door, NEVER
        self.door = door

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


def poll_due(poll: Work) -> float:
    """When a poll wants its 202 at the latest, Unix time."""
    sent = ((pair.key.lower(), pair.value) for pair in poll.message.requestHeaders)
    return request_time(poll) + poll_seconds(sent) - MARGIN


def _nothing() -> None:
    return None
