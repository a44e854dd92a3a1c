"""A limit on how many requests use something at once: a route, a model, a file."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from nvcf_worker.function.adaptive import Adaptive, AdaptiveLimit


class Limit:
    """Lets at most so many run at once; the others wait in order. Used on one event loop.

        async with limit.place():
            ...

    concurrency: a number, or `Adaptive(...)`, whose limit follows the time that permits are held. A block
    that raises is no sample of latency.
    """

    def __init__(self, concurrency: int | Adaptive, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._adaptive = AdaptiveLimit(concurrency, clock()) if isinstance(concurrency, Adaptive) else None
        self._fixed = concurrency if isinstance(concurrency, int) else 0
        if self._adaptive is None and self._fixed < 1:
            raise ValueError(f"a limit is a number from 1 on; got {concurrency!r}")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """Return how many may run now."""
        return self._fixed if self._adaptive is None else self._adaptive.limit

    @property
    def free(self) -> int:
        """Return how many permits are free; 0 while the limit is below the number that run."""
        return max(0, self.limit - self.in_flight)

    @property
    def waiting(self) -> int:
        """Return how many wait for a permit."""
        return sum(not future.done() for future in self._waiting)

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a permit. A task that is cancelled while it waits gives up its turn."""
        began = await self.acquire()
        try:
            yield
        except BaseException:
            self.release()
            raise
        self.release(began)

    async def acquire(self) -> float:
        """Wait for a permit; return the time at which it was acquired. `release` has to follow."""
        if not self._waiting and self.in_flight < self.limit:
            self.in_flight += 1
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
        """Add the time since `began` as a sample of latency."""
        if self._adaptive is not None:
            self._adaptive.finished(began=began, now=self._clock(), in_flight=self.in_flight)

    def release(self, began: float | None = None) -> None:
        """Release a permit. `began`, which `acquire` returned, makes the time a sample of latency."""
        if began is not None:
            self.sample(began)
        self.in_flight -= 1
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                # Counted here and not by the task that wakes up, so that no other task gets the permit first.
                self.in_flight += 1
                turn.set_result(None)
