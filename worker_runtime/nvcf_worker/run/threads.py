"""Threads for blocking handlers, and bounded streams from them to the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

from nvcf_worker.function.cancellation import Cancellation
from nvcf_worker.process.loops import contained


class HandlerThread(NamedTuple):
    """The loop that delivers the response of a handler's thread, and the cancellation of its request."""

    loop: asyncio.AbstractEventLoop
    cancelled: Cancellation


handler_thread: contextvars.ContextVar[HandlerThread] = contextvars.ContextVar("nvcf_handler_thread")
"""Set where a plain handler runs."""

_Job = Callable[[], None]
Announce = Callable[[Any], None]


class ThreadPool:
    """Grows to as many threads as there are jobs; used from the event loop.

    The threads are daemons: a handler that never returns must not keep the process from ending.
    Leaner than ThreadPoolExecutor with run_in_executor: one wake-up of the loop a job.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0
        self._waiting: set[asyncio.Future[Any]] = set()

    def start(self, call: Callable[[Announce], Any]) -> asyncio.Future[Any]:
        """Run `call` on a thread in a copy of the current context; return a future of its result.

        `call` receives a function with which it can settle the future early and go on working.
        """
        future = self._loop.create_future()
        context = contextvars.copy_context()

        def announce(value: Any) -> None:
            self._loop.call_soon_threadsafe(_set_result, future, value)

        def job() -> None:
            result, error = None, None
            try:
                result = context.run(call, announce)
            except BaseException as raised:  # noqa: BLE001 - handed to whoever awaits the job
                error = raised
            try:
                self._loop.call_soon_threadsafe(self._finish, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

        self._busy += 1
        self._waiting.add(future)
        self._queue.put(job)
        if self._busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"nvcf-handler-{self._threads}", daemon=True).start()
        return future

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `call` on a thread; return a future of its result."""
        return self.start(lambda announce: call())

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
            # A long wait for the next job must not keep the last one's arguments and result alive.
            del job

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        self._waiting.discard(future)
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(contained(error))

    def close(self) -> None:
        """End idle threads, and cancel the futures of running jobs, whose threads go on."""
        for _ in range(self._threads):
            self._queue.put(None)
        for future in tuple(self._waiting):
            future.cancel()
        self._waiting.clear()


class ThreadStream:
    """Byte chunks from a producer thread to the loop, at most `LIMIT` bytes and one chunk ahead.

    Chunks that wait are joined, so a fast producer costs one wake-up of the loop for many items; a single
    item is passed on at once. `closed` is whether the consumer has left.
    """

    LIMIT = 64 * 1024

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self.closed = False
        self._finished = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, chunk: bytes) -> bool:
        """Add a chunk, from the producer; wait while the consumer is behind. False means: stop producing."""
        with self._changed:
            while self._size >= self.LIMIT and not self.closed:
                self._changed.wait()
            if self.closed:
                return False
            self._chunks.append(chunk)
            self._size += len(chunk)
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._wake(waiter)
        return True

    def finish(self, error: BaseException | None = None) -> None:
        """End the stream, from the producer."""
        with self._changed:
            self._finished = True
            # What the consumer raises must not look like a cancellation, or like the end of the stream.
            self._error = None if error is None else contained(error)
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._wake(waiter)

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        try:
            self._loop.call_soon_threadsafe(_set_result, waiter, None)
        except RuntimeError:  # the loop is closed
            self.closed = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            with self._changed:
                if self._chunks:
                    return self._take()
                if self._finished:
                    if self._error is not None:
                        raise self._error
                    raise StopAsyncIteration
                waiter = self._waiter = self._loop.create_future()
            await waiter

    def _take(self) -> bytes:
        chunks = self._chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        if self._size >= self.LIMIT:
            self._changed.notify()
        self._size = 0
        return chunk

    async def aclose(self) -> None:
        """Stop the producer at its next item, from the consumer, and wait until it has ended.

        The wait goes on after a cancellation, which is raised afterwards.
        """
        with self._changed:
            self.closed = True
            self._chunks.clear()
            self._size = 0
            self._changed.notify()
            if self._finished:
                return
            # Only `finish` ends this wait: a closed stream takes no more chunks.
            waiter = self._waiter = self._loop.create_future()
        await wait_uninterrupted(waiter)


async def wait_uninterrupted(future: asyncio.Future[Any], until: float = math.inf) -> None:
    """Wait until a future is done, or until a time of the loop. A cancellation is raised only after that."""
    cancelled, loop = False, asyncio.get_running_loop()
    while not future.done() and (left := until - loop.time()) > 0:
        try:
            await asyncio.wait([future], timeout=None if left == math.inf else left)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
