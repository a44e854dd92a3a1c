"""Which sequences take part in the next step of a continuous batch. Values in, values out."""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class ActiveSet(Generic[T]):
    """Sequences wait, become active in the order of their arrival, and leave at any time.

    max_active: active sequences at most. max_cost: sum of the costs of the active ones at most; one
    that alone costs more runs alone. Nobody overtakes: one that does not fit holds those behind it back.
    """

    def __init__(self, max_active: int, max_cost: float | None = None) -> None:
        self._max_active = max_active
        self._max_cost = math.inf if max_cost is None else max_cost
        self._waiting: deque[tuple[T, float]] = deque()
        self._active: dict[T, float] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._active)

    @property
    def active(self) -> list[T]:
        """The active ones in the order in which they became active."""
        return list(self._active)

    @property
    def waiting(self) -> list[T]:
        """Those that are not active yet, oldest first."""
        return [item for item, _ in self._waiting]

    def add(self, item: T, cost: float = 1.0) -> None:
        """Let a sequence wait. Raises ValueError for a cost that is negative or no number."""
        if not cost >= 0:
            raise ValueError(f"the size of an item is {cost!r}; it must be a number from 0 on")
        self._waiting.append((item, cost))

    def admit(self) -> list[T]:
        """Make as many of the waiting ones active as fit, and return them."""
        admitted: list[T] = []
        total = math.fsum(self._active.values())
        while self._waiting and len(self._active) < self._max_active:
            item, cost = self._waiting[0]
            if self._active and total + cost > self._max_cost:
                break
            self._waiting.popleft()
            self._active[item] = cost
            total += cost
            admitted.append(item)
        return admitted

    def leave(self, item: T) -> None:
        """Take a sequence out, active or not; one that has left already is no matter."""
        if self._active.pop(item, None) is None:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not item)
