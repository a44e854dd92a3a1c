"""Cancelling a request: the flag that its handler sees, and the scope that stops the handler."""

from __future__ import annotations

import asyncio
import enum
import math
import threading
from collections.abc import Callable

from nvcf_worker.function.body import RequestBody


class Cancellation:
    """False until the request is cancelled; `if request.cancelled: ...` or `request.cancelled.wait(1.0)`."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: threading.Event | None = None

    def __bool__(self) -> bool:
        return self._is_set

    def is_set(self) -> bool:
        """Return whether the request was cancelled."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Block a handler's thread until the request is cancelled or `timeout` seconds have passed.

        Raises RuntimeError in a coroutine, whose event loop it would stop: that is cancelled by itself.
        """
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "request.cancelled.wait() would stop the event loop; an async handler is cancelled by "
                "CancelledError at its next `await`, or checks `if request.cancelled`"
            )
        if self._event is None:
            self._event = threading.Event()
        # Checked after the event is visible to `set`, so that a cancellation in between is not missed.
        if self._is_set:
            return True
        return self._event.wait(timeout)

    def set(self) -> None:
        """Set the flag and wake all threads that wait for it."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def __repr__(self) -> str:
        return f"Cancellation({self._is_set})"


class End(enum.Enum):
    """Why a request was stopped before its response was delivered."""

    CALLER_GONE = "the caller is gone"
    CONNECTION_LOST = "the broker could not be told that the request is in flight"
    HANDED_BACK = "the worker is leaving"
    RESPONSE_LOST = "its response was lost on the way"
    RETRY_LATER = "the function asked for another try"
    UNREACHABLE = "no gateway could be reached"
    NOT_WANTED = "its gateway is gone, and the request is in no queue any more"
    TIME_LIMIT = "its time limit is over"
    SESSION_CUT = "the worker is leaving and cut the session"


class CancelScope:
    """Stops one request. `end` is the reason why it was stopped, None while it may go on.

    task: the task that runs the request. thread: id of the thread that runs a plain handler, 0 for none.
    body: aborted together with the request. deadline: monotonic time at which its time limit is over.
    expire: stops a coroutine that keeps the loop from running at its deadline, by raising CancelledError in
    it; called from a signal handler.
    """

    __slots__ = ("body", "cancelled", "deadline", "end", "expire", "interruptible", "task", "thread")

    def __init__(self) -> None:
        self.cancelled = Cancellation()
        self.body: RequestBody | None = None
        self.task: asyncio.Task[None] | None = None
        self.end: End | None = None
        self.thread = 0
        self.deadline = math.inf
        self.expire: Callable[[], None] | None = None
        # True only while the task runs code that settles the request when it is cancelled: a task that is
        # cancelled before its first step never runs at all.
        self.interruptible = False

    def stop(self, end: End) -> None:
        """Cancel the coroutine of the request; a thread sees the flag. Only the first call counts."""
        if self.end is not None:
            return
        self.end = end
        self.cancelled.set()
        if self.body is not None:
            self.body.abort()
        if self.interruptible and self.task is not None:
            self.task.cancel()
