"""An item on its way through a batch, and the results of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nvcf_worker.errors import BatchError
from nvcf_worker.run.batching.telemetry import Member


class Waiting:
    """An item and whoever waits for its result."""

    __slots__ = ("_future", "item", "member", "on_leave")

    def __init__(self, item: Any, future: asyncio.Future[Any]) -> None:
        self.item = item
        self.member = Member()
        self.on_leave: Callable[[], None] | None = None
        # Forgotten once it is settled: a result that is a stream must not be kept alive from here.
        self._future: asyncio.Future[Any] | None = future

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more, or the result is there."""
        return self._future is None or self._future.done()

    def succeed(self, result: Any) -> None:
        """Hand the result over; one that is an exception is raised where the item came from."""
        if isinstance(result, BaseException):
            self.fail(result)
            return
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Raise `error` where the item came from."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(carried(error))

    def cancel(self) -> None:
        """Let the waiting one be cancelled."""
        if self._future is not None:
            self._future.cancel()


def carried(error: BaseException) -> BaseException:
    """What a future can carry and a caller cannot take for the end of its own request or of the process."""
    if not isinstance(error, StopIteration | StopAsyncIteration | asyncio.CancelledError | SystemExit):
        return error
    wrapped = BatchError(f"the batch function raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


def results_of(result: Any, count: int, name: str) -> list[Any]:
    """The results of a batch, one an item. Raises BatchError when they are not as many as the items."""
    if isinstance(result, str | bytes | bytearray | dict) or not hasattr(result, "__iter__"):
        raise BatchError(
            f"{name} returned {type(result).__name__} for a batch of {count}; "
            "it must return a list with one result an item"
        )
    results = list(result)
    if len(results) != count:
        raise BatchError(f"{name} returned {len(results)} results for a batch of {count}")
    return results
