"""What a test gets back, and how it is collected."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from nvcf_worker.errors import WorkerError
from nvcf_worker.function.headers import Headers
from nvcf_worker.function.response import HeaderPairs
from nvcf_worker.local.call import Progress


class CallFailed(WorkerError):
    """The handler answered with 400 or more, or not at all. `result` is that answer, if there is one."""

    def __init__(self, text: str, result: Result | None = None) -> None:
        super().__init__(text)
        self.result = result


class StreamFailed(CallFailed):
    """The handler failed in the middle of its answer: a caller would have seen the connection break."""


@dataclass(frozen=True)
class Result:
    """A complete answer. `chunks` are the pieces as they were sent, `files` those of the output directory."""

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
        """Content-Type without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The body as JSON; of `application/x-ndjson` a list of the lines. Raises ValueError."""
        if self.media_type == "application/x-ndjson":
            return [json.loads(line) for line in self.body.splitlines() if line]
        return json.loads(self.body)

    def raise_for_status(self) -> Result:
        """This result. Raises CallFailed with the handler's words when the status is 400 or more."""
        if not self.ok:
            raise CallFailed(f"{self.status}: {self.body.decode(errors='replace')[:2000]}", self)
        return self


class Collector:
    """A sink whose chunks are read one by one, or all at once. Used on the loop."""

    def __init__(self) -> None:
        self.status = 0
        self.headers = Headers(())
        self.head = asyncio.Event()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

    async def start(self, status: int, headers: HeaderPairs, length: int | None) -> None:
        """Take the head."""
        self.status, self.headers = status, Headers(headers)
        self.head.set()

    async def write(self, data: bytes) -> None:
        """Take a chunk; waits until the one before has been read."""
        await self._chunks.put(data)

    async def finish(self) -> None:
        """Take the end."""
        await self._chunks.put(None)

    async def read(self, task: asyncio.Task[None]) -> bytes | None:
        """The next chunk, None at the end. Raises StreamFailed when `task` ends without one."""
        reading = asyncio.ensure_future(self._chunks.get())
        try:
            await asyncio.wait((reading, task), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if not self._chunks.empty():
                return self._chunks.get_nowait()
            raise StreamFailed("the answer broke off; the log says why")
        finally:
            reading.cancel()
