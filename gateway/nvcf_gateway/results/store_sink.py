"""Sinks that keep an answer instead of, or besides, handing it to a caller."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectExistsError
from nvcf_gateway.errors import AnsweredElsewhere, CallerGone, HttpProblem
from nvcf_gateway.exchange.bodies import CHUNK_BYTES, Spool
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.results.store import ResultStore
from nvcf_proto.h1 import ResponseHead

_log = logging.getLogger(__name__)

NO_RESULT = frozenset((202,))
NO_RESULT_OF_KEY = frozenset((202, 502))
"""A 502 says that the request did not get through, its body lost with a gateway perhaps: a call repeated with
the same key is run again."""


class ParkingSink:
    """Spools an answer and parks it when it is complete.

    What has a status in `no_result` is dropped: a 202, after which the worker goes on. `finish` and
    `complete` raise HttpProblem 503 when the store does not take the answer, so that the worker tries again.
    The first answer of a request stays; a later one is dropped and leaves `late` set.
    """

    def __init__(
        self,
        store: ResultStore,
        request_id: str,
        function_id: str,
        version_id: str,
        *,
        memory_bytes: int,
        directory: Path | None,
        no_result: frozenset[int] = NO_RESULT,
    ) -> None:
        self._no_result = no_result
        self._store = store
        self._request_id = request_id
        self._function_id = function_id
        self._version_id = version_id
        self._memory_bytes = memory_bytes
        self._directory = directory
        self._spool = Spool(memory_bytes, directory)
        self._head: ResponseHead | None = None
        self.late = False

    async def start(self, head: ResponseHead) -> None:
        self._spool.close()
        self._spool = Spool(self._memory_bytes, self._directory)
        self._head = head

    async def write(self, data: bytes) -> None:
        await self._spool.append(data)

    async def finish(self) -> None:
        if self._head is not None:
            await self._park(self._head, self._spooled(), self._spool.size)
        self._spool.close()

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        await self._park(head, _once(body), len(body))

    def abort(self) -> None:
        self._spool.close()

    async def _park(self, head: ResponseHead, body: AsyncIterator[bytes], size: int) -> None:
        if head.status in self._no_result:
            return
        try:
            await self._store.park(
                self._request_id, self._function_id, self._version_id, head, body, size=size
            )
        except ObjectExistsError:
            self.late = True
        except BrokerError as error:
            _log.warning("answer not parked: %s", error, extra={"request_id": self._request_id})
            raise HttpProblem(503, "the answer cannot be stored now", headers={"Retry-After": "1"}) from None

    async def _spooled(self) -> AsyncIterator[bytes]:
        offset = 0
        while offset < self._spool.size:
            chunk = await self._spool.read(offset, CHUNK_BYTES)
            offset += len(chunk)
            yield chunk


class TeeSink:
    """Hands an answer to its caller and keeps it as well, up to `limit` bytes of body.

    Unless `always`, it is kept only when the caller left before it was complete. With `always` the caller
    has the whole answer only once it is kept, and never one that differs from what is kept: the last byte
    waits for that. Then `finish` raises AnsweredElsewhere.
    """

    def __init__(self, caller: Sink, parking: ParkingSink, limit: int, *, always: bool = True) -> None:
        self._always = always
        self._caller = caller
        self._parking: ParkingSink | None = parking
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
        if self._parking is not None:
            await self._parking.start(head)
        await self._tell(self._caller.start(head))

    async def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._parking is not None and self._size > self._limit:
            self._parking.abort()
            self._parking = None
        if self._parking is not None:
            await self._parking.write(data)
        if self._parking is not None and self._size == self._expected:
            data, self._last = data[:-1], data[-1:]
        if data:
            await self._tell(self._caller.write(data))

    async def finish(self) -> None:
        if self._always and self._parking is not None:
            await self._parking.finish()
            if self._parking.late:
                self._caller.abort()
                raise AnsweredElsewhere("another execution has answered first")
        if self._last:
            await self._tell(self._caller.write(self._last))
        await self._tell(self._caller.finish())
        if not self._always and self._parking is not None:
            await (self._parking.finish() if self._caller_left else self._drop())

    async def complete(self, head: ResponseHead, body: bytes) -> None:
        self.status = head.status
        await self._tell(self._caller.complete(head, body))
        if self._caller_left and not self._always and self._parking is not None:
            await self._parking.complete(head, body)

    def abort(self) -> None:
        if self._parking is not None:
            self._parking.abort()
        self._caller.abort()

    async def _drop(self) -> None:
        if self._parking is not None:
            self._parking.abort()

    async def _tell(self, step: Coroutine[None, None, None]) -> None:
        if self._caller_left:
            step.close()
            return
        try:
            await step
        except CallerGone:
            if self._parking is None:
                raise
            self._caller_left = True


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
