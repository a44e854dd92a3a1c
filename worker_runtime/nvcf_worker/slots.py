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
        self._on_free = on_free

    @property
    def free(self) -> int:
        """Places that are not taken."""
        return self.total - self.busy

    def take(self) -> bool:
        """Take one place; False when there is none."""
        if self.busy >= self.total:
            return False
        self.busy += 1
        return True

    def give_back(self) -> None:
        """Free one place and tell whoever pulls."""
        if self.busy <= 0:
            raise RuntimeError("more slots given back than taken")
        self.busy -= 1
        self._on_free()
