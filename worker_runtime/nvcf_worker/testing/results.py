"""Results of test calls: complete ones, calls in progress, streams, and the errors that they raise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from nvcf_proto.headers import field_text
from nvcf_worker.errors import WorkerError
from nvcf_worker.function.headers import Headers
from nvcf_worker.function.response import HeaderPairs
from nvcf_worker.local.request import LocalRequest, Progress


class CallFailed(WorkerError):
    """The handler responded with status 400 or above, or not at all. `result` is its response, if any."""

    def __init__(self, text: str, result: Result | None = None) -> None:
        super().__init__(text)
        self.result = result


class StreamFailed(CallFailed):
    """The handler failed in the middle of its response: a caller would have seen the connection break."""


@dataclass(frozen=True)
class Result:
    """A complete response. `chunks` are the pieces as sent, `files` are those of the output directory."""

    status: int
    headers: Headers
    chunks: list[bytes]
    request_id: str
    progress: list[Progress] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    @property
    def ok(self) -> bool:
        """Whether the status is below 400."""
        return self.status < 400

    @property
    def media_type(self) -> str:
        """The Content-Type without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """Return the body as JSON; for `application/x-ndjson` a list of the lines. Raises ValueError."""
        if self.media_type == "application/x-ndjson":
            return [json.loads(line) for line in self.body.splitlines() if line]
        return json.loads(self.body)

    def raise_for_status(self) -> Result:
        """Return this result. Raises CallFailed with the body as text if the status is 400 or above."""
        if not self.ok:
            raise CallFailed(f"{self.status}: {self.body.decode(errors='replace')[:2000]}", self)
        return self


class Collector:
    """Receives a response whose chunks are read one by one, or all at once. Used on the event loop."""

    def __init__(self) -> None:
        self.status = 0
        self.headers = Headers(())
        self.head = asyncio.Event()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

    async def start(self, status: int, headers: HeaderPairs, length: int | None) -> None:
        self.status, self.headers = status, Headers((name, field_text(value)) for name, value in headers)
        self.head.set()

    async def write(self, data: bytes) -> None:
        """Receive a chunk, and wait until the one before has been read."""
        await self._chunks.put(data)

    async def finish(self) -> None:
        await self._chunks.put(None)

    async def read(self, task: asyncio.Task[None]) -> bytes | None:
        """Return the next chunk; None at the end. Raises StreamFailed if `task` ends before."""
        reading = asyncio.ensure_future(self._chunks.get())
        try:
            await asyncio.wait((reading, task), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if not self._chunks.empty():
                return self._chunks.get_nowait()
            raise StreamFailed("the response broke off; the log says why")
        finally:
            reading.cancel()


class Pending:
    """A call in progress."""

    def __init__(self, wait: Callable[..., Any], request: LocalRequest, collector: Collector) -> None:
        self._wait = wait
        self._request = request
        self._collector = collector
        self._result: Result | None = None

    @property
    def request_id(self) -> str:
        """The id of the request."""
        return self._request.id

    @property
    def progress(self) -> list[Progress]:
        """The progress that the handler has reported so far."""
        return list(self._request.progress)

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._request.task is not None and self._request.task.done()

    def cancel(self) -> None:
        """Leave, as a caller does, and wait until the handler has ended."""
        self._wait(self._cancel())

    async def _cancel(self) -> None:
        self._request.cancel()
        await self._request.wait()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the complete response, at most `timeout` seconds.

        Raises StreamFailed, CallFailed if there is no response, TimeoutError.
        """
        if self._result is None:
            self._result = self._wait(self._collect(), timeout)
        return self._result

    async def _collect(self) -> Result:
        await self.head()
        chunks = []
        while (chunk := await self.read()) is not None:
            chunks.append(chunk)
        await self._request.wait()
        return Result(
            self._collector.status,
            self._collector.headers,
            chunks,
            self._request.id,
            self.progress,
            dict(self._request.files),
        )

    async def head(self) -> tuple[int, Headers]:
        """On the event loop: wait for status and headers. Raises CallFailed if none arrive."""
        waiting = asyncio.ensure_future(self._collector.head.wait())
        try:
            await asyncio.wait((waiting, self._task()), return_when=asyncio.FIRST_COMPLETED)
            if not self._collector.head.is_set():
                raise CallFailed("the request ended without a response: it was cancelled")
        finally:
            waiting.cancel()
        return self._collector.status, self._collector.headers

    async def read(self) -> bytes | None:
        """On the event loop: return the next chunk; None at the end."""
        return await self._collector.read(self._task())

    def _task(self) -> asyncio.Task[None]:
        assert self._request.task is not None  # noqa: S101 # set by begin
        return self._request.task


class Stream:
    """A response that is read while it is made. Leaving the context early cancels the request."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self._wait = pending._wait
        self._ended = False
        self.status, self.headers = self._wait(pending.head())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            self.cancel()

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._wait(self._pending.read())) is not None:
            yield chunk
        self._ended = True

    def lines(self) -> Iterator[str]:
        """Iterate over the response line by line, without line ends."""
        rest = b""
        for chunk in self:
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode() for line in lines)
        if rest:
            yield rest.decode()

    @property
    def progress(self) -> list[Progress]:
        """The progress that the handler has reported so far."""
        return self._pending.progress

    def cancel(self) -> None:
        """Leave, and wait until the handler has ended."""
        self._ended = True
        self._pending.cancel()
