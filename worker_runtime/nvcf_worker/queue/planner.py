"""Request slots, how many requests to ask the broker for, and what its status messages mean. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from nvcf_proto import settings

SHORT_PAUSE = 0.25
MAX_WAITING_PAUSE = 1.0
REFUSED_PAUSE = 5.0
MISSED_HEARTBEATS = 2
NOTHING_AFTER = 0.02
"""Seconds without a reply to a pull after which a region counts as empty."""

_MAX_BATCH = re.compile(r"exceeded maxrequestbatch of (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class PullStatus:
    """The effect of a status message: whether to look the consumer up again, and what to log."""

    look_up: bool = False
    warning: str | None = None


_NOTHING = PullStatus()


class PullPlanner:
    """Accounts for the pull requests of one worker in one region.

    `outstanding` is the number of requests that were asked for and neither arrived nor were
    refused. It never exceeds the free slots at the time of asking. Source of the status codes:
    NATS ADR-37 (JetStream simplification, pull consumers) and the server's consumer.go.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError("a worker has at least one slot")
        self.slots = slots
        self.outstanding = 0
        self.max_batch = slots
        self._last_message_at = 0.0
        self._waits_since = 0.0
        self._paused_until = 0.0

    def ask(self, free: int, now: float) -> int:
        """Return how many requests to pull now, 0 for none; count them as outstanding.

        To keep pulls few, there is none while more than half of the slots is still outstanding.
        """
        if now < self._paused_until or self.outstanding > self.slots // 2:
            return 0
        batch = min(free - self.outstanding, self.max_batch)
        if batch <= 0:
            return 0
        if self.outstanding == 0:
            self._last_message_at = self._waits_since = now
        self.outstanding += batch
        return batch

    def delivered(self, now: float) -> None:
        """Count a request that arrived."""
        self._last_message_at = now
        if self.outstanding:
            self.outstanding -= 1

    def has_nothing(self, now: float) -> bool:
        """Return whether the region is empty, or must not be pulled from now."""
        return now < self._paused_until or (self.outstanding > 0 and now - self._waits_since >= NOTHING_AFTER)

    def stale(self, now: float) -> bool:
        """Return whether a pull is open and the broker has been silent for two idle heartbeats."""
        silence = now - self._last_message_at
        return self.outstanding > 0 and silence > MISSED_HEARTBEATS * settings.PULL_IDLE_HEARTBEAT

    def reset(self) -> None:
        """Forget all pulls: the broker has lost them, or they were withdrawn."""
        self.outstanding = 0

    def status(self, code: int, text: str, *, pending: int | None, batch: int, now: float) -> PullStatus:
        """Count a status message, and return its effect.

        pending: the Nats-Pending-Messages header, how much of the pull the broker did not serve. batch: the
        size of the pull that the message belongs to.
        """
        self._last_message_at = now
        if code == 100:
            return _NOTHING
        if code in (404, 408):
            self._subtract(batch if pending is None else pending)
            return _NOTHING
        if code == 409:
            return self._conflict(text, pending, batch, now)
        self.reset()
        if code == 503:
            return PullStatus(look_up=True)
        self._paused_until = now + REFUSED_PAUSE
        return PullStatus(warning=f"the broker refused a pull with {code} {text}")

    def _conflict(self, text: str, pending: int | None, batch: int, now: float) -> PullStatus:
        lowered = text.lower()
        limit = _MAX_BATCH.search(lowered)
        if limit is not None:
            self._subtract(batch)
            self.max_batch = max(1, int(limit[1]))
            return PullStatus(warning=f"the broker allows at most {self.max_batch} requests in a pull")
        if "consumer deleted" in lowered:
            self.reset()
            return PullStatus(look_up=True)
        if "leadership change" in lowered or "server shutdown" in lowered:
            self.reset()
            self._paused_until = now + SHORT_PAUSE
            return PullStatus(look_up=True)
        if "exceeded maxwaiting" in lowered:
            self._subtract(batch)
            self._paused_until = now + MAX_WAITING_PAUSE
            return _NOTHING
        self._subtract(batch if pending is None else pending)
        if pending is not None:
            return _NOTHING
        self._paused_until = now + REFUSED_PAUSE
        return PullStatus(warning=f"the broker refused a pull: {text}")

    def _subtract(self, count: int) -> None:
        self.outstanding = max(0, self.outstanding - count)


class Slots:
    """`total` slots for requests in flight. Used on the event loop only."""

    def __init__(self, total: int, on_free: Callable[[], None]) -> None:
        if total < 1:
            raise ValueError("a worker has at least one slot")
        self.total = total
        self.limit = total
        """How many slots may be in use now: all, or fewer while a source limits them."""
        self.busy = 0
        self.paused = False
        self._limits: dict[str, int] = {}
        self._on_free = on_free

    def set_limit(self, source: str, limit: int) -> None:
        """Limit the slots in use, until `source` sets another limit."""
        before = self.limit
        self._limits[source] = limit
        self.limit = min(self.total, *self._limits.values())
        if self.limit > before:
            self._on_free()

    @property
    def free(self) -> int:
        """Return how many slots are free; none while paused."""
        return 0 if self.paused or self.busy > self.limit else self.limit - self.busy

    def acquire(self) -> bool:
        """Acquire a slot; return False when none is free."""
        if self.paused or self.busy >= self.limit:
            return False
        self.busy += 1
        return True

    def release(self) -> None:
        """Release a slot and notify the pullers."""
        if self.busy <= 0:
            raise RuntimeError("more slots released than acquired")
        self.busy -= 1
        self._on_free()
