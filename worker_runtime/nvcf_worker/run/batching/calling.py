"""Calling a function of either kind from the event loop: coroutines here, anything else on one thread."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

from nvcf_worker.run.threads import ThreadPool

_END = object()


def runs_on_loop(function: Callable[..., Any]) -> bool:
    """Whether calling this makes a coroutine or an async generator."""
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isfunction(function) or inspect.ismethod(function) or inspect.isbuiltin(function)):
        function = type(function).__call__
    marked = bool(getattr(function, "runs_on_loop", False))
    return marked or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


class Caller:
    """Makes calls for one batch function.

    As long as calls follow each other, those of plain functions all happen on the same thread, as models
    with thread-local state need it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = ThreadPool(loop)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that may or may not be a coroutine function."""
        if runs_on_loop(function):
            result = function(*arguments)
        else:
            result = await self._on_thread(lambda: function(*arguments))
        return await result if inspect.isawaitable(result) else result

    async def steps(self, steps: Iterator[Any] | AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Iterate a generator of either kind, and close it where it ran."""
        try:
            if isinstance(steps, AsyncIterator):
                async for step in steps:
                    yield step
            else:
                while (step := await self._on_thread(lambda: next(steps, _END))) is not _END:
                    yield step
        finally:
            await self._close(steps)

    async def _close(self, steps: Iterator[Any] | AsyncIterator[Any]) -> None:
        if isinstance(steps, AsyncIterator):
            aclose = getattr(steps, "aclose", None)
            if aclose is not None:
                await aclose()
            return
        close = getattr(steps, "close", None)
        if close is not None:
            await self._on_thread(close)

    async def _on_thread(self, call: Callable[[], Any]) -> Any:
        """A thread cannot be interrupted, so a cancelled caller waits for it before it leaves."""
        future = self._pool.start(lambda announce: call())
        cancelled = False
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            if not future.cancelled():
                future.exception()
            raise asyncio.CancelledError
        return future.result()

    def close(self) -> None:
        """Let the threads end."""
        self._pool.close()
