"""Bound the number of values of a metric attribute, such as function versions. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

OTHER = "other"
"""Stands for all values beyond the limit."""
LIMIT = 1000
IDLE_SECONDS = 3600.0
_LOOK_EVERY = 10.0


class Bounded:
    """Admits the first `limit` values; values idle for `idle_seconds` make room for others.

    For use on one thread. `clock` is in seconds and monotonic.
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
        """Call `listener` with each value that is released, so that its series can be dropped."""
        self._listeners.append(listener)

    def admits(self, value: str) -> bool:
        """Return whether `value` may be an attribute, and mark it as used now."""
        now = self._clock()
        if value in self._used_at or len(self._used_at) < self._limit or self._made_room(now):
            self._used_at[value] = now
            return True
        return False

    def value(self, value: str) -> str:
        """Return the value, or `OTHER`."""
        return value if self.admits(value) else OTHER

    def release(self, value: str) -> None:
        """Release a value that no longer exists."""
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
