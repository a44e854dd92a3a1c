"""Requests whose time limit is over: their callers get 504 at once, and handlers that go on are counted.

An async handler is cancelled, and one that keeps the event loop from running is interrupted. A thread cannot
be: it keeps its slot until it ends, and a worker that has lost more than half of its slots that way is
unhealthy.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nvcf_proto.problem import Problem
from nvcf_worker.errors import CallerGone, DeliveryError
from nvcf_worker.exchange.exchange import Exchange
from nvcf_worker.exchange.transport import nothing
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.function.response import problem_reply
from nvcf_worker.function.time_limit import TimeLimit
from nvcf_worker.telemetry.observer import RequestObserver

log = logging.getLogger("nvcf_worker")

SOURCE = "inference-service"
LOST_SECONDS = 30.0
"""A slot is lost when its handler goes on for longer than this, or its limit once more, after the limit."""

_FRAMES = 12
_NAMED = 16


async def _nobody(request_id: str) -> None:
    """Do nothing: a request without a queue is not acknowledged."""


@dataclass(eq=False)
class Overdue:
    """The handlers of one worker that go on after their limit. `count` is how many there have been.

    answered: called when the caller of an overdue request has its response.
    """

    answered: Callable[[str], Awaitable[None]] = _nobody
    count: int = 0
    _since: dict[Overtime, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._since)

    def add(self, request: Overtime) -> None:
        """Add a request whose limit is over."""
        self.count += 1
        self._since[request] = time.monotonic()

    def discard(self, request: Overtime) -> None:
        """Remove a request: its handler has ended."""
        self._since.pop(request, None)

    def unhealthy(self, slots: int, now: float) -> str | None:
        """Return why the worker is unhealthy: it has lost more than half of its slots. `now` is monotonic."""
        lost = [
            each
            for each, since in self._since.items()
            if each.limit is not None and now - since >= min(LOST_SECONDS, each.limit.seconds)
        ]
        if 2 * len(lost) <= slots:
            return None
        return f"{len(lost)} of {slots} slots are lost to handlers that go on after their time limit"

    def stacks(self) -> str:
        """Return where the handlers are, as text for the log."""
        return "\n".join(
            f"request {each.exchange.work.request_id}:\n{stack_of(each.exchange.scope)}"
            for each in list(self._since)[:_NAMED]
        )


@dataclass(slots=True, eq=False)
class Overtime:
    """The time limit of one request, from `begin` to `close`."""

    exchange: Exchange
    observer: RequestObserver
    overdue: Overdue
    limit: TimeLimit | None = None
    _timer: asyncio.TimerHandle | None = None
    _answer: asyncio.Task[None] | None = None

    def begin(self, limit: TimeLimit) -> None:
        """Start the time."""
        self.limit = limit
        self.exchange.scope.deadline = time.monotonic() + limit.seconds
        self.exchange.scope.expire = self._interrupt
        self._timer = asyncio.get_running_loop().call_later(limit.seconds, self._expire)

    def stop(self) -> None:
        """Stop the time: the handler has made its response."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.exchange.scope.deadline = math.inf

    @property
    def answers(self) -> bool:
        """Return whether the caller is answered here, so that what the handler returns is dropped."""
        return self._answer is not None

    def _interrupt(self) -> None:
        """Expire in the request's own code, which keeps the timer from doing so. Raises CancelledError."""
        self.stop()
        scope = self.exchange.scope
        # Raised at once, not at the task's next `await`, which may be one that settles the request.
        interruptible, scope.interruptible = scope.interruptible, False
        self._expire()
        scope.interruptible = interruptible
        raise asyncio.CancelledError

    def _expire(self) -> None:
        scope = self.exchange.scope
        self._timer = None
        scope.deadline = math.inf
        self.overdue.add(self)
        if scope.end is not None:  # e.g. its caller has left, and the handler goes on
            return
        of_request = {"request_id": self.exchange.work.request_id}
        log.error("the request did not end within %s", self.limit, extra=of_request)
        if not self.exchange.responding:
            self._answer = asyncio.create_task(self._deliver())
        scope.stop(End.TIME_LIMIT)

    async def _deliver(self) -> None:
        work = self.exchange.work
        detail = f"The function did not answer request {work.request_id} within {self.limit}."
        reply = problem_reply(Problem("Execution Time Limit Exceeded", 504, detail, SOURCE))
        try:
            self.observer.delivering(reply)
            await self.exchange.deliver(reply, nothing)
            self.observer.delivered()
        except CallerGone as error:
            log.info("request abandoned: %s", error)
        except DeliveryError as error:
            log.error("the response could not be delivered: %s", error)
        # Its handler may go on for ever, and nobody waits for that.
        self.exchange.closed = True
        await self.overdue.answered(work.request_id)

    async def close(self) -> None:
        """End it with its request: the handler has ended."""
        self.stop()
        self.overdue.discard(self)
        if self._answer is not None:
            await asyncio.wait([self._answer])


def stack_of(scope: CancelScope) -> str:
    """Return the stack of a handler, on its thread or in its task."""
    frame = sys._current_frames().get(scope.thread)
    if frame is not None:
        return "".join(traceback.format_stack(frame)[-_FRAMES:]).rstrip()
    lines: list[str] = []
    waits: Any = None if scope.task is None else scope.task.get_coro()
    # From the request's task down to what it waits for; a suspended frame does not know its caller.
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "ag_frame", None)
        if frame is not None:
            lines += traceback.format_stack(frame, limit=1)
        waits = getattr(waits, "cr_await", None) or getattr(waits, "ag_await", None)
    return "".join(lines[-_FRAMES:]).rstrip()
