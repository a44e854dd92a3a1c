"""One request's callers: progress, polls and the response.

Any number of callers may wait for one request, one after the other or at once
(protocol.md, sections 2.8 and 5.5): the call itself at its own reply address, polls at theirs, and a gateway
that retains the response when nobody waits. The decisions are in `waiters`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from nvcf_worker.errors import CallerGone, DeliveryError
from nvcf_worker.exchange.files import RequestFiles
from nvcf_worker.exchange.response_delivery import Backlog, ReplaySource, ResponseDelivery
from nvcf_worker.exchange.transport import Transport, Unlisten, nothing
from nvcf_worker.exchange.waiters import LATE, MARGIN, NEVER, Waiter, Waiters, compatible, wanted_again
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.message import ReplyAddress, Work, poll_seconds, request_time, sent_headers

log = logging.getLogger("nvcf_worker")

CLOSE_TIMEOUT = 10.0


@dataclass(slots=True, eq=False)
class Exchange:
    """Used on the event loop only. `compatible` is known once the request's headers are.

    address: where the call itself is answered. files: the request's directories, once it has any.
    """

    work: Work
    scope: CancelScope
    transport: Transport
    backlog: Backlog
    address: ReplyAddress = field(init=False)
    files: RequestFiles | None = None
    compatible: bool = False
    closed: bool = False
    _waiters: Waiters = field(init=False)
    _response: Outcome | None = None
    _delivery: ResponseDelivery | None = None
    _tasks: set[asyncio.Task[None]] | None = None
    _unlisten: Unlisten | None = None
    _wanted_again: bool = False
    _poll: Work | None = None
    _polled: asyncio.Event | None = None

    def __post_init__(self) -> None:
        self.address = self.work.reply_address
        self._waiters = Waiters([Waiter(self.address, NEVER)])

    def begin(self, headers: list[tuple[str, str]], now: float, *, compatibility: bool) -> None:
        """Decide on compatibility mode by the request's headers (lower-case names). `now` is Unix time.

        A call that arrives when its gateway waits no more never gets a 202: its gateway has sent one, or is
        gone.
        """
        self.compatible = compatible(headers, disabled=not compatibility)
        self._wanted_again = wanted_again(headers)
        if not self.compatible:
            return
        due = request_time(self.work) + poll_seconds(headers) - MARGIN
        if due + LATE > now:
            self._waiters.waiting[0].due = due
        elif self.work.attempt > 1:
            # It is still in the queue although its time is over: an earlier worker has sent the 202.
            self._waiters.may_poll = True

    # --- progress and polls -----------------------------------------------------------------------

    @property
    def wanted_again(self) -> bool:
        """Whether somebody may still ask for the response when the connection to its caller is lost."""
        return self.outlives_caller or self._waiters.may_poll

    @property
    def outlives_caller(self) -> bool:
        """Whether the response is wanted although nobody waits or polls for it."""
        return self._wanted_again or self.work.kept

    @property
    def responding(self) -> bool:
        """Whether the delivery of a response has begun."""
        return self._response is not None

    @property
    def _unfinished(self) -> bool:
        """Whether callers can only get progress: there is no response, or another caller is getting it."""
        return self._response is None or (self._delivery is not None and self._delivery.streaming)

    def tick(self, now: float) -> None:
        """Send 202 with the current progress to callers whose poll time has expired. `now` is Unix time."""
        if self._unfinished and self._waiters.next_due <= now:
            self._report(self._waiters.overdue(now))

    def progress(self, percent: float, partial: Any) -> None:
        """Send progress that the handler reports to all who wait."""
        if self._unfinished:
            self._report(self._waiters.progressed(percent, partial))

    def polled(self, address: ReplyAddress, due: float, poll: Work | None = None) -> None:
        """Add a poll that waits until `due` (Unix time). Not to be called once `closed`."""
        self._poll = poll
        if self._polled is not None:
            self._polled.set()
        if not self.compatible:
            due = NEVER
        report = self._waiters.add(Waiter(address, due))
        if self._unfinished:
            self._report(report)
        elif self._delivery is not None:
            self._delivery.polled()

    def _report(self, found: Iterable[Waiter]) -> None:
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
            self._spawn(self._send_progress(waiter.address, reply))

    async def _send_progress(self, address: ReplyAddress, reply: Outcome) -> None:
        if address.reply_subject is None and self._unlisten is None:
            # Before the caller knows that it shall poll.
            self._unlisten = await self.transport.listen(self.work.request_id)
        try:
            await self.transport.deliver(address, reply, nothing)
        except CallerGone as error:
            log.info("nobody was there to get the progress: %s", error)
        except DeliveryError as error:
            log.warning("the progress could not be sent: %s", error)

    # --- functions that answer 202 themselves ---------------------------------------------------------

    async def accepted(self, response: Outcome) -> None:
        """Send the function's own 202 to all who wait; they may poll."""
        self._polled = self._polled or asyncio.Event()
        waiting = self._waiters.take_all()
        self._waiters.may_poll = True
        # A stream can be sent once.
        others = response if isinstance(response, Reply) else self._waiters.progress_reply()
        try:
            await asyncio.gather(
                *(
                    self._send_progress(waiter.address, others if number else response)
                    for number, waiter in enumerate(waiting)
                )
            )
        finally:
            if isinstance(response, StreamReply):
                await response.source.aclose()

    async def next_poll(self, patience: float) -> Work | None:
        """Return a poll that waits for the function, None when there is none for `patience` seconds."""
        arrived = self._polled = self._polled or asyncio.Event()
        try:
            async with asyncio.timeout(patience):
                while not self._waiters.waiting:
                    arrived.clear()
                    await arrived.wait()
        except TimeoutError:
            if not self._waiters.waiting:
                return None
        return self._poll

    async def listen_again(self) -> None:
        """Subscribe to this request's polls on a new broker connection, if its callers may poll."""
        if self._unlisten is not None and not self.closed:
            self._unlisten = await self.transport.listen(self.work.request_id)

    def _spawn(self, step: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            self._tasks = set()
        task = asyncio.create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the response -------------------------------------------------------------------------------

    async def deliver(self, response: Outcome, sent: Callable[[], None]) -> None:
        """Deliver the response to all who wait, or to a gateway that retains it.

        `sent` is called when the response no longer needs its slot. Raises as `ResponseDelivery.run`.
        """
        self._response = response
        repeated = self.work.attempt > 1
        replayed = self._wanted_again or self._waiters.may_poll or repeated
        if isinstance(response, StreamReply) and replayed:
            response.source, response.patient = ReplaySource(response.source), True
            # The gateway that waited for the first worker may be gone.
            response.cautious = repeated
        try:
            self._delivery = ResponseDelivery(
                self.work.request_id,
                self.transport,
                self.backlog,
                self._waiters,
                response,
                retained=self._wanted_again,
                kept=self.work.kept,
                has_fallback=self.work.has_fallback,
                address=lambda: self.address,
                sent=sent,
            )
            await self._delivery.run()
        finally:
            if isinstance(response, StreamReply):
                await response.source.aclose()

    def use(self, address: ReplyAddress) -> None:
        """Send everything from now on to a gateway that stands in for the request's own."""
        for waiter in self._waiters.waiting:
            if waiter.address is self.address:
                waiter.address, waiter.due = address, NEVER
        self.address = address

    # --- the end --------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Answer polls that came late, and finish sending progress."""
        self.closed = True
        if self.scope.end is None and self._response is not None:
            late = [waiter.address for waiter in self._waiters.take_all() if waiter.due != NEVER]
            reply = self._response if isinstance(self._response, Reply) else self._waiters.progress_reply()
            for address in late:
                self._spawn(self._send_progress(address, reply))
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)
            for task in unfinished:
                task.cancel()
        if self._unlisten is not None:
            await self._unlisten()
        if self.files is not None:
            await self.files.remove()


def poll_due(poll: Work) -> float:
    """Return when a poll wants its 202 at the latest, Unix time."""
    sent = ((name.lower(), value) for name, value in sent_headers(poll))
    return request_time(poll) + poll_seconds(sent) - MARGIN
