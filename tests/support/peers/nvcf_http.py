"""HTTP/1.1 as a client in Go writes it: case, order and framing of headers, and reuse of connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

AGENT = "Go-http-client/1.1"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def request_head(method: str, target: str, host: str, headers: dict[str, str], framing: str | None) -> bytes:
    """Return the headers in Go's order: host and agent, then the framing, then the others by name."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"User-Agent: {AGENT}"]
    if framing is not None:
        lines.append(framing)
    lines += [f"{name}: {headers[name]}" for name in sorted(headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass
class Answer:
    """A response; header names as sent, in order."""

    status: int
    headers: list[tuple[str, str]]
    reader: asyncio.StreamReader
    body: bytes = b""
    writer: asyncio.StreamWriter | None = None

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body while it arrives."""
        if (self.header("Transfer-Encoding") or "").lower() == "chunked":
            while size := int((await self.reader.readline()).split(b";")[0], 16):
                yield await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            while (await self.reader.readline()).strip():
                pass
            return
        left = int(self.header("Content-Length") or 0)
        while left:
            data = await self.reader.read(min(left, 65536))
            if not data:
                raise ConnectionResetError("the body ended early")
            left -= len(data)
            yield data


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read the head of a response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Answer(int(first.split(" ")[1]), pairs, reader)


@dataclass
class GoClient:
    """A client that keeps idle connections, like the shared client of a worker."""

    idle: dict[str, list[Stream]] = field(default_factory=dict)
    opened: int = 0

    async def _connection(self, host: str) -> Stream:
        for stream in self.idle.get(host, []):
            if not stream[0].at_eof():
                self.idle[host].remove(stream)
                return stream
        self.opened += 1
        name, _, port = host.rpartition(":")
        return await asyncio.open_connection(name, int(port))

    async def get(self, url: str, headers: dict[str, str]) -> Answer:
        """Send a GET. The body is read with `Answer.stream`."""
        parts = urlsplit(url)
        reader, writer = await self._connection(parts.netloc)
        writer.write(request_head("GET", _target(url), parts.netloc, headers, None))
        answer = await read_answer(reader)
        # A writer that nobody holds closes its connection.
        answer.writer = writer
        return answer

    async def send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        first: bytes,
        rest: AsyncIterator[bytes] | None,
        length: int | None,
    ) -> Answer:
        """Send a request whose body is `first` and `rest`. It is chunked if its length is not known."""
        parts = urlsplit(url)
        stream = reader, writer = await self._connection(parts.netloc)
        chunked = length is None
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {length}"
        writer.write(request_head(method, _target(url), parts.netloc, headers, framing))
        answering = asyncio.ensure_future(read_answer(reader))
        try:
            await _write(writer, first, chunked)
            if rest is not None:
                async for data in rest:
                    if answering.done():
                        break
                    await _write(writer, data, chunked)
            if chunked:
                writer.write(b"0\r\n\r\n")
            answer = await answering
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            raise
        finally:
            answering.cancel()
        answer.body = b"".join([data async for data in answer.stream()])
        if (answer.header("Connection") or "").lower() == "close":
            writer.close()
        else:
            self.idle.setdefault(parts.netloc, []).append(stream)
        return answer

    def close(self) -> None:
        """Close idle connections."""
        for streams in self.idle.values():
            for _, writer in streams:
                writer.close()


async def _write(writer: asyncio.StreamWriter, data: bytes, chunked: bool) -> None:
    if not data:
        return
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" if chunked else data)
    await writer.drain()


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
