"""One request in work, from its arrival to its acknowledgement."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

from nvcf_worker.function.body import RequestBody
from nvcf_worker.function.cancellation import Cancellation
from nvcf_worker.message import Work

if TYPE_CHECKING:
    from nvcf_worker.exchange.exchange import Conversation
    from nvcf_worker.exchange.files import RequestFiles
    from nvcf_worker.telemetry.observer import Told


class End(enum.Enum):
    """Why a request was stopped before its answer was delivered."""

    CALLER_GONE = "the caller is gone"
    CONNECTION_LOST = "the broker could not be told that the request is in work"
    HANDED_BACK = "the worker is leaving"
    RETRY_LATER = "the function asked for another try"
    UNREACHABLE = "no gateway could be reached"
    SESSION_CUT = "the worker is leaving and cut the session"


class ActiveRequest:
    """State of one request in work. Used on the event loop only."""

    __slots__ = (
        "body",
        "cancelled",
        "conversation",
        "end",
        "failed_signals",
        "files",
        "holds_slot",
        "interruptible",
        "journal_slot",
        "max_deliver",
        "retry_after",
        "signalled_at",
        "task",
        "told",
        "work",
    )

    def __init__(self, work: Work, now: float) -> None:
        self.work = work
        self.cancelled = Cancellation()
        self.body: RequestBody | None = None
        self.task: asyncio.Task[None] | None = None
        self.conversation: Conversation | None = None
        self.files: RequestFiles | None = None
        self.told: Told | None = None
        self.end: End | None = None
        # How often the queue delivers a request; 0 when that has no limit.
        self.max_deliver = 0
        # Seconds until it is delivered again after RETRY_LATER.
        self.retry_after = 0.0
        # Only while the task is in code that settles the request when it is cancelled: a task that is
        # cancelled before its first step never runs at all.
        self.interruptible = False
        self.holds_slot = True
        self.journal_slot = -1
        self.signalled_at = now
        self.failed_signals = 0

    def stop(self, end: End) -> None:
        """Stop the handler: coroutines are cancelled, threads see the flag. The first reason counts."""
        if self.end is not None:
            return
        self.end = end
        self.cancelled.set()
        if self.body is not None:
            self.body.abort()
        if self.interruptible and self.task is not None:
            self.task.cancel()
