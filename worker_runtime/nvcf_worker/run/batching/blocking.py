"""Batches for plain handlers: the call is made on the event loop, the handler's thread waits for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from nvcf_worker.errors import RequestCancelled
from nvcf_worker.run.threads import HandlerThread, handler_thread

LOOK_SECONDS = 0.2
_END = object()


def wait_for(call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """The result of `call()`; a stream becomes a plain iterator.

    Raises what the call raises, RequestCancelled when the request's caller leaves meanwhile, RuntimeError
    anywhere but on the thread of a handler.
    """
    thread = handler_thread.get(None)
    if thread is None or _in_a_loop():
        raise RuntimeError(
            "blocking() is for plain handlers, on the thread they were called on; "
            "in a coroutine, await the call"
        )
    result = _run(thread, call())
    return _iterate(thread, result) if isinstance(result, AsyncIterator) else result


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(thread: HandlerThread, step: Coroutine[Any, Any, Any]) -> Any:
    future = asyncio.run_coroutine_threadsafe(step, thread.loop)
    while not concurrent.futures.wait([future], LOOK_SECONDS).done:
        if thread.cancelled:
            future.cancel()
            raise RequestCancelled("the request was cancelled while a batch was waited for")
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
            # Garbage is collected on any thread: the loop's own would wait for itself.
            if not _in_a_loop():
                closed.result()
