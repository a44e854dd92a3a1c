"""One request of an ASGI application: its scope, and the messages in both directions (ASGI 3, HTTP 2.4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import unquote

from nvcf_worker.function.request import Request
from nvcf_worker.function.response import HeaderPairs

ASGI_VERSION = {"version": "3.0", "spec_version": "2.4"}


def http_scope(
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]],
    *,
    root_path: str,
    state: dict[str, Any] | None,
    extensions: dict[str, Any],
) -> dict[str, Any]:
    """Return the scope of a request. `target` is path and query as they were sent.

    There is no connection, so `client` is None and `server` comes from the caller's Host header. The path
    includes `root_path`, as the path of a server that is mounted under a prefix.
    """
    path, _, query = target.partition("?")
    path = path if path.startswith("/") else f"/{path}"
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": ASGI_VERSION,
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "https" if _first(pairs, b"x-forwarded-proto").lower() == "https" else "http",
        "path": unquote(root_path + path),
        "raw_path": (root_path + path).encode("latin-1", "replace"),
        "query_string": query.encode("latin-1", "replace"),
        "root_path": root_path,
        "headers": pairs,
        "client": None,
        "server": _server(_first(pairs, b"host")),
        "extensions": extensions,
    }
    if state is not None:
        scope["state"] = dict(state)
    return scope


def _first(pairs: list[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value for key, value in pairs if key == name), b"").decode("latin-1").strip()


def _server(host: str) -> tuple[str, int | None]:
    name, colon, port = host.rpartition(":")
    if colon and port.isascii() and port.isdigit():
        return name, int(port)
    return host or "localhost", 80


class CallerLeft(OSError):
    """Raised by `send` when nobody reads the response any more (ASGI 2.4)."""


class Cycle:
    """The messages of one request: `receive` and `send` of the application, and the chunks it has sent.

    `send` waits while a chunk has not been taken. Two tasks of one loop use it: the application's, and the
    one that delivers the response. `started` is set with the head of the response, `came` while a chunk
    waits; both are set when the application's call has ended.
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
        self.came = asyncio.Event()
        self.started = asyncio.Event()

    # --- called by the application

    async def receive(self) -> dict[str, Any]:
        """Return the next message for the application: the body in chunks, then the disconnect."""
        if not self._body_read and not self._disconnected.is_set():
            if self._chunks is None:
                self._chunks = aiter(self._request.stream())
            try:
                chunk = await anext(self._chunks, None)
            except Exception:
                # The rest of the body is not available: for the application its caller has left.
                self._disconnected.set()
                raise
            self._body_read = chunk is None or self._request._whole_body is not None
            return {"type": "http.request", "body": chunk or b"", "more_body": not self._body_read}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """Take a message of the application. Raises CallerLeft, or RuntimeError if it is unexpected."""
        match message["type"]:
            case "http.response.start" if not self.status:
                self.status = int(message["status"])
                self.headers = [
                    (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
                    for name, value in message.get("headers", ())
                ]
                self.started.set()
            case "http.response.body" if self.status and not self.complete:
                await self._body(bytes(message.get("body", b"")), more=bool(message.get("more_body", False)))
            case other:
                raise RuntimeError(f"unexpected message {other!r} of the application")

    async def _body(self, chunk: bytes, *, more: bool) -> None:
        while self._chunk is not None and not self._disconnected.is_set():
            self._taken.clear()
            await self._taken.wait()
        if self._disconnected.is_set():
            raise CallerLeft("the caller has left")
        self._chunk = chunk
        if not more:
            self.complete = True
        self.came.set()

    # --- called by the delivery of the response

    def ended(self) -> None:
        """End both waits: the application's call has ended."""
        self.started.set()
        self.came.set()

    @property
    def has_chunk(self) -> bool:
        """Whether a chunk waits to be taken."""
        return self._chunk is not None

    def take(self) -> bytes:
        """Return the waiting chunk, and let the application send the next one."""
        chunk, self._chunk = self._chunk, None
        self.came.clear()
        self._taken.set()
        return chunk or b""

    def disconnect(self) -> None:
        """Disconnect the application: nobody reads the response any more, or it is complete."""
        self._disconnected.set()
        self._taken.set()
