"""Call plain and async functions from the event loop, and batches from the threads of plain handlers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from nvcf_worker.errors import RequestCancelled
from nvcf_worker.function.handlers import runs_on_loop
from nvcf_worker.function.request import for_loop
from nvcf_worker.run.threads import HandlerThread, ThreadPool, handler_thread, wait_uninterrupted

CANCEL_CHECK_SECONDS = 0.2
_END = object()


class FunctionCaller:
    """Calls the functions of one batch: async ones on the event loop, plain ones on a thread.

    As long as calls follow each other, plain functions always run on the same thread, because models may have
    thread-local state.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = ThreadPool(loop)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a plain or async function."""
        if runs_on_loop(function):
            result = function(*arguments)
        else:
            result = await self._on_thread(lambda: function(*arguments))
            if inspect.isawaitable(result) or isinstance(result, AsyncIterator):
                # A plain function around an async one, whose items are requests of coroutines.
                for item in itertools.chain.from_iterable(one for one in arguments if isinstance(one, list)):
                    for_loop(item)
        return await result if inspect.isawaitable(result) else result

    async def steps(self, steps: Iterator[Any] | AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Iterate over a plain or async generator, and close it where it ran."""
        try:
            if isinstance(steps, AsyncIterator):
                async for step in steps:
                    yield step
            else:
                while (step := await self._on_thread(lambda: next(steps, _END))) is not _END:
                    yield step
        finally:
            close = getattr(steps, "aclose" if isinstance(steps, AsyncIterator) else "close", None)
            if close is not None:
                await (close() if isinstance(steps, AsyncIterator) else self._on_thread(close))

    async def _on_thread(self, call: Callable[[], Any]) -> Any:
        future = self._pool.run(call)
        try:
            # A thread cannot be interrupted, so a cancelled caller waits for it before it leaves.
            await wait_uninterrupted(future)
        except asyncio.CancelledError:
            if not future.cancelled():
                future.exception()
            raise
        return future.result()


def wait_for(call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `call()` on the event loop and block the handler's thread until it has its result.

    A result that is a stream becomes a plain iterator. Raises what the call raises, RequestCancelled if the
    request is cancelled meanwhile, RuntimeError if this is not the thread of a handler.
    """
    thread = handler_thread.get(None)
    if thread is None or _in_event_loop():
        raise RuntimeError(
            "blocking() is for plain handlers, on the thread on which they were called; "
            "in a coroutine, await the call"
        )
    result = _run(thread, call())
    return _iterate(thread, result) if isinstance(result, AsyncIterator) else result


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(thread: HandlerThread, step: Coroutine[Any, Any, Any]) -> Any:
    future = asyncio.run_coroutine_threadsafe(step, thread.loop)
    while not concurrent.futures.wait([future], CANCEL_CHECK_SECONDS).done:
        if thread.cancelled:
            future.cancel()
            raise RequestCancelled("the request was cancelled while it waited for a batch")
    return future.result()


def _iterate(thread: HandlerThread, stream: AsyncIterator[Any]) -> Iterator[Any]:
    async def step() -> Any:
        return await anext(stream, _END)

    try:
        while (item := _run(thread, step())) is not _END:
            yield item
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            closed = asyncio.run_coroutine_threadsafe(close(), thread.loop)
            # Garbage is collected on any thread: the event loop's thread would wait for itself.
            if not _in_event_loop():
                closed.result()
