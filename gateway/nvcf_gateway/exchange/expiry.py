"""What is given up after a fixed time, with one timer for all: one for each item takes much memory."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Hashable
from itertools import takewhile
from typing import Generic, TypeVar

PAUSE = 0.5
"""Shortest time between two looks, so that many items cost little."""

T = TypeVar("T", bound=Hashable)


class Expiry(Generic[T]):
    """Calls `expired` for each item that was added `seconds` ago, up to `PAUSE` later."""

    def __init__(self, seconds: float, expired: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._expired = expired
        # In the order of their ends, because all stay for the same time.
        self._ends: dict[T, float] = {}
        self._looking = False

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, item: T) -> None:
        """Add an item; its time begins anew if it is there already."""
        now = asyncio.get_running_loop().time()
        self._ends.pop(item, None)
        self._ends[item] = now + self._seconds
        if not self._looking:
            self._look_at(now + self._seconds)

    def discard(self, item: T) -> None:
        """Remove an item."""
        self._ends.pop(item, None)

    def _look_at(self, when: float) -> None:
        self._looking = True
        # In a context of its own: the caller's holds all that its exchange was about.
        asyncio.get_running_loop().call_at(when, self._look, context=contextvars.Context())

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        over = [item for item, _ in takewhile(lambda each: each[1] <= now, self._ends.items())]
        for item in over:
            self._ends.pop(item, None)
            self._expired(item)
        self._looking = bool(self._ends)
        if self._looking:
            self._look_at(max(next(iter(self._ends.values())), now + PAUSE))
