"""A user's HTTP server at the level of bytes: tests see all received bytes and choose the sent ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request as it arrived."""

    line: str
    headers: list[tuple[str, str]]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        """Return the values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    async def chunk(self) -> bytes:
        """Read one chunk of a chunked body. It is empty at the end."""
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size)
        await self.reader.readexactly(2)
        return data

    async def send(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)
        await self.writer.drain()


Script = Callable[[Seen], Awaitable[None]]


@dataclass
class UserServer:
    """Listens on `port`. `script` responds to each request."""

    script: Script
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> None:
        """Listen, on the same port as before if it was stopped."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (line := await reader.readline()).strip():
                headers = []
                while header := (await reader.readline()).strip():
                    name, _, value = header.decode("latin-1").partition(":")
                    headers.append((name, value.strip()))
                seen = Seen(line.decode("latin-1").strip(), headers, reader, writer)
                if length := seen.all("content-length"):
                    seen.body = await reader.readexactly(int(length[0]))
                self.seen.append(seen)
                await self.script(seen)
        self.closed.set()
        writer.close()


@contextlib.asynccontextmanager
async def user_server(script: Script) -> AsyncIterator[UserServer]:
    """Run a server for the length of a context."""
    server = UserServer(script)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def answering(head: str, body: bytes = b"") -> Script:
    """Always this answer; `head` without line ends, body under its Content-Length unless head says so."""

    async def script(seen: Seen) -> None:
        lines = head.split("\n")
        if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
            lines.append(f"Content-Length: {len(body)}")
        await seen.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    return script
