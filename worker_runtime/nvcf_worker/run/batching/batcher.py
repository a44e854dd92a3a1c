"""Run batches: items arrive one by one, go through the batch function together, and leave one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from nvcf_worker.errors import BatchError, Fatal, RetryLater
from nvcf_worker.function.handlers import runs_on_loop
from nvcf_worker.process.loops import from_outside
from nvcf_worker.run.batching.calling import FunctionCaller
from nvcf_worker.run.batching.items import Waiting, results_of
from nvcf_worker.run.batching.plan import BatchPlanner, Entry
from nvcf_worker.run.batching.settings import BatchSettings
from nvcf_worker.run.batching.streams import StepBatch
from nvcf_worker.run.batching.telemetry import BatchTelemetry
from nvcf_worker.run.threads import wait_uninterrupted

log = logging.getLogger("nvcf_worker")


class Batcher:
    """The batches of one function in one event loop."""

    def __init__(self, function: Callable[[list[Any]], Any], settings: BatchSettings, name: str) -> None:
        self._function = function
        self._settings = settings
        self._name = name
        self.loop = asyncio.get_running_loop()
        self._caller = FunctionCaller(self.loop)
        self._loops = runs_on_loop(function)
        self._plan: BatchPlanner[Waiting] = BatchPlanner(
            settings.max_size, settings.max_wait, settings.max_cost
        )
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._scheduled = False

    async def submit(self, item: Any) -> Any:
        """Return the function's result for one item. Raises what the function raised for it.

        A caller that is cancelled takes its item out of the batch. When all items of a running batch have
        left, an async batch function is cancelled, too.
        """
        settings = self._settings
        bucket = settings.bucket(item) if settings.bucket is not None else None
        cost = settings.size(item) if settings.size is not None else 1.0
        future: asyncio.Future[Any] = self.loop.create_future()
        waiting = Waiting(item, future)
        entry = self._plan.add(waiting, bucket=bucket, cost=cost, now=self.loop.time())
        # Later in this iteration of the loop, so that its other callers have submitted their items.
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._start_due)
        try:
            return await future
        except asyncio.CancelledError:
            if not self._plan.discard(entry) and waiting.on_leave is not None:
                waiting.on_leave()
            if waiting.batch is not None:
                # A thread cannot be interrupted: the request keeps its slot, as with a plain handler.
                await wait_uninterrupted(waiting.batch)
            raise

    def _start_due(self) -> None:
        """Start the batches that are due, as far as `parallel` allows, and set a timer for the next one."""
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while len(self._running) < self._settings.parallel:
            batch = self._plan.take(self.loop.time())
            if not batch:
                due = self._plan.due_at()
                if due is not None:
                    self._timer = self.loop.call_at(due, self._start_due)
                return
            self._start(batch)

    def _start(self, batch: list[Entry[Waiting]]) -> None:
        items = [entry.item for entry in batch]
        waited = self.loop.time() - min(entry.arrived for entry in batch)
        telemetry = BatchTelemetry(self._name, [item.member for item in items], waited)
        task = self.loop.create_task(self._run(items, telemetry), context=telemetry.context)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not self.loop.is_closed():
            self._start_due()

    async def _run(self, batch: list[Waiting], telemetry: BatchTelemetry) -> None:
        try:
            await self._attempt(batch, telemetry)
        except asyncio.CancelledError:
            # All callers have left, or the loop is being shut down.
            for waiting in batch:
                waiting.cancel()
        finally:
            telemetry.end()

    async def _attempt(self, batch: list[Waiting], telemetry: BatchTelemetry) -> None:
        live = [waiting for waiting in batch if not waiting.gone]
        if not live:
            return
        task = asyncio.current_task()

        def on_leave() -> None:
            if task is not None and all(waiting.gone for waiting in live):
                task.cancel()

        for waiting in live:
            waiting.on_leave = on_leave
            waiting.batch = None if self._loops else task
        try:
            result = await self._caller.call(self._function, [waiting.item for waiting in live])
            if isinstance(result, AsyncIterator | Iterator):
                steps = self._caller.steps(result)
                for waiting in live:
                    waiting.on_leave = None
                await StepBatch(steps, live, self._settings.buffer, self._name).run()
                return
            results = results_of(result, len(live), self._name)
        except BaseException as error:
            if from_outside(error):
                raise
            telemetry.failed(error)
            await self._retry_alone(live, error, telemetry)
        else:
            for waiting, one in zip(live, results, strict=True):
                waiting.succeed(one)

    async def _retry_alone(
        self, live: list[Waiting], error: BaseException, telemetry: BatchTelemetry
    ) -> None:
        # These errors concern the instance or the moment, so they apply to every item.
        for_all = isinstance(error, BatchError | RetryLater | Fatal)
        if len(live) == 1 or for_all or not self._settings.isolate:
            self._fail(live, error)
            return
        log.warning(
            "%s failed on a batch of %d (%s: %s); each item is tried alone",
            self._name, len(live), type(error).__name__, error,
        )  # fmt: skip
        for waiting in live:
            await self._attempt([waiting], telemetry)

    @staticmethod
    def _fail(batch: list[Waiting], error: BaseException) -> None:
        for waiting in batch:
            waiting.fail(error)
