"""The worker's request slots."""

from __future__ import annotations

from collections.abc import Callable


class Slots:
    """`total` slots for requests in flight. Used on the event loop only."""

    def __init__(self, total: int, on_free: Callable[[], None]) -> None:
        if total < 1:
            raise ValueError("a worker has at least one slot")
        self.total = total
        self.busy = 0
        self.paused = False
        self._limits: dict[str, int] = {}
        self._on_free = on_free

    @property
    def limit(self) -> int:
        """Return how many slots may be in use now: all, or fewer while a source limits them."""
        return min((self.total, *self._limits.values())) if self._limits else self.total

    def set_limit(self, source: str, limit: int) -> None:
        """Limit the slots in use, until `source` sets another limit."""
        before = self.limit
        self._limits[source] = limit
        if self.limit > before:
            self._on_free()

    @property
    def free(self) -> int:
        """Return how many slots are free; none while paused."""
        return 0 if self.paused else max(0, self.limit - self.busy)

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
