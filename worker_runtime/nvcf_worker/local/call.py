"""One request without a platform: who waits for it, and what it is to the worker's own code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from nvcf_proto.headers import NVCF_REQID
from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.settings import MAX_DIRECT_RESPONSE
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.function.response import HeaderPairs
from nvcf_worker.message import Work, parse_work

REGION = "local"
TARGET = "http://local.invalid"
"""Nothing is ever sent there."""


class Sink(Protocol):
    """Takes one answer, on the event loop."""

    async def start(self, status: int, headers: HeaderPairs, length: int | None) -> None:
        """The head. `length` of the body where it is known."""

    async def write(self, data: bytes) -> None:
        """A piece of the body; waits while the other side is behind."""

    async def finish(self) -> None:
        """The body is complete."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a handler: 0 to 100, and a partial result if there is one."""

    percent: float
    partial: Any = None


@dataclass(eq=False)
class Call:
    """A request on its way through a `LocalFunction`."""

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
    started: bool = False
    finished: bool = False

    def work(self) -> Work:
        """The queue message that a gateway would have sent, read as a worker reads it."""
        message = nvcf_pb2.WorkerInvokeFunctionRequest(
            requestId=self.id,
            ncaId=self.nca_id,
            subject=self.subject,
            requestMethod=self.method,
            requestPath=self.target,
            maxDirectResponseSizeBytes=MAX_DIRECT_RESPONSE,
            # So that result files have a place to go; they are collected, not sent.
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
        # One delivery: nobody would deliver a request again, so `RetryLater` is answered at once.
        return parse_work(
            message.SerializeToString(), subject, None, region=REGION, now=time.time(), max_deliver=1
        )

    def cancel(self) -> None:
        """The caller leaves."""
        if not self.finished:
            self.scope.stop(End.CALLER_GONE)

    async def wait(self) -> None:
        """Until the request has ended, whichever way."""
        if self.task is not None:
            await asyncio.wait((self.task,))


class LocalDownload:
    """The rest of a request's body, from an iterator in this process."""

    def __init__(self, source: AsyncIterable[bytes]) -> None:
        self._source = source
        self._closed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._source)
        while True:
            chunk = await anext(chunks, None)
            if chunk is None or self._closed.is_set():
                return
            yield chunk

    def close(self) -> None:
        """No more is read."""
        self._closed.set()


def answer_headers(headers: Iterable[tuple[str, str]], request_id: str) -> HeaderPairs:
    """Headers of an answer as a gateway hands them on: with the request's id."""
    return [*headers, (NVCF_REQID.lower(), request_id)]
