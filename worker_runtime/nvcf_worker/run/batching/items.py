"""Items of a batch: made from requests, waiting for results, matched with the results of the function."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from nvcf_worker.errors import BatchError
from nvcf_worker.function.handlers import runs_on_loop
from nvcf_worker.function.request import Request, SyncRequest, for_loop
from nvcf_worker.run.batching.telemetry import Member
from nvcf_worker.run.threads import ThreadPool


class Preparer:
    """Makes items from requests. Anything that is not a request is an item already.

    prepare: the user's own step, run for each request separately: a coroutine function gets the `Request`, a
        plain function gets a `SyncRequest` on a thread. Without it the request is the item.
    sync_items: whether the batch function is a plain function, whose items are `SyncRequest`s.
    The body is always read first, so that no item makes its batch wait for an upload.
    """

    def __init__(self, prepare: Callable[[Any], Any] | None, *, sync_items: bool) -> None:
        self._prepare = prepare
        self._sync_items = sync_items
        self._pool: ThreadPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def item(self, given: Any) -> Any:
        """Return the item of one call. Raises what `prepare` raises, e.g. BadInput."""
        if not isinstance(given, Request):
            return given
        await given.read()
        prepare = self._prepare
        if prepare is None:
            return as_sync(given) if self._sync_items else given
        if runs_on_loop(prepare):
            return await prepare(given)
        request = as_sync(given)
        loop = asyncio.get_running_loop()
        if self._pool is None or self._loop is not loop:
            self._pool, self._loop = ThreadPool(loop), loop
        made = await self._pool.run(lambda: prepare(request))
        if inspect.isawaitable(made):  # a plain function around a coroutine
            for_loop(request)
            made = await made
        return made


def as_sync(request: Request) -> SyncRequest:
    """Return the same request with blocking reads."""
    twin = SyncRequest.__new__(SyncRequest)
    for kind in type(request).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(request, name):
                setattr(twin, name, getattr(request, name))
    twin._loop = asyncio.get_running_loop()
    return twin


class Waiting:
    """An item and the future through which its caller gets the result."""

    __slots__ = ("_future", "batch", "item", "member", "on_leave")

    def __init__(self, item: Any, future: asyncio.Future[Any]) -> None:
        self.item = item
        self.member = Member()
        self.on_leave: Callable[[], None] | None = None
        # The task of its batch, once that runs on a thread.
        self.batch: asyncio.Task[Any] | None = None
        # Dropped once it is settled: a result that is a stream must not be kept alive by its item.
        self._future: asyncio.Future[Any] | None = future

    @property
    def gone(self) -> bool:
        """Whether the caller has left or has its result."""
        return self._future is None or self._future.done()

    def succeed(self, result: Any) -> None:
        """Give the result to the caller; a result that is an exception is raised there."""
        if isinstance(result, BaseException):
            self.fail(result)
            return
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Raise `error` at the caller."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(portable(error))

    def cancel(self) -> None:
        """Cancel the caller's wait."""
        if self._future is not None:
            self._future.cancel()


def portable(error: BaseException) -> BaseException:
    """Return the error, wrapped in BatchError if it would end more than the call in which it is raised."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    wrapped = BatchError(f"the batch function raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


def results_of(result: Any, count: int, name: str) -> list[Any]:
    """Return the results of a batch as a list. Raises BatchError unless there is one for each item."""
    if isinstance(result, str | bytes | bytearray | dict) or not hasattr(result, "__iter__"):
        raise BatchError(
            f"{name} returned {type(result).__name__} for a batch of {count}; "
            "it must return a list with one result per item"
        )
    results = list(result)
    if len(results) != count:
        raise BatchError(f"{name} returned {len(results)} results for a batch of {count}")
    return results
