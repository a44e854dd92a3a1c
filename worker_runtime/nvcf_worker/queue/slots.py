"""Accounting of the worker's request slots."""

from __future__ import annotations

from collections.abc import Callable


class Slots:
    """`total` places for requests in work. Used on the event loop only."""

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
        """Places that may be taken now: all of them, or fewer while somebody says so."""
        return min((self.total, *self._limits.values())) if self._limits else self.total

    def set_limit(self, source: str, limit: int) -> None:
        """Let no more than `limit` places be taken, until `source` says otherwise."""
        before = self.limit
        self._limits[source] = limit
        if self.limit > before:
            self._on_free()

    @property
    def free(self) -> int:
        """Places that are not taken; none while paused."""
        return 0 if self.paused else max(0, self.limit - self.busy)

    def acquire(self) -> bool:
        """Take one place; False when there is none."""
        if self.paused or self.busy >= self.limit:
            return False
        self.busy += 1
        return True

    def release(self) -> None:
        """Free one place and tell whoever pulls."""
        if self.busy <= 0:
            raise RuntimeError("more slots given back than taken")
        self.busy -= 1
        self._on_free()
