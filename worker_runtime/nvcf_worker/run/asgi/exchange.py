"""One request of an ASGI application: its messages in, its messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from nvcf_worker.function.request import Request

HeaderPairs = list[tuple[str, str]]


class CallerLeft(OSError):
    """What `send` raises once nobody reads the answer any more (ASGI 2.4)."""


class Exchange:
    """Holds what the application sent until it is taken; `send` waits while one chunk is not.

    Used by two tasks of one loop: the application's, and the one that delivers the answer.
    """

    def __init__(self, request: Request) -> None:
        self.status = 0
        self.headers: HeaderPairs = []
        self.complete = False
        self._request = request
        self._chunks: AsyncIterator[bytes] | None = None
        self._body_read = False
        self._disconnected = asyncio.Event()
        self._chunk: bytes | None = None
        self._taken = asyncio.Event()
        self._came = asyncio.Event()
        self._started = asyncio.Event()

    # --- the application's side ------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        """The next message for the application: the body in chunks, then the caller's leaving."""
        if not self._body_read and not self._disconnected.is_set():
            if self._chunks is None:
                self._chunks = aiter(self._request.stream())
            try:
                chunk = await anext(self._chunks, None)
            except Exception:
                # The rest cannot be had: to the application its caller is gone.
                self._disconnected.set()
                raise
            self._body_read = chunk is None or self._request.whole_body is not None
            return {"type": "http.request", "body": chunk or b"", "more_body": not self._body_read}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Take one message of the application. Raises CallerLeft, RuntimeError for one out of order."""
        match message["type"]:
            case "http.response.start" if not self.status:
                self.status = int(message["status"])
                self.headers = _decoded(message.get("headers", ()))
                self._started.set()
            case "http.response.body" if self.status and not self.complete:
                await self._body(bytes(message.get("body", b"")), more=bool(message.get("more_body", False)))
            case other:
                raise RuntimeError(f"unexpected message {other!r} of the application")

    async def _body(self, chunk: bytes, *, more: bool) -> None:
        if self._disconnected.is_set():
            raise CallerLeft("the caller has left")
        while self._chunk is not None:
            self._taken.clear()
            await self._taken.wait()
            if self._disconnected.is_set():
                raise CallerLeft("the caller has left")
        self._chunk = chunk
        if not more:
            self.complete = True
        self._came.set()

    # --- the other side --------------------------------------------------------------------------

    async def started(self) -> None:
        """Wait for the head of the answer, or for the end of the application's call."""
        await self._started.wait()

    async def came(self) -> None:
        """Wait for a chunk, or for the end of the application's call."""
        await self._came.wait()

    def ended(self) -> None:
        """The application's call is over: nothing more comes."""
        self._started.set()
        self._came.set()

    @property
    def has_chunk(self) -> bool:
        """Whether a chunk waits to be taken."""
        return self._chunk is not None

    def take(self) -> bytes:
        """The waiting chunk; the application may send the next one."""
        chunk, self._chunk = self._chunk, None
        self._came.clear()
        self._taken.set()
        return chunk or b""

    def disconnect(self) -> None:
        """Nobody reads the answer any more, or it is complete: the application is told when it asks."""
        self._disconnected.set()
        self._taken.set()


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> HeaderPairs:
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers]
