"""Which items go into which batch, and when. Values in, values out; the caller passes the clock."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """One waiting item. `arrived` is in the seconds of whatever clock the caller uses."""

    item: T
    bucket: Hashable
    cost: float
    arrived: float


class BatchPlanner(Generic[T]):
    """Collects items into batches of one bucket each.

    max_size: items in a batch at most. max_cost: sum of their costs at most; an item that alone costs
    more gets a batch of its own. max_wait: seconds after which a batch goes out though it is not full.
    Within a bucket items leave in the order of their arrival.
    """

    def __init__(self, max_size: int, max_wait: float, max_cost: float | None = None) -> None:
        self._max_size = max_size
        self._max_wait = max_wait
        self._max_cost = math.inf if max_cost is None else max_cost
        # Dictionaries as ordered sets: an item that is cancelled leaves from the middle without a search.
        self._buckets: dict[Hashable, dict[Entry[T], None]] = {}
        self._costs: dict[Hashable, float] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: T, *, now: float, bucket: Hashable = None, cost: float = 1.0) -> Entry[T]:
        """Let an item wait. Raises ValueError for a cost that is negative or no number."""
        if not cost >= 0:
            raise ValueError(f"the size of an item is {cost!r}; it must be a number from 0 on")
        entry = Entry(item, bucket, cost, now)
        self._buckets.setdefault(bucket, {})[entry] = None
        self._costs[bucket] = self._costs.get(bucket, 0.0) + cost
        self._count += 1
        return entry

    def discard(self, entry: Entry[T]) -> bool:
        """Take a waiting item out, e.g. because its request was cancelled; False if it has left already."""
        waiting = self._buckets.get(entry.bucket)
        if waiting is None or entry not in waiting:
            return False
        del waiting[entry]
        self._left(entry.bucket, entry.cost)
        return True

    def due_at(self) -> float | None:
        """When `take` has a batch: the time, `-inf` if there is one now, None if nothing waits."""
        soonest: float | None = None
        for bucket, waiting in self._buckets.items():
            if self._full(bucket, waiting):
                return -math.inf
            due = _first(waiting).arrived + self._max_wait
            soonest = due if soonest is None else min(soonest, due)
        return soonest

    def take(self, now: float) -> list[Entry[T]]:
        """The next batch that is full or has waited long enough; empty if there is none.

        Of several the one with the oldest item comes first, so that a busy bucket cannot starve a quiet one.
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
        waiting = self._buckets[bucket]
        batch: list[Entry[T]] = []
        cost = 0.0
        for entry in waiting:
            if len(batch) == self._max_size or (batch and cost + entry.cost > self._max_cost):
                break
            batch.append(entry)
            cost += entry.cost
        for entry in batch:
            del waiting[entry]
            self._left(bucket, entry.cost)
        return batch

    def _full(self, bucket: Hashable, waiting: dict[Entry[T], None]) -> bool:
        return len(waiting) >= self._max_size or self._costs[bucket] >= self._max_cost

    def _left(self, bucket: Hashable, cost: float) -> None:
        self._count -= 1
        if self._buckets[bucket]:
            self._costs[bucket] -= cost
        else:
            del self._buckets[bucket], self._costs[bucket]


def _first(waiting: dict[Entry[T], None]) -> Entry[T]:
    return next(iter(waiting))
