"""The life of a function in a child process: companion and handler objects."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from nvcf_worker.function.handlers import Handler
from nvcf_worker.function.loading import begin_all, end_all, until_unhealthy
from nvcf_worker.process.companions import Companion, cancelled
from nvcf_worker.run.threads import ThreadPool
from nvcf_worker.telemetry.measurements import measure_load


class _OpenDoor:
    """A child has no door of its own: the worker decides what comes in."""

    def pause(self) -> None:
        return None

    def resume(self) -> None:
        return None


@contextlib.asynccontextmanager
async def living(
    handler: Handler, companion: Companion | None, unhealthy: Callable[[str], None]
) -> AsyncIterator[None]:
    """Set everything up, and tear it down afterwards. Raises WorkerError when it cannot be set up.

    `unhealthy` is called with a reason when a handler object becomes unhealthy.
    """
    pool = ThreadPool(asyncio.get_running_loop())

    def blocking(call: Callable[[], Any]) -> Awaitable[Any]:
        return pool.start(lambda announce: call())

    async with contextlib.AsyncExitStack() as stack:
        if companion is not None:
            stack.push_async_callback(companion.stop)
            await companion.start()
            watching = asyncio.create_task(companion.watch(_OpenDoor()))
            stack.push_async_callback(cancelled, watching)
        stack.push_async_callback(end_all, handler.loading, blocking)
        await measure_load(os.environ, begin_all(handler.loading, blocking))

        async def watch_health() -> None:
            unhealthy(await until_unhealthy(handler.loading, blocking))

        stack.push_async_callback(cancelled, asyncio.create_task(watch_health()))
        yield
