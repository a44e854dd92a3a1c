"""Feeding a worker's adaptive limit from the requests that it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from nvcf_worker.function.adaptive import Adaptive, AdaptiveLimit
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.function.handlers import Handler
from nvcf_worker.function.request import Request, SyncRequest
from nvcf_worker.function.response import Outcome
from nvcf_worker.run.executor import Executor
from nvcf_worker.run.threads import ThreadPool


class MeasuredExecutor(Executor):
    """Tells `resize` the new limit when the latency of requests has moved it.

    Latency is the time to the answer, of a stream to its first item: how fast the rest is read is the
    caller's business.
    """

    def __init__(
        self,
        handler: Handler,
        pool: ThreadPool,
        loop: asyncio.AbstractEventLoop,
        settings: Adaptive,
        resize: Callable[[int], None],
    ) -> None:
        super().__init__(handler, pool, loop)
        self._limit = AdaptiveLimit(settings, time.monotonic())
        self._resize = resize
        self._in_work = 0
        resize(self._limit.limit)

    async def run(
        self, request: Request | SyncRequest, scope: CancelScope, handler: Handler | None = None
    ) -> Outcome:
        """Run a request and take its latency, if it succeeds."""
        began = time.monotonic()
        self._in_work += 1
        try:
            outcome = await super().run(request, scope, handler)
            if self._limit.finished(began=began, now=time.monotonic(), in_work=self._in_work):
                self._resize(self._limit.limit)
        finally:
            self._in_work -= 1
        return outcome
