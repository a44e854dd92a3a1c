"""Streams out of a batch: each step makes one output per item, and each item has its own stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from nvcf_worker.errors import BatchError
from nvcf_worker.process.loops import from_outside
from nvcf_worker.run.batching.items import Waiting, portable, results_of
from nvcf_worker.run.batching.settings import Finished


class Outlet:
    """The batch's end of one item's stream. Used on the event loop only.

    limit: how many outputs may wait for the reader. on_change: called when the reader has made room, and when
    it has left.
    """

    def __init__(self, limit: int, on_change: Callable[[], None]) -> None:
        self._limit = limit
        self._on_change = on_change
        self._outputs: deque[Any] = deque()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self.ended = False
        self.abandoned = False

    @property
    def full(self) -> bool:
        """Whether the reader is too far behind to get more outputs now."""
        return len(self._outputs) >= self._limit and not self.abandoned

    @property
    def open(self) -> bool:
        """Whether outputs are still wanted."""
        return not self.ended and not self.abandoned

    def give(self, output: Any) -> None:
        """Take the item's output of one step. None means no output; an exception fails this item only."""
        if not self.open:
            return
        if isinstance(output, BaseException):
            self.end(output)
        elif isinstance(output, Finished):
            if output.value is not None:
                self._outputs.append(output.value)
            self.end()
        elif output is not None:
            self._outputs.append(output)
            self._changed.set()

    def end(self, error: BaseException | None = None) -> None:
        """End the stream: the reader gets the outputs that wait and then the error, if any."""
        if not self.ended:
            self.ended = True
            self._error = None if error is None else portable(error)
            self._changed.set()

    def abandon(self) -> None:
        """Drop the outputs: the reader has left."""
        if not self.abandoned:
            self.abandoned = True
            self._outputs.clear()
            self._on_change()

    async def next(self) -> Any:
        """Return the next output. Raises StopAsyncIteration at the end, or the error of the batch."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            if self.ended or self.abandoned:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        was_full = self.full
        output = self._outputs.popleft()
        if was_full and not self.full:
            self._on_change()
        return output


class ItemStream(AsyncIterator[Any]):
    """The reader's end of one item's stream."""

    __slots__ = ("_outlet",)

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    async def __anext__(self) -> Any:
        return await self._outlet.next()

    async def aclose(self) -> None:
        """Stop reading: the item leaves the batch."""
        self._outlet.abandon()

    def __del__(self) -> None:
        # A stream that was dropped must not keep its batch waiting for room.
        self._outlet.abandon()


class StepBatch:
    """Runs a batch function that is a generator, and passes the outputs of each step to the items' streams.

    Until the first step a failure is the failure of the call, so that it can be tried again. With the first
    step the callers get their streams; a later failure ends the streams that are still open. The generator
    waits for a reader that is `buffer` outputs behind.
    """

    def __init__(
        self, steps: AsyncGenerator[Any, None], batch: list[Waiting], buffer: int, name: str
    ) -> None:
        self._steps = steps
        self._batch = batch
        self._name = name
        self._changed = asyncio.Event()
        self._outlets = [Outlet(buffer, self._changed.set) for _ in batch]
        self._started = False

    async def run(self) -> None:
        """Run the generator to its end, or until no stream is open any more."""
        try:
            async for step in self._steps:
                outputs = results_of(step, len(self._batch), self._name)
                if not self._started:
                    self._hand_out_streams(outputs)
                for outlet, output in zip(self._outlets, outputs, strict=True):
                    outlet.give(output)
                if not await self._room():
                    break
            if not self._started:
                self._hand_out_streams([None] * len(self._batch))
            self._end(None)
        except BaseException as error:
            if from_outside(error):
                self._end(BatchError(f"{self._name} was stopped"))
                raise
            if not self._started:
                raise
            self._end(error)
        finally:
            await self._steps.aclose()

    def _hand_out_streams(self, outputs: list[Any]) -> None:
        self._started = True
        for waiting, outlet, output in zip(self._batch, self._outlets, outputs, strict=True):
            if waiting.gone:
                outlet.abandon()
            elif isinstance(output, BaseException):
                waiting.fail(output)
                outlet.end()
            else:
                waiting.succeed(ItemStream(outlet))

    async def _room(self) -> bool:
        """Wait until every open stream has room. Return False if no stream is open any more."""
        while True:
            still_open = [outlet for outlet in self._outlets if outlet.open]
            if not still_open:
                return False
            if not any(outlet.full for outlet in still_open):
                # A generator that never waits must not keep the readers from the event loop.
                await asyncio.sleep(0)
                return True
            self._changed.clear()
            await self._changed.wait()

    def _end(self, error: BaseException | None) -> None:
        for outlet in self._outlets:
            outlet.end(error)
