"""The callers' door: HTTP/1.1 and HTTP/2 on one port, told apart by the first bytes."""

from __future__ import annotations

import asyncio

from nvcf_broker.wire import Wire
from nvcf_gateway.sessions.h1_caller import H1Caller
from nvcf_gateway.sessions.h2_caller import H2Caller
from nvcf_gateway.sessions.opening import SessionOpener

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIRST_BYTES_SECONDS = 10.0


def is_http2(first: bytes) -> bool | None:
    """Whether a connection's first bytes are those of HTTP/2 (RFC 9113 section 3.4); None: not yet clear."""
    if first.startswith(PREFACE):
        return True
    return None if PREFACE.startswith(first) else False


class CallerDoor:
    """Serves callers' connections."""

    def __init__(self, opener: SessionOpener) -> None:
        self._opener = opener
        self._callers: set[H1Caller | H2Caller] = set()
        self._leaving = False

    async def serve(self, wire: Wire) -> None:
        """One connection, until it ends."""
        try:
            async with asyncio.timeout(FIRST_BYTES_SECONDS):
                http2 = await self._detect(wire)
        except (TimeoutError, ConnectionError):
            wire.abort()
            return
        caller = H2Caller(wire, self._opener) if http2 else H1Caller(wire, self._opener)
        self._callers.add(caller)
        try:
            await caller.run()
        finally:
            self._callers.discard(caller)

    async def _detect(self, wire: Wire) -> bool:
        first = b""
        while True:
            data = await wire.read()
            if not data:
                raise ConnectionResetError("ended before its first request")
            first += data
            http2 = is_http2(first)
            if http2 is not None:
                wire.unread(first)
                return http2

    def leave(self) -> None:
        """This gateway is about to stop: tell callers to go elsewhere."""
        for caller in tuple(self._callers):
            caller.leave()
