"""From a request to the item that goes into a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nvcf_worker.function.request import Request, SyncRequest
from nvcf_worker.run.batching.calling import runs_on_loop
from nvcf_worker.run.threads import ThreadPool


class Preparer:
    """Makes items of requests; what is no request passes as it is.

    prepare: the function's own step, run for each request by itself: a coroutine function gets the
        `Request`, a plain one a `SyncRequest` on a thread. Without one the request is the item.
    sync_items: whether the batch function is a plain one, whose items are `SyncRequest`s.
    The body is always read first, so that no item makes its batch wait for an upload.
    """

    def __init__(self, prepare: Callable[[Any], Any] | None, *, sync_items: bool) -> None:
        self._prepare = prepare
        self._sync_items = sync_items
        self._pool: ThreadPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def item(self, given: Any) -> Any:
        """The item for one call. Raises what `prepare` raises, e.g. BadInput."""
        if not isinstance(given, Request):
            return given
        await given.read()
        prepare = self._prepare
        if prepare is None:
            return as_sync(given) if self._sync_items else given
        if runs_on_loop(prepare):
            return await prepare(given)
        request = as_sync(given)
        return await self._threads().start(lambda announce: prepare(request))

    def _threads(self) -> ThreadPool:
        loop = asyncio.get_running_loop()
        if self._pool is None or self._loop is not loop:
            self._pool, self._loop = ThreadPool(loop), loop
        return self._pool


def as_sync(request: Request) -> SyncRequest:
    """The same request with blocking reads."""
    twin = SyncRequest.__new__(SyncRequest)
    for kind in type(request).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(request, name):
                setattr(twin, name, getattr(request, name))
    return twin.attach_loop(asyncio.get_running_loop())
