"""Listeners: the connections of one port, and the callers' port with HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import SetupError
from nvcf_gateway.http.descriptors import Port, crowded_out, most_connections
from nvcf_gateway.sessions.h1_caller import H1Caller
from nvcf_gateway.sessions.h2_caller import H2Caller
from nvcf_gateway.sessions.opening import SessionOpener

_log = logging.getLogger(__name__)

BACKLOG = 1024
TLS_HANDSHAKE_SECONDS = 10.0
FIRST_BYTES_SECONDS = 10.0
FORGET_SECONDS = 1.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Listener:
    """Accepts connections and runs `serve(wire)` for each in a task of its own.

    Beyond the number that its port may hold, those without a valid key or token make room for new ones.
    """

    def __init__(self, serve: Callable[[Wire], Awaitable[None]], port: Port) -> None:
        self._serve = serve
        self._most = most_connections(port)
        self._wires: dict[Wire, float] = {}
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
        self._wires[wire] = asyncio.get_running_loop().time()
        if len(self._wires) > self._most and not self._make_room():
            wire.abort()
        task = asyncio.create_task(self._run(wire))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, wire: Wire) -> None:
        try:
            await self._serve(wire)
        except Exception:  # noqa: BLE001 # one connection's failure must not affect the others
            _log.exception("the handler of a connection failed")
            wire.abort()
        finally:
            self._forget(wire)

    def _forget(self, wire: Wire) -> None:
        """Forget a connection, once it is gone: a tunnel outlives its handler."""
        if wire.is_lost:
            self._wires.pop(wire, None)
        else:
            asyncio.get_running_loop().call_later(FORGET_SECONDS, self._forget, wire)

    def _make_room(self) -> bool:
        """Close some connections without a key; return False if there is none."""
        untrusted = [wire for wire in tuple(self._wires)[:-1] if not wire.trusted and not wire.is_lost]
        peers = [(self._wires[wire], wire.transport.get_extra_info("peername")) for wire in untrusted]
        idle = [(since, str(peer[0]) if peer else "") for since, peer in peers]
        chosen = crowded_out(idle, max(1, self._most // 20))
        for place in chosen:
            untrusted[place].abort()
            self._wires.pop(untrusted[place], None)
        if chosen:
            _log.warning("too many connections: %d without a key were closed", len(chosen))
        return bool(chosen)

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
        super().__init__(self._serve_caller, "sessions")
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
