"""Calls of a `TestClient` that are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Self

from nvcf_worker.function.headers import Headers
from nvcf_worker.local.call import Call, Progress
from nvcf_worker.testing.answers import CallFailed, Result


class Pending:
    """A call under way."""

    def __init__(self, wait: Callable[..., Any], call: Call) -> None:
        self._wait = wait
        self._call = call
        self._collector: Any = call.sink
        self._result: Result | None = None

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self._call.id

    @property
    def progress(self) -> list[Progress]:
        """What the handler has reported so far."""
        return list(self._call.progress)

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._call.task is not None and self._call.task.done()

    def cancel(self) -> None:
        """Leave, as a caller does, and wait until the handler has really ended."""
        self._wait(self._cancel())

    async def _cancel(self) -> None:
        self._call.cancel()
        await self._call.wait()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the complete answer. Raises StreamFailed, CallFailed when there is none, TimeoutError."""
        if self._result is None:
            self._result = self._wait(self._collect(), timeout)
        return self._result

    async def _collect(self) -> Result:
        await self.head()
        chunks = []
        while (chunk := await self.read()) is not None:
            chunks.append(chunk)
        await self._call.wait()
        return Result(
            self._collector.status,
            self._collector.headers,
            chunks,
            self._call.id,
            self.progress,
            dict(self._call.files),
        )

    async def head(self) -> tuple[int, Headers]:
        """On the loop: status and headers, once they are there. Raises CallFailed when none come."""
        waiting = asyncio.ensure_future(self._collector.head.wait())
        task = self._task()
        try:
            await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
            if not self._collector.head.is_set():
                raise CallFailed("the request ended without an answer: it was cancelled")
        finally:
            waiting.cancel()
        return self._collector.status, self._collector.headers

    async def read(self) -> bytes | None:
        """On the loop: the next chunk, None at the end."""
        chunk: bytes | None = await self._collector.read(self._task())
        return chunk

    def _task(self) -> asyncio.Task[None]:
        assert self._call.task is not None  # noqa: S101 # set by begin
        return self._call.task


class Stream:
    """An answer that is read while it is made. Leaving the context early cancels the request."""

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
        """The answer line by line, without line ends."""
        rest = b""
        for chunk in self:
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode() for line in lines)
        if rest:
            yield rest.decode()

    @property
    def progress(self) -> list[Progress]:
        """What the handler has reported so far."""
        return self._pending.progress

    def cancel(self) -> None:
        """Leave, and wait until the handler has really ended."""
        self._ended = True
        self._pending.cancel()
