"""A caller's request body on its way to a worker: read ahead, streamed, and kept for a second delivery.

If a worker dies, its request goes to another one, which needs the whole body again, and the caller sends it
only once. So whatever is streamed is spooled as well: a little in memory, more in an unnamed temporary file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import IO, Protocol

from aiohttp import web

from nvcf_gateway.errors import GatewayError, HttpProblem

CHUNK_BYTES = 128 * 1024


class BodySuperseded(GatewayError):
    """A newer delivery of the request reads the body now."""


class BodyTooLarge(GatewayError):
    """The body is longer than the version takes."""


class ByteSource(Protocol):
    """The part of an HTTP stream that a body reads from."""

    async def read(self, n: int = -1) -> bytes:
        """Return up to `n` bytes, and none at the end."""

    def at_eof(self) -> bool:
        """Return whether everything has been read."""

    def is_eof(self) -> bool:
        """Return whether everything has arrived, read or not."""


class Body(Protocol):
    """A request body as attach sends it: `prefix` is in the message, the rest is streamed."""

    prefix: bytes

    @property
    def rest_length(self) -> int | None:
        """Number of bytes after the prefix, None if unknown."""

    def stream(self) -> AsyncIterator[bytes]:
        """Return the bytes after the prefix, from their start."""

    def close(self) -> None:
        """Free its memory and disk."""


class Budget(Protocol):
    """Counts what accounts have spooled."""

    def take(self, account: str, size: int) -> None:
        """Count bytes that are about to be spooled. Raises HttpProblem."""

    def give_back(self, account: str, size: int) -> None:
        """Count bytes no longer."""


class Spool:
    """Bytes that can be read again; beyond `memory_bytes` they live in an unnamed file."""

    __slots__ = ("_account", "_budget", "_directory", "_file", "_memory", "_memory_bytes", "size")

    def __init__(
        self,
        memory_bytes: int,
        directory: Path | None = None,
        budget: Budget | None = None,
        account: str = "",
    ) -> None:
        self._budget = budget
        self._account = account
        self._memory_bytes = memory_bytes
        self._directory = directory
        # Most bodies are never spooled, and thousands of them wait at a time.
        self._memory: bytes | bytearray = b""
        self._file: IO[bytes] | None = None
        self.size = 0

    async def append(self, data: bytes) -> None:
        """Add bytes at the end. Raises OSError if the disk is full, HttpProblem if the budget is used up."""
        if self._budget is not None:
            self._budget.take(self._account, len(data))
        if self._file is None and self.size + len(data) <= self._memory_bytes:
            if isinstance(self._memory, bytes):
                self._memory = bytearray(self._memory)
            self._memory += data
        else:
            await asyncio.to_thread(self._append_to_file, data)
        self.size += len(data)

    async def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`."""
        if self._file is None:
            return bytes(self._memory[offset : offset + size])
        return await asyncio.to_thread(self._read_from_file, offset, size)

    def close(self) -> None:
        """Free memory and disk."""
        self._memory = b""
        if self._budget is not None and self.size:
            self._budget.give_back(self._account, self.size)
            self._budget = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append_to_file(self, data: bytes) -> None:
        if self._file is None:
            # Closed by close(), which every owner calls.
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
            self._file.write(self._memory)
            self._memory = b""
        self._file.seek(0, 2)
        self._file.write(data)

    def _read_from_file(self, offset: int, size: int) -> bytes:
        if self._file is None:
            return b""
        self._file.seek(offset)
        return self._file.read(size)


class CallerBody:
    """The body of a request: `prefix` is sent in the message, the rest is streamed on demand."""

    __slots__ = (
        "_failure",
        "_hash",
        "_max_bytes",
        "_read_lock",
        "_reader",
        "_source",
        "_spool",
        "before_end",
        "length",
        "prefix",
    )

    def __init__(
        self,
        source: ByteSource,
        length: int | None,
        *,
        spool_memory_bytes: int,
        directory: Path | None = None,
        max_bytes: int | None = None,
        digested: bool = False,
        budget: Budget | None = None,
        account: str = "",
    ) -> None:
        """Create a body; one that is longer than `max_bytes` raises BodyTooLarge.

        With `digested` the digest of what is read is computed on the way.
        """
        self._max_bytes = max_bytes
        self.length = length
        self.prefix = b""
        self._source = source
        self._spool = Spool(spool_memory_bytes, directory, budget, account)
        self._read_lock: asyncio.Lock | None = None
        self._reader = 0
        self._failure: OSError | HttpProblem | None = None
        self._hash = hashlib.sha256() if digested else None
        self.before_end: Callable[[], Awaitable[None]] | None = None
        """Awaited before a reader gets the last byte."""

    @property
    def digest(self) -> str | None:
        """Digest of the whole body, None while not all of it has been read."""
        return self._hash.hexdigest() if self._hash is not None and self._source.at_eof() else None

    @property
    def complete(self) -> bool:
        """Whether `prefix` is the whole body."""
        return self._source.at_eof() and not self._spool.size and self._failure is None

    @property
    def rest_length(self) -> int | None:
        """Number of bytes after the prefix, None if the caller did not announce it."""
        return None if self.length is None else self.length - len(self.prefix)

    @property
    def spooled_bytes(self) -> int:
        """Number of bytes after the prefix that have been read."""
        return self._spool.size

    async def read_ahead(self, limit: int, patience: float) -> None:
        """Read up to `limit` bytes into `prefix`, waiting `patience` seconds at most for all of it.

        Raises BodyTooLarge.
        """
        parts: list[bytes] = []
        size = 0
        if self.length is not None and self.length <= limit and self._source.is_eof():
            # All of it is here, as with most small bodies: no timer is needed.
            self._begin(await self._source.read(limit))
            return
        try:
            async with asyncio.timeout(patience):
                while size < limit and not self._source.at_eof():
                    part = await self._source.read(limit - size)
                    parts.append(part)
                    size += len(part)
                    if self.length == size:
                        # Lets the source notice that nothing follows.
                        parts.append(await self._source.read(1))
                        break
        except TimeoutError:
            # A caller that sends slowly is streamed instead.
            pass
        self._begin(b"".join(parts))

    def _begin(self, prefix: bytes) -> None:
        self.prefix = prefix
        self._check(len(prefix))
        if self._hash is not None:
            self._hash.update(prefix)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the bytes after the prefix, from their start, however often they were read before.

        A later call ends an earlier one with BodySuperseded. Raises OSError if spooling fails.
        """
        self._reader += 1
        reader = self._reader
        offset = 0
        while True:
            if offset < self._spool.size:
                chunk = await self._spool.read(offset, CHUNK_BYTES)
            elif self._source.at_eof() and self._failure is None:
                chunk = b""
            else:
                chunk = await self._next(offset)
            whole = self._source.at_eof() and self._failure is None
            at_end = whole and offset + len(chunk) >= self._spool.size
            if at_end and self.before_end is not None:
                await self.before_end()
            if reader != self._reader:
                raise BodySuperseded("a newer delivery reads the body")
            if chunk:
                offset += len(chunk)
                yield chunk
            if at_end:
                return

    async def _next(self, offset: int) -> bytes:
        if self._read_lock is None:
            self._read_lock = asyncio.Lock()
        async with self._read_lock:
            if offset < self._spool.size:
                return await self._spool.read(offset, CHUNK_BYTES)
            if self._failure is not None:
                # A part of the body is gone: nobody may take what follows for the whole.
                raise self._failure
            if self._source.at_eof():
                return b""
            chunk = await self._source.read(CHUNK_BYTES)
            self._check(len(self.prefix) + self._spool.size + len(chunk))
            if self._hash is not None:
                self._hash.update(chunk)
            await _finished(self._keep(chunk))
            return chunk

    async def _keep(self, chunk: bytes) -> None:
        try:
            await self._spool.append(chunk)
        except (OSError, HttpProblem) as error:
            self._failure = error
            raise

    def check_announced(self) -> None:
        """Raise BodyTooLarge if the announced length is too much."""
        self._check(self.length or 0)

    def _check(self, size: int) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            raise BodyTooLarge(f"the body is larger than {self._max_bytes} bytes")

    async def receive_all(self, patience: float, limit: int) -> bool:
        """Read the rest from the caller into the spool.

        Returns False if it does not arrive within `patience` seconds, or is more than `limit` bytes.
        """
        try:
            async with asyncio.timeout(patience):
                while self._failure is not None or not self._source.at_eof():
                    if self._spool.size > limit:
                        return False
                    await self._next(self._spool.size)
        except (TimeoutError, ConnectionError, BodyTooLarge, web.RequestPayloadError):
            return False
        return True

    async def spooled(self) -> AsyncIterator[bytes]:
        """Yield the bytes after the prefix that have been read; unlike `stream` it ends no other reader.

        Raises OSError if the body is closed meanwhile.
        """
        offset = 0
        while offset < self._spool.size:
            chunk = await self._spool.read(offset, CHUNK_BYTES)
            if not chunk:
                raise OSError("the body was closed before all of it was read")
            offset += len(chunk)
            yield chunk

    async def drain(self) -> None:
        """Read the rest from the caller for its digest alone. Raises BodyTooLarge."""
        size = len(self.prefix) + self._spool.size
        while not self._source.at_eof():
            chunk = await self._source.read(CHUNK_BYTES)
            size += len(chunk)
            self._check(size)
            if self._hash is not None:
                self._hash.update(chunk)

    async def spool_rest(self) -> None:
        """Read the rest into the spool, so that it takes no memory, until there is no room for it."""
        with contextlib.suppress(OSError, HttpProblem):
            while not self._source.at_eof():
                await self._next(self._spool.size)

    def close(self) -> None:
        """Free the spooled bytes."""
        self._reader += 1
        self._spool.close()


class BytesSource:
    """Bytes in memory as the source of a body."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    async def read(self, n: int = -1) -> bytes:
        """Return up to `n` bytes."""
        end = len(self._data) if n < 0 else self._offset + n
        part = self._data[self._offset : end]
        self._offset += len(part)
        if self.at_eof():
            self._data = b""
        return part

    def at_eof(self) -> bool:
        """Return whether everything has been read."""
        return self._offset >= len(self._data)

    def is_eof(self) -> bool:
        """Return True: everything is there from the start."""
        return True


def empty_body() -> CallerBody:
    """Return the body of a request that has none."""
    return CallerBody(BytesSource(b""), 0, spool_memory_bytes=0)


async def _finished(work: Coroutine[None, None, None]) -> None:
    """Await `work` to its end even when cancelled: bytes taken from the caller must reach the spool."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
