"""Listeners: the connections of one port, and the callers' port with HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import SetupError
from nvcf_gateway.sessions.h1_caller import H1Caller
from nvcf_gateway.sessions.h2_caller import H2Caller
from nvcf_gateway.sessions.opening import SessionOpener

_log = logging.getLogger(__name__)

BACKLOG = 1024
TLS_HANDSHAKE_SECONDS = 10.0
FIRST_BYTES_SECONDS = 10.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Listener:
    """Accepts connections and runs `serve(wire)` for each in a task of its own."""

    def __init__(self, serve: Callable[[Wire], Awaitable[None]]) -> None:
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(
        self, address: tuple[str, int], *, what: str, flag: str, tls: ssl.SSLContext | None = None
    ) -> str:
        """Listen, and return `host:port` as bound. Raises SetupError."""
        host, port = address
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Wire(self._connected),
                host,
                port,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS if tls is not None else None,
            )
        except OSError as error:
            raise SetupError(
                f"cannot listen on {host}:{port} ({what}): {error.strerror}. Choose {flag}"
            ) from error
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    def _connected(self, wire: Wire) -> None:
        task = asyncio.create_task(self._run(wire))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, wire: Wire) -> None:
        try:
            await self._serve(wire)
        except Exception:  # noqa: BLE001 # one connection's failure must not affect the others
            _log.exception("the handler of a connection failed")
            wire.abort()

    def stop_accepting(self) -> None:
        """Accept no further connections."""
        if self._server is not None:
            self._server.close()

    async def stop(self, grace_seconds: float) -> None:
        """Wait for the connections to end, then abort those that are left."""
        self.stop_accepting()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if tasks:
                await asyncio.wait(tasks, timeout=5.0)


class SessionListener(Listener):
    """Serves callers' connections, HTTP/1.1 and HTTP/2, distinguished by their first bytes."""

    def __init__(self, opener: SessionOpener) -> None:
        super().__init__(self._serve_caller)
        self._opener = opener
        self._callers: set[H1Caller | H2Caller] = set()

    async def _serve_caller(self, wire: Wire) -> None:
        try:
            async with asyncio.timeout(FIRST_BYTES_SECONDS):
                http2 = await _detect_http2(wire)
        except (TimeoutError, ConnectionError):
            wire.abort()
            return
        caller = H2Caller(wire, self._opener) if http2 else H1Caller(wire, self._opener)
        self._callers.add(caller)
        try:
            await caller.run()
        finally:
            self._callers.discard(caller)

    async def drain(self, grace_seconds: float) -> None:
        """Stop: ask callers to go elsewhere, and give running calls some time."""
        self.stop_accepting()
        for caller in tuple(self._callers):
            caller.leave()
        await self.stop(grace_seconds)


def is_http2(first: bytes) -> bool | None:
    """Whether a connection's first bytes are those of HTTP/2 (RFC 9113 section 3.4); None: not yet clear."""
    if first.startswith(PREFACE):
        return True
    return None if PREFACE.startswith(first) else False


async def _detect_http2(wire: Wire) -> bool:
    first = b""
    while True:
        data = await wire.read()
        if not data:
            raise ConnectionResetError("the connection ended before its first request")
        first += data
        http2 = is_http2(first)
        if http2 is not None:
            wire.unread(first)
            return http2
