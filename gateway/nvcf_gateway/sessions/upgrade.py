"""WebSocket upgrades on the HTTP port: the same tunnels, with aiohttp on the caller's side."""

from __future__ import annotations

import asyncio
import contextlib

import h11
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from nvcf_broker.wire import READ_BUFFER
from nvcf_gateway.background import end_both
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import SERVER
from nvcf_gateway.http.routing import pass_through_target
from nvcf_gateway.sessions.h1 import (
    H1Peer,
    decode_headers,
    function_request,
    request_headers,
    response_headers,
    wants_upgrade,
)
from nvcf_gateway.sessions.opening import Opened, SessionOpener, worker_left
from nvcf_gateway.sessions.routing import Header, SessionCall, read_call
from nvcf_proto.h1 import encode_response_head
from nvcf_proto.headers import field_text


class _Switched(web.StreamResponse):
    """Response after which nothing more is sent: the connection is no longer HTTP."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return


class _RawInput:
    """Replaces aiohttp's WebSocket reader: takes the connection's bytes as they come."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._ended = False
        self._paused = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes from aiohttp."""
        self._buffer += data
        self._arrived.set()
        if len(self._buffer) >= READ_BUFFER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        return False, b""

    def feed_eof(self) -> None:
        """Take the end of the input from aiohttp."""
        self._ended = True
        self._arrived.set()

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        while not self._buffer:
            if self._ended:
                return b""
            self._arrived.clear()
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            await self._arrived.wait()
        data, self._buffer = bytes(self._buffer), bytearray()
        return data


class HttpUpgrade:
    """Serves upgrade requests that arrive on the HTTP port."""

    def __init__(self, opener: SessionOpener) -> None:
        self._opener = opener

    def takes(self, request: web.BaseRequest) -> bool:
        """Whether a request is a WebSocket upgrade for a function."""
        headers = request.headers
        if headers.get("Upgrade", "").lower() != "websocket" or "Sec-WebSocket-Key" not in headers:
            return False
        with contextlib.suppress(HttpProblem):
            read_call(_headers(request), headers.get("Host", ""))
            return True
        # An invalid call: take it, and so refuse it, if the ordinary routes would see a function in it.
        return pass_through_target(headers, headers.get("Host", "")) is not None

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request through a tunnel. Raises HttpProblem."""
        headers = _headers(request)
        call = read_call(headers, request.headers.get("Host", ""))
        # A request that cannot be passed on must not occupy a worker.
        _request(request, call, [], headers)
        opened = await self._opener.open(self._opener.admit(call), request.headers)
        orderly = False
        try:
            worker = H1Peer(opened.wire, h11.CLIENT)
            await worker.send(_request(request, call, opened.additions, headers))
            await worker.send(h11.EndOfMessage())
            event = await worker.next()
            if isinstance(event, h11.InformationalResponse):
                orderly = await self._switch(request, opened, worker, call, event)
                return _Switched()
            if not isinstance(event, h11.Response):
                raise worker_left()
            response = await self._relay_refusal(request, opened, worker, event)
            self._opener.ended(opened)
            orderly = True
            return response
        except (h11.RemoteProtocolError, ConnectionError):
            if request.transport is None or request.writer.output_size:
                raise ConnectionResetError("the session ended") from None
            raise worker_left() from None
        finally:
            if orderly:
                opened.wire.close()
            else:
                opened.wire.abort()

    async def _switch(
        self,
        request: web.BaseRequest,
        opened: Opened,
        worker: H1Peer,
        call: SessionCall,
        event: h11.InformationalResponse,
    ) -> bool:
        """Pass raw bytes until both sides end; return whether the function ended first, as it should."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the caller left")
        headers = response_headers(
            decode_headers(event), opened.response_additions, switched=True, accepted=call.accepted
        )
        reason = event.reason.decode("latin-1")
        await request.writer.write(encode_response_head(event.status_code, headers, reason))
        worker.release()
        source = _RawInput(transport)
        # aiohttp's own WebSocketResponse gets a connection's bytes this way too.
        request.protocol.set_parser(source)  # type: ignore[arg-type]
        upward = asyncio.create_task(_upward(source, opened))
        downward = asyncio.create_task(_downward(request, opened))
        try:
            await asyncio.wait({upward, downward}, return_when=asyncio.FIRST_COMPLETED)
            ended_by_function = downward.done() and downward.exception() is None and not upward.done()
        finally:
            await end_both(upward, downward)
        return ended_by_function

    @staticmethod
    async def _relay_refusal(
        request: web.BaseRequest, opened: Opened, worker: H1Peer, event: h11.Response
    ) -> web.StreamResponse:
        headers = response_headers(decode_headers(event), opened.response_additions, switched=False)
        response = web.StreamResponse(status=event.status_code, reason=event.reason.decode("latin-1"))
        response.headers["Server"] = SERVER
        for name, value in headers:
            if name.lower() == "server":
                response.headers["Server"] = field_text(value)
            elif name.lower() != "transfer-encoding":
                response.headers.add(name, field_text(value))
        await response.prepare(request)
        while isinstance(part := await worker.next(), h11.Data):
            await response.write(bytes(part.data))
        await response.write_eof()
        return response


def _request(
    request: web.BaseRequest, call: SessionCall, additions: list[Header], headers: list[Header]
) -> h11.Request:
    target = request.raw_path.encode("utf-8", "surrogateescape")
    return function_request(request.method, target, request_headers(call, additions, wants_upgrade(headers)))


async def _upward(source: _RawInput, opened: Opened) -> None:
    while data := await source.read():
        opened.wire.write(data)
        await opened.wire.drain()


async def _downward(request: web.BaseRequest, opened: Opened) -> None:
    while data := await opened.wire.read():
        await request.writer.write(data)
        await request.writer.drain()


def _headers(request: web.BaseRequest) -> list[Header]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers]
