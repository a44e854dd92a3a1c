"""The HTTP listener's connections: how long they may be silent, and what happens when there are too many."""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import Any

from aiohttp import HttpVersion, HttpVersion11, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.connections import FIRST_CHECK_SECONDS, Watch, may_probe
from nvcf_gateway.http.descriptors import crowded_out
from nvcf_gateway.http.responses import SERVER, problem_response

_log = logging.getLogger(__name__)

HEAD_SECONDS = 15.0
"""Longest time from the connection to the end of its first request head."""
SWEEP_SECONDS = 2.0
EVICTED = 0.05


class Connection(RequestHandler):
    """A connection whose requests that cannot be parsed get a problem document."""

    __slots__ = ("latest",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.latest: weakref.ref[web.BaseRequest] | None = None

    def eof_received(self) -> bool | None:  # type: ignore[override] # the library's never keeps a connection
        """Keep the connection of a caller that only shut down its sending side, until it has its response."""
        transport, version = self.transport, self._unanswered()
        if transport is None or version is None or not may_probe(transport, version):
            return None
        # No further request can come.
        self.close()
        Watch(transport, lambda: self._unanswered() is not None).start(FIRST_CHECK_SECONDS)
        return True

    def _unanswered(self) -> HttpVersion | None:
        """Return the version of the only request, if it is complete and its response has not begun."""
        if self._upgraded or self._payload_parser is not None:
            return None
        if self._messages:
            message, content = self._messages[0]
            # What could not be parsed has no version.
            version = getattr(message, "version", None)
            return version if len(self._messages) == 1 and content.is_eof() else None
        request = None if self.latest is None else self.latest()
        if request is None or request.writer.output_size > 0 or not request.content.is_eof():
            return None
        return request.version

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a request that is not HTTP/1.1, or that could not be served."""
        self.log_exception("Error handling request", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of another response is sent already")
        if isinstance(exc, LineTooLong):
            problem = HttpProblem(431, "the request line or a header is too long")
        elif status < 500:
            lines = (message or "").splitlines()
            problem = HttpProblem(status, f"not HTTP/1.1: {lines[0].rstrip(':') if lines else 'malformed'}")
        else:
            problem = HttpProblem(status)
        # What could not be parsed has no version, for which the library takes 1.0.
        request._version = HttpVersion11
        response = problem_response(problem)
        response.headers["Server"] = SERVER
        response.force_close()
        return response


class BoundedServer(web.Server):
    """Closes connections that never send a request, and idle ones when there are too many."""

    def __init__(self, *arguments: Any, most: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = most
        self._connected: dict[RequestHandler, float] = {}

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection; beyond the limit idle ones make room, or else it is closed itself."""
        super().connection_made(handler, transport)
        self._connected[handler] = asyncio.get_running_loop().time()
        if len(self._connected) > self._most and not self._make_room():
            transport.abort()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._connected.pop(handler, None)

    async def sweep(self) -> None:
        """Close connections without a first request head in time, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            before = asyncio.get_running_loop().time() - HEAD_SECONDS
            for handler, since in tuple(self._connected.items()):
                if since > before:
                    # They are in the order in which they came.
                    break
                if not handler._request_count:
                    handler.force_close()

    def _make_room(self) -> bool:
        """Close some idle connections; return False if there is none."""
        idle: list[tuple[float, str]] = []
        handlers = []
        for handler, since in tuple(self._connected.items())[:-1]:
            if handler.transport is None or handler._current_request is not None or handler._messages:
                continue
            # A connection that has served requests is idle since the last one.
            peer = handler.transport.get_extra_info("peername")
            served = handler._next_keepalive_close_time - handler._keepalive_timeout
            idle.append((max(since, served), str(peer[0]) if peer else ""))
            handlers.append(handler)
        chosen = crowded_out(idle, max(1, int(self._most * EVICTED)))
        for place in chosen:
            handlers[place].force_close()
        if chosen:
            _log.warning("too many connections: %d idle ones were closed", len(chosen))
        return bool(chosen)
