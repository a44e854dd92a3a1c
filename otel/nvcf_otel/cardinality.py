"""Metric attributes with many values (function versions) held to a bounded number. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

OTHER = "other"
"""Stands for all values beyond the limit."""
LIMIT = 1000
IDLE_SECONDS = 3600.0
_LOOK_EVERY = 10.0


class Bounded:
    """Lets the first `limit` values through; those idle for `idle_seconds` make room for others.

    Used on one thread. `clock` is in seconds and only grows.
    """

    def __init__(
        self,
        limit: int = LIMIT,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._used_at: dict[str, float] = {}
        self._looked_at = clock()
        self._listeners: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        return len(self._used_at)

    def on_release(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each value that is let go, so that what was counted by it is dropped."""
        self._listeners.append(listener)

    def admits(self, value: str) -> bool:
        """Whether `value` may be an attribute; it counts as used now."""
        now = self._clock()
        if value in self._used_at or len(self._used_at) < self._limit or self._made_room(now):
            self._used_at[value] = now
            return True
        return False

    def value(self, value: str) -> str:
        """The value, or `OTHER`."""
        return value if self.admits(value) else OTHER

    def release(self, value: str) -> None:
        """The value is gone for good."""
        if self._used_at.pop(value, None) is not None:
            for listener in self._listeners:
                listener(value)

    def _made_room(self, now: float) -> bool:
        if now - self._looked_at < _LOOK_EVERY:
            return False
        self._looked_at = now
        idle = [value for value, used_at in self._used_at.items() if now - used_at >= self._idle_seconds]
        for value in idle:
            self.release(value)
        return bool(idle)
