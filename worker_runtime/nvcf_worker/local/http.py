"""Serve a local function on an HTTP port: it gets every path and method, as in a pass-through call."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

from aiohttp import ClientConnectionResetError, web

from nvcf_proto.headers import NVCF_FEATURE_DISABLE_COMPATIBILITY, field_text, strip_hop_by_hop
from nvcf_proto.problem import Problem
from nvcf_proto.settings import MAX_INLINE_BODY
from nvcf_worker.function.response import HeaderPairs, problem_reply
from nvcf_worker.local.function import LocalFunction
from nvcf_worker.local.request import LocalRequest

log = logging.getLogger("nvcf_worker")

SHUTDOWN_SECONDS = 1.0


class HttpSink:
    """Writes one response to one connection. `write` waits for a slow reader."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None

    async def start(self, status: int, headers: HeaderPairs, length: int | None) -> None:
        response = self.response = web.StreamResponse(status=status)
        for name, value in headers:
            response.headers.add(name, field_text(value))
        if length is not None and status not in (204, 304) and "Content-Length" not in response.headers:
            response.content_length = length
        await response.prepare(self._request)

    async def write(self, data: bytes) -> None:
        if self.response is not None and self._request.method != "HEAD":
            await self.response.write(data)

    async def finish(self) -> None:
        if self.response is not None:
            await self.response.write_eof()


class LocalServer:
    """Serves a function on a listening socket."""

    def __init__(self, function: LocalFunction, listener: socket.socket) -> None:
        self._function = function
        self._listener = listener
        self._runner = web.ServerRunner(
            # Requests and responses are logged in `_handle`.
            web.Server(self._handle, handler_cancellation=True, access_log=None),
            handle_signals=False,
        )

    async def start(self) -> None:
        """Set the function up, then accept connections. Raises WorkerError if the set-up fails."""
        await self._function.start()
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def stop(self) -> None:
        """Close connections and tear the function down."""
        await self._function.stop()
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        sink = HttpSink(request)
        local = LocalRequest(sink, request.method, request.raw_path, _headers(request), await _body(request))
        self._function.begin(local)
        try:
            await local.wait()
        except asyncio.CancelledError:
            local.cancel()
            raise
        except (ClientConnectionResetError, ConnectionError):
            local.cancel()
        status = "no response" if sink.response is None else sink.response.status
        log.info("%s %s: %s", request.method, request.raw_path, status)
        if local.finished and sink.response is not None:
            return sink.response
        if sink.response is not None and request.transport is not None:
            # As on the platform, a stream that fails in the middle must not look complete.
            request.transport.abort()
            return sink.response
        problem = Problem("Internal Server Error", 500, "The request ended without a response.")
        reply = problem_reply(problem)
        return web.Response(status=500, body=reply.body, headers=dict(reply.headers))


def _headers(request: web.BaseRequest) -> HeaderPairs:
    pairs = [
        (name.decode("latin-1"), field_text(value.decode("latin-1"))) for name, value in request.raw_headers
    ]
    return [*strip_hop_by_hop(pairs), (NVCF_FEATURE_DISABLE_COMPATIBILITY, "true")]


async def _body(request: web.BaseRequest) -> bytes | AsyncIterator[bytes]:
    if not request.can_read_body:
        return b""
    if request.content_length is not None and request.content_length <= MAX_INLINE_BODY:
        return await request.read()
    return _chunks(request)


async def _chunks(request: web.BaseRequest) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_any():
        yield chunk
