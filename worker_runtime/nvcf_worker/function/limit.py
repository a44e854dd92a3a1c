"""A limit that requests take their turn at: of a route, a model, a file, anything."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from nvcf_worker.function.adaptive import Adaptive, AdaptiveLimit


class Limit:
    """At most so many at once; the others wait in order. Used on one event loop.

        async with limit.place():
            ...

    concurrency: a number, or `Adaptive(...)`, whose limit follows the time that places are held. What leaves
    with an exception is no sample of latency.
    """

    def __init__(self, concurrency: int | Adaptive, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._adaptive = AdaptiveLimit(concurrency, clock()) if isinstance(concurrency, Adaptive) else None
        self._fixed = concurrency if isinstance(concurrency, int) else 0
        if self._adaptive is None and self._fixed < 1:
            raise ValueError(f"a limit is a number from 1 on; got {concurrency!r}")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_work = 0

    @property
    def limit(self) -> int:
        """How many may be in work now."""
        return self._fixed if self._adaptive is None else self._adaptive.limit

    @property
    def free(self) -> int:
        """Places that are not taken; 0 while the limit has sunk below what is in work."""
        return max(0, self.limit - self.in_work)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not future.done() for future in self._waiting)

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one place. Who is cancelled while waiting gives up its turn."""
        began = await self.acquire()
        try:
            yield
        except BaseException:
            self.release()
            raise
        self.release(began)

    async def acquire(self) -> float:
        """Take a place, which `release` has to return; gives the time at which it was taken."""
        if not self._waiting and self.in_work < self.limit:
            self.in_work += 1
            return self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The turn came together with the cancellation.
                self.release()
            raise
        return self._clock()

    def sample(self, began: float) -> None:
        """Count the time since `began` as a latency."""
        if self._adaptive is not None:
            self._adaptive.finished(began=began, now=self._clock(), in_work=self.in_work)

    def release(self, began: float | None = None) -> None:
        """Return a place; `began`, what `take` gave, makes the time a sample of latency."""
        if began is not None:
            self.sample(began)
        self.in_work -= 1
        while self._waiting and self.in_work < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                # Counted here and not by the one that wakes up: nobody else may slip in between.
                self.in_work += 1
                turn.set_result(None)
