"""Decide which items form the next batch, and which sequences take part in the next step. No I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """One waiting item. `arrived` is in seconds of the clock that the caller uses."""

    item: T
    bucket: Hashable
    cost: float
    arrived: float


class BatchPlanner(Generic[T]):
    """Collect items into batches of one bucket each.

    max_size: maximum number of items in a batch.
    max_cost: maximum sum of their costs; an item that costs more gets a batch of its own.
    max_wait: seconds after which a batch leaves even if it is not full.
    Within a bucket items leave in the order of their arrival.
    """

    def __init__(self, max_size: int, max_wait: float, max_cost: float | None = None) -> None:
        self._max_size = max_size
        self._max_wait = max_wait
        self._max_cost = math.inf if max_cost is None else max_cost
        # Dictionaries as ordered sets: a cancelled item is removed from the middle without a search.
        self._buckets: dict[Hashable, dict[Entry[T], None]] = {}
        self._costs: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, item: T, *, now: float, bucket: Hashable = None, cost: float = 1.0) -> Entry[T]:
        """Add a waiting item. Raises ValueError if the cost is negative or not a number."""
        entry = Entry(item, bucket, _checked_cost(cost), now)
        self._buckets.setdefault(bucket, {})[entry] = None
        self._costs[bucket] = self._costs.get(bucket, 0.0) + cost
        return entry

    def discard(self, entry: Entry[T]) -> bool:
        """Remove a waiting item, e.g. of a cancelled request. Return False if it has left already."""
        waiting = self._buckets.get(entry.bucket)
        if waiting is None or entry not in waiting:
            return False
        self._remove(entry)
        return True

    def due_at(self) -> float | None:
        """Return the time at which `take` has a batch: `-inf` if there is one now, None if nothing waits."""
        soonest: float | None = None
        for bucket, waiting in self._buckets.items():
            if self._full(bucket, waiting):
                return -math.inf
            due = _first(waiting).arrived + self._max_wait
            soonest = due if soonest is None else min(soonest, due)
        return soonest

    def take(self, now: float) -> list[Entry[T]]:
        """Remove and return the next batch that is full or has waited long enough; empty if there is none.

        The batch with the oldest item comes first, so that a busy bucket cannot starve a quiet one.
        """
        chosen: Hashable = None
        oldest = math.inf
        for bucket, waiting in self._buckets.items():
            arrived = _first(waiting).arrived
            ready = now >= arrived + self._max_wait or self._full(bucket, waiting)
            if ready and arrived < oldest:
                chosen, oldest = bucket, arrived
        return [] if oldest == math.inf else self._pack(chosen)

    def _pack(self, bucket: Hashable) -> list[Entry[T]]:
        batch: list[Entry[T]] = []
        cost = 0.0
        for entry in self._buckets[bucket]:
            if len(batch) == self._max_size or (batch and cost + entry.cost > self._max_cost):
                break
            batch.append(entry)
            cost += entry.cost
        for entry in batch:
            self._remove(entry)
        return batch

    def _full(self, bucket: Hashable, waiting: dict[Entry[T], None]) -> bool:
        return len(waiting) >= self._max_size or self._costs[bucket] >= self._max_cost

    def _remove(self, entry: Entry[T]) -> None:
        bucket = entry.bucket
        del self._buckets[bucket][entry]
        if self._buckets[bucket]:
            self._costs[bucket] -= entry.cost
        else:
            del self._buckets[bucket], self._costs[bucket]


def _first(waiting: dict[Entry[T], None]) -> Entry[T]:
    return next(iter(waiting))


def _checked_cost(cost: float) -> float:
    if not cost >= 0:
        raise ValueError(f"the size of an item is {cost!r}; it must be a number, 0 or above")
    return cost


class ActiveSet(Generic[T]):
    """The sequences of a continuous batch: they wait, become active in the order of arrival, and leave.

    max_active: maximum number of active sequences.
    max_cost: maximum sum of their costs; a sequence that costs more runs alone.
    A sequence that does not fit holds back those behind it.
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
        """The active sequences, in the order in which they became active."""
        return list(self._active)

    @property
    def waiting(self) -> list[T]:
        """The sequences that are not active yet, oldest first."""
        return [item for item, _ in self._waiting]

    def add(self, item: T, cost: float = 1.0) -> None:
        """Add a waiting sequence. Raises ValueError if the cost is negative or not a number."""
        self._waiting.append((item, _checked_cost(cost)))

    def admit(self) -> list[T]:
        """Make as many waiting sequences active as fit, and return them."""
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
        """Remove a sequence, active or waiting. Do nothing if it has left already."""
        if self._active.pop(item, None) is None:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not item)
