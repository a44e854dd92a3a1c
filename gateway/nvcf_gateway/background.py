"""Tasks that outlive the request that began them, such as withdrawing it from the queue."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from nvcf_broker.connection import BrokerClient, connect_broker

_log = logging.getLogger(__name__)

T = TypeVar("T")


async def end_both(one: asyncio.Task[None], other: asyncio.Task[None]) -> None:
    """Cancel two tasks and wait for them; drop what they raise."""
    tasks = {one, other}
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


class BackgroundTasks:
    """Runs tasks until they end; on exit it waits `patience` seconds for them, then cancels them."""

    def __init__(self, patience: float = 5.0) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._patience = patience

    def spawn(self, work: Coroutine[Any, Any, T], name: str, *, logged: bool = True) -> asyncio.Task[T]:
        """Run `work`. An exception of it is logged, unless the one who awaits the task gets it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended if logged else self._tasks.discard)
        return task

    def spawn_later(self, delay: float, work: Callable[[], Coroutine[None, None, None]], name: str) -> None:
        """Run `work()` in `delay` seconds, unless the context has ended by then."""

        def due() -> None:
            self._timers.discard(timer)
            self.spawn(work(), name)

        timer = asyncio.get_running_loop().call_later(delay, due)
        self._timers.add(timer)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed", task.get_name(), exc_info=error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._patience)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._patience)


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})


async def connect(
    stack: AsyncExitStack, urls: str, credentials: Path | None, name: str, *, patience: float = 10.0
) -> BrokerClient:
    """Return a connection to the broker that ends with `stack`. Raises BrokerError."""
    client = await connect_broker(urls, credentials, name=name, timeout=patience)
    stack.push_async_callback(_close, client)
    return client


async def _close(client: BrokerClient) -> None:
    with contextlib.suppress(Exception):  # closing a connection that is already gone
        async with asyncio.timeout(3):
            await client.drain()
