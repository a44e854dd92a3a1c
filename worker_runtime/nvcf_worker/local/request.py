"""A request without a platform: its caller, and the queue message that the worker's own code reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.settings import MAX_DIRECT_RESPONSE
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.function.response import HeaderPairs
from nvcf_worker.message import Work, parse_work

TARGET = "http://local.invalid"
"""A reply address to which nothing is ever sent."""


class Sink(Protocol):
    """Receives one response, on the event loop."""

    async def start(self, status: int, headers: HeaderPairs, length: int | None) -> None:
        """Receive the head. `length` of the body in bytes is None if unknown."""

    async def write(self, data: bytes) -> None:
        """Receive a piece of the body, and wait while the reader is behind."""

    async def finish(self) -> None:
        """Receive the end of the body."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One progress report of a handler: 0 to 100, and a partial result if there is one."""

    percent: float
    partial: Any = None


@dataclass(eq=False)
class LocalRequest:
    """A request to a `LocalFunction`."""

    sink: Sink
    method: str
    target: str
    headers: HeaderPairs
    body: bytes | AsyncIterable[bytes] = b""
    attempt: int = 1
    subject: str = "local"
    nca_id: str = "local"
    id: str = field(default_factory=new_id)
    progress: list[Progress] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    scope: CancelScope = field(default_factory=CancelScope)
    task: asyncio.Task[None] | None = None
    finished: bool = False

    def work(self) -> Work:
        """Return the queue message that a gateway would send, as a worker reads it."""
        message = nvcf_pb2.WorkerInvokeFunctionRequest(
            requestId=self.id,
            ncaId=self.nca_id,
            subject=self.subject,
            requestMethod=self.method,
            requestPath=self.target,
            maxDirectResponseSizeBytes=MAX_DIRECT_RESPONSE,
            # Without it there would be no result files; they are collected, not uploaded.
            largeResponseUrl=TARGET,
        )
        message.requestTime.FromNanoseconds(time.time_ns())
        for name, value in self.headers:
            message.requestHeaders.add(key=name, value=value)
        http1 = message.statelessConfig.connectionConfigs.add().http1Config
        http1.targetURI, http1.responseAuthorizationToken = TARGET, self.id
        if isinstance(self.body, bytes):
            message.requestBody = self.body
        else:
            http1.requestAuthorizationToken = self.id
        subject = f"$JS.ACK.local.local.{self.attempt}.1.1.1.0"
        # One delivery: there is no queue that would deliver it again, so `RetryLater` becomes a response.
        return parse_work(
            message.SerializeToString(), subject, None, region="local", now=time.time(), max_deliver=1
        )

    def cancel(self) -> None:
        """Cancel the request, as when its caller leaves."""
        if not self.finished:
            self.scope.stop(End.CALLER_GONE)

    async def wait(self) -> None:
        """Wait until the request has ended, successfully or not."""
        if self.task is not None:
            await asyncio.wait((self.task,))


class LocalDownload:
    """The body of a request, from an iterator in this process."""

    def __init__(self, source: AsyncIterable[bytes]) -> None:
        self._source = source
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._source:
            if self._closed:
                return
            yield chunk

    def close(self) -> None:
        """Stop reading."""
        self._closed = True
