"""Sinks that store a response instead of, or besides, passing it to a caller."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectExistsError
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import AnsweredElsewhere, CallerGone, HttpProblem
from nvcf_gateway.exchange.bodies import CHUNK_BYTES, Spool
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.results.store import ResultStore
from nvcf_gateway.results.tracking import Tracking
from nvcf_proto.h1 import ResponseHead
from nvcf_proto.headers import PROBLEM_JSON
from nvcf_proto.problem import Problem

_log = logging.getLogger(__name__)

MAX_STORED_STREAM = 64 * 1024 * 1024
"""A response beyond this that is streamed to a caller is not stored besides, bytes."""


def is_result(status: int, *, keyed: bool) -> bool:
    """Decide whether a response with this status is stored.

    A 202 is not: the worker goes on. With an idempotency key (`keyed`) a 502 is not either. It says that the
    request did not get through, for example because its body was lost with a gateway, and a repeated call
    with the same key is executed again.
    """
    return status != 202 and not (keyed and status == 502)


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """A request whose response is stored, and where."""

    config: GatewayConfig
    store: ResultStore
    request_id: str
    nca_id: str
    function_id: str
    version_id: str
    region: str
    keyed: bool
    once: bool
    """Whether the response goes when it has been fetched."""
    settle: Callable[[], Awaitable[None]] | None = None
    """Awaited before the response is stored."""
    tracking: Tracking | None = None
    """Where its record goes once the response is stored, since that says the same."""

    async def is_stored(self) -> bool:
        """Return whether a response of the request is stored. Raises BrokerError."""
        return await self.store.find(self.request_id) is not None

    def sink(self) -> ResultWriter:
        """Return a sink that stores a streamed response."""
        return ResultWriter(self)

    async def save(self, head: ResponseHead, body: bytes) -> bool:
        """Store a complete response; return False if another one is stored already.

        Raises HttpProblem 503 if the store does not take it.
        """
        writer = ResultWriter(self)
        await writer.complete(head, body)
        return not writer.late


async def _forget(tracking: Tracking, of: KeptRequest) -> None:
    try:
        await tracking.forget(of.region, of.request_id)
    except BrokerError as error:
        # It ends by itself.
        _log.info("%s", error, extra={"request_id": of.request_id})


class ResultWriter:
    """Spools a response and stores it when it is complete.

    A response that is no result is dropped. `finish` and `complete` raise HttpProblem 503 if the store does
    not take the response, so that the worker tries again. The first response of a request stays; a later one
    is dropped and sets `late`.
    """

    __slots__ = ("_head", "_request", "_spool", "late")

    def __init__(self, request: KeptRequest) -> None:
        self._request = request
        self._spool: Spool | None = None
        self._head: ResponseHead | None = None
        self.late = False

    async def start(self, head: ResponseHead) -> None:
        self.abort()
        config = self._request.config
        self._spool = Spool(config.spool_memory_bytes, config.spool_directory)
        self._head = head

    async def write(self, data: bytes) -> None:
        assert self._spool is not None  # noqa: S101 # it has begun
        await self._spool.append(data)

    async def finish(self) -> None:
        if self._head is not None and self._spool is not None:
            await self._save(self._head, _spooled(self._spool))
        self.abort()

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        await self._save(head, _single(body))

    def abort(self) -> None:
        if self._spool is not None:
            self._spool.close()

    async def _save(self, head: ResponseHead, body: AsyncIterator[bytes]) -> None:
        of = self._request
        if not is_result(head.status, keyed=of.keyed):
            return
        try:
            if of.settle is not None:
                await of.settle()
            ids = (of.request_id, of.nca_id, of.function_id, of.version_id)
            await of.store.save(*ids, head, body, once=of.once)
            if of.tracking is not None:
                await _forget(of.tracking, of)
        except ObjectExistsError:
            self.late = True
        except BrokerError as error:
            _log.warning("response not stored: %s", error, extra={"request_id": of.request_id})
            raise HttpProblem(503, "the answer cannot be stored now", headers={"Retry-After": "1"}) from None


async def _spooled(spool: Spool) -> AsyncIterator[bytes]:
    offset = 0
    while offset < spool.size:
        chunk = await spool.read(offset, CHUNK_BYTES)
        offset += len(chunk)
        yield chunk


_PROBLEM_HEAD = ResponseHead(507, [("Content-Type", PROBLEM_JSON)])


class TeeSink:
    """Passes a response to its caller and stores it as well, up to `limit` bytes of body.

    With `always` a problem is stored in the place of a larger one.

    Unless `always`, it is stored only if the caller leaves before it is complete. With `always` the caller
    gets the last byte only once the response is stored. If another response is stored already, the caller
    gets no last byte, and `finish` raises AnsweredElsewhere: nobody sees the whole of a response that a
    repeated call would not get.
    """

    def __init__(
        self, caller: Sink, writer: ResultWriter, *, always: bool = True, limit: int = MAX_STORED_STREAM
    ) -> None:
        self._always = always
        self._caller = caller
        self._writer: ResultWriter | None = writer
        self._too_large: ResultWriter | None = None
        self._limit = limit
        self._size = 0
        self._expected: int | None = None
        self._last = b""
        self._caller_left = False
        self.status = 0

    async def start(self, head: ResponseHead) -> None:
        self.status = head.status
        if self._always:
            length = next((value for name, value in head.headers if name.lower() == "content-length"), None)
            self._expected = None if length is None else int(length)
        if self._writer is not None:
            await self._writer.start(head)
        await self._pass(self._caller.start(head))

    async def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._writer is not None and self._size > self._limit:
            self._writer.abort()
            self._too_large, self._writer = self._writer, None
        if self._writer is not None:
            await self._writer.write(data)
            if self._size == self._expected:
                data, self._last = data[:-1], data[-1:]
        if data:
            await self._pass(self._caller.write(data))

    async def finish(self) -> None:
        if self._always and self._writer is not None:
            await self._writer.finish()
            if self._writer.late:
                self._caller.abort()
                raise AnsweredElsewhere("another execution has answered first")
        elif self._always and self._too_large is not None:
            # The call has been executed, and a repetition must not execute it again.
            problem = Problem("Response Not Kept", 507, f"the response has more than {self._limit} bytes")
            await self._too_large.complete(_PROBLEM_HEAD, problem.to_json())
        if self._last:
            await self._pass(self._caller.write(self._last))
        await self._pass(self._caller.finish())
        if not self._always and self._writer is not None:
            if self._caller_left:
                await self._writer.finish()
            else:
                self._writer.abort()

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        self.status = head.status
        await self._pass(self._caller.complete(head, body))
        if self._caller_left and not self._always and self._writer is not None:
            await self._writer.complete(head, body)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()
        self._caller.abort()

    async def _pass(self, step: Coroutine[None, None, None]) -> None:
        if self._caller_left:
            step.close()
            return
        try:
            await step
        except CallerGone:
            if self._writer is None:
                raise
            self._caller_left = True


async def _single(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
