"""One item's stream out of a batch that makes the outputs of many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from nvcf_worker.run.batching.items import carried


class Finished:
    """In place of an output: this item's stream ends here, after `value` if one is given."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Finished()" if self.value is None else f"Finished({self.value!r})"


class Outlet:
    """The batch's end of an item's stream. Used on the event loop only.

    `limit` is how many outputs may wait for the reader; `on_change` is called when there is room again
    and when the reader has left.
    """

    def __init__(self, limit: int, on_change: Callable[[], None]) -> None:
        self._limit = limit
        self._on_change = on_change
        self._outputs: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.ended = False
        self.abandoned = False

    @property
    def full(self) -> bool:
        """Whether the reader is so far behind that it should get nothing more for now."""
        return len(self._outputs) >= self._limit and not self.abandoned

    @property
    def open(self) -> bool:
        """Whether outputs are still wanted."""
        return not self.ended and not self.abandoned

    def give(self, output: Any) -> None:
        """Hand over what a step made for this item: None is nothing, an exception fails this item alone."""
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
            self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes; the reader gets what is there and then the error, if any."""
        if not self.ended:
            self.ended = True
            self._error = None if error is None else carried(error)
            self._wake()

    def abandon(self) -> None:
        """The reader has left."""
        if not self.abandoned:
            self.abandoned = True
            self._outputs.clear()
            self._on_change()

    async def next(self) -> Any:
        """The next output. Raises StopAsyncIteration, or the error of the batch."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            if self.ended or self.abandoned:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        was_full = self.full
        output = self._outputs.popleft()
        if was_full and not self.full:
            self._on_change()
        return output

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class ItemStream(AsyncIterator[Any]):
    """The reader's end: an async iterator of one item's outputs."""

    __slots__ = ("_outlet",)

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    async def __anext__(self) -> Any:
        return await self._outlet.next()

    async def aclose(self) -> None:
        """Want nothing more: the item leaves the batch."""
        self._outlet.abandon()

    def __del__(self) -> None:
        # A stream that nobody holds any more must not keep its batch waiting for room.
        self._outlet.abandon()
