"""Runs handlers of every kind; their results become a `Reply` or a `StreamReply`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from nvcf_worker.function.adaptive import Adaptive, AdaptiveLimit
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.function.limit import Limit
from nvcf_worker.function.request import Request, SyncRequest, for_loop, for_thread
from nvcf_worker.function.response import (
    OCTETS,
    HeaderPairs,
    Outcome,
    Reply,
    Response,
    Source,
    StreamReply,
    encode_item,
    is_stream,
    item_media_type,
    reply_of,
    response_headers,
)
from nvcf_worker.process import forks
from nvcf_worker.process.loops import contained, from_outside
from nvcf_worker.run.threads import Announce, HandlerThread, ThreadPool, ThreadStream, handler_thread

log = logging.getLogger("nvcf_worker")

_END = object()
# What needs no look for the methods of an iterator.
_COMPLETE = frozenset((bytes, str, dict, list, type(None)))


class Executor:
    """Runs one worker's handler."""

    def __init__(self, handler: Handler, pool: ThreadPool, loop: asyncio.AbstractEventLoop) -> None:
        forks.begin()
        self._handler = handler
        self._pool = pool
        self._loop = loop

    def select(self, method: str, target: str) -> tuple[Handler, dict[str, str]]:
        """Return the handler for a request line, and path parameters. Raises NotFound, MethodNotAllowed."""
        return self._handler.select(method, target.partition("?")[0] or "/")

    async def run(
        self, request: Request | SyncRequest, scope: CancelScope, handler: Handler | None = None
    ) -> Outcome:
        """Call the handler. Raises whatever the handler raises before its first item.

        What is no `Exception` (SystemExit, KeyboardInterrupt, a cancellation of its own) is HandlerFailed.
        """
        handler = handler or self._handler
        try:
            if handler.limit is not None:
                return await within(handler.limit, functools.partial(self._run, request, scope, handler))
            return await self._run(request, scope, handler)
        except Exception:
            raise
        except BaseException as error:
            if scope.end is not None or from_outside(error):
                raise
            raise contained(error) from error

    async def _run(self, request: Request | SyncRequest, scope: CancelScope, handler: Handler) -> Outcome:
        try:
            if isinstance(request, SyncRequest):
                request._loop = self._loop
                result = await self._on_thread(lambda: handler.call(request), scope, handler)
                if isinstance(result, Reply | StreamReply):
                    return result
                # A plain function that returned a coroutine or an async iterator, e.g. a lambda around one.
                for_loop(request)
            else:
                result = handler.call(request)
            while inspect.isawaitable(result):
                result = await result
        finally:
            if forks.copied:
                forks.end_copy()
        return await self._finish(result, request, scope, handler)

    async def _finish(
        self, result: Any, request: Request | SyncRequest, scope: CancelScope, handler: Handler
    ) -> Outcome:
        if isinstance(result, Reply | StreamReply):  # from a server or an ASGI application: sent as it is
            return result
        response, body = _parts(result)
        if type(body) in _COMPLETE:
            return reply_of(result, handler.media_type)
        if isinstance(body, AsyncIterator):
            return await _open_async(body, response, handler.media_type)
        if is_stream(body):
            for_thread(request, self._loop)
            outcome: Outcome = await self._on_thread(lambda: result, scope, handler)
            return outcome
        return reply_of(result, handler.media_type)

    async def _on_thread(self, call: Callable[[], Any], scope: CancelScope, handler: Handler) -> Any:
        """Return the outcome of a call, or the call's result if it can only be finished on the loop."""
        media_type, loop = handler.media_type, self._loop

        def job(announce: Announce) -> Any:
            scope.thread = threading.get_ident()
            # In the job's own copy of the context.
            handler_thread.set(HandlerThread(loop, scope.cancelled))
            try:
                result = call()
            finally:
                if forks.copied:
                    forks.end_copy()
            response, body = _parts(result)
            if inspect.isawaitable(body) or isinstance(body, AsyncIterator):
                return result
            if isinstance(body, Iterator):
                return _run_iterator(body, response, media_type, loop, announce, scope)
            return reply_of(result, media_type)

        # A thread cannot be interrupted: a cancelled request keeps its slot until the thread is done.
        scope.interruptible = False
        try:
            outcome = await self._pool.start(job)
        finally:
            scope.interruptible = True
        if scope.end is not None:
            if isinstance(outcome, StreamReply):
                await outcome.source.aclose()
            raise asyncio.CancelledError
        return outcome


class MeasuredExecutor(Executor):
    """Calls `resize` with the new limit when the latency of requests has changed it.

    Latency is the time to the response, of a stream to its first item: the rest depends on its reader.
    """

    def __init__(
        self,
        handler: Handler,
        pool: ThreadPool,
        loop: asyncio.AbstractEventLoop,
        settings: Adaptive,
        resize: Callable[[int], None],
    ) -> None:
        super().__init__(handler, pool, loop)
        self._limit = AdaptiveLimit(settings, time.monotonic())
        self._resize = resize
        self._in_flight = 0
        resize(self._limit.limit)

    async def run(
        self, request: Request | SyncRequest, scope: CancelScope, handler: Handler | None = None
    ) -> Outcome:
        """Run a request; add its latency if it succeeds."""
        began = time.monotonic()
        self._in_flight += 1
        try:
            outcome = await super().run(request, scope, handler)
            if self._limit.finished(began=began, now=time.monotonic(), in_flight=self._in_flight):
                self._resize(self._limit.limit)
        finally:
            self._in_flight -= 1
        return outcome


def request_type(handler: Handler) -> type[Request] | type[SyncRequest]:
    """Return the kind of request that a handler takes."""
    return Request if handler.kind is Kind.ASYNC else SyncRequest


def _parts(result: Any) -> tuple[Response | None, Any]:
    return (result, result.body) if isinstance(result, Response) else (None, result)


def _stream_head(
    response: Response | None, first: Any, media_type: str | None
) -> tuple[int, HeaderPairs, bytes]:
    if isinstance(first, Response):
        response, first = first, first.body
        if is_stream(first):
            raise TypeError("a Response that a generator yields must not be a stream itself")
    chunk = b"" if first is None or first is _END else encode_item(first)
    default = media_type or (item_media_type(first) if chunk else OCTETS)
    if response is None:
        return 200, [("content-type", default)], chunk
    return response.status, response_headers(response, default), chunk


def _run_iterator(
    iterator: Iterator[Any],
    response: Response | None,
    media_type: str | None,
    loop: asyncio.AbstractEventLoop,
    announce: Announce,
    scope: CancelScope,
) -> Reply | None:
    """Iterate to the end on the thread that made the iterator; close it there."""
    stream: ThreadStream | None = None
    error: BaseException | None = None
    try:
        first = next(iterator, _END)
        status, headers, chunk = _stream_head(response, first, media_type)
        if first is _END:
            return Reply(status, headers, b"")
        stream = ThreadStream(loop)
        announce(StreamReply(status, headers, chunk, stream))
        while not scope.cancelled and not stream.closed:
            item = next(iterator, _END)
            if item is _END or not stream.put(encode_item(item)):
                break
    except BaseException as raised:
        if stream is None:
            raise
        error = raised
    finally:
        _close_iterator(iterator)
        if stream is not None:
            stream.finish(error)
    return None


def _close_iterator(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is None:
        return
    try:
        close()
    except BaseException:
        log.exception("the handler's generator failed while it was closed")


async def _open_async(
    iterator: AsyncIterator[Any], response: Response | None, media_type: str | None
) -> Outcome:
    source = AsyncSource(iterator)
    try:
        first = await anext(iterator, _END)
        status, headers, chunk = _stream_head(response, first, media_type)
    except BaseException:
        await source.aclose()
        raise
    if first is _END:
        return Reply(status, headers, b"")
    return StreamReply(status, headers, chunk, source)


class AsyncSource:
    """An async generator of items as a source of chunks. The request's own task iterates and closes it."""

    __slots__ = ("_iterator", "_next")

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator
        self._next = iterator.__anext__

    async def __anext__(self) -> bytes:
        try:
            return encode_item(await self._next())
        except Exception:
            raise
        except BaseException as error:
            if from_outside(error):
                raise
            raise contained(error) from error

    async def aclose(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is None:
            return
        try:
            await close()
        except BaseException as error:
            if from_outside(error):
                raise
            log.exception("the handler's generator failed while it was closed")


async def within(limit: Limit, run: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Hold a permit of `limit` while `run` makes its response; for a stream, until the stream is closed."""
    began = await limit.acquire()
    try:
        outcome = await run()
    except BaseException:
        limit.release()
        raise
    if isinstance(outcome, StreamReply):
        # The latency of a stream is that of its first item: the rest depends on its reader.
        limit.sample(began)
        outcome.source = _LimitedSource(outcome.source, limit)
    else:
        limit.release(began)
    return outcome


class _LimitedSource:
    """A stream that holds a permit until it is closed."""

    def __init__(self, source: Source, limit: Limit) -> None:
        self._source = source
        self._limit: Limit | None = limit

    async def __anext__(self) -> bytes:
        return await self._source.__anext__()

    async def aclose(self) -> None:
        try:
            await self._source.aclose()
        finally:
            limit, self._limit = self._limit, None
            if limit is not None:
                limit.release()
