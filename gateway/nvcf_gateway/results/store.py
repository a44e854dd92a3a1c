"""Responses that nobody waits for, stored until any replica is polled (protocol.md, section 4.9)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry import metrics

from nvcf_broker.objects import BucketFullError, ObjectBucket, StoredObject
from nvcf_proto.h1 import ResponseHead

_log = logging.getLogger(__name__)

RESULT_SUBJECTS = "nvcf.result"
COUNT_CHECK_EVERY = 64

_evicted = metrics.get_meter("nvcf_gateway").create_counter(
    "nvcf.gateway.results.evicted", unit="{result}", description="Stored results dropped to make room"
)
_stored = metrics.get_meter("nvcf_gateway").create_counter(
    "nvcf.gateway.results.parked", unit="{result}", description="Results that nobody waited for"
)


@dataclass(frozen=True)
class StoredResult:
    """A stored response; `ResultStore.read` reads its body."""

    function_id: str
    version_id: str
    head: ResponseHead
    stored: StoredObject


class ResultStore:
    """Stored responses of one region, bounded in life, size and number; the oldest go first."""

    def __init__(self, client: Client, bucket: ObjectBucket, max_count: int) -> None:
        self._client = client
        self._bucket = bucket
        self._max_count = max_count
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._count = 0

    async def start(self) -> None:
        """Create the bucket and listen for results that other replicas store. Raises BrokerError."""
        await self._bucket.ensure()
        await self._client.subscribe(f"{RESULT_SUBJECTS}.*", cb=self._announced)

    async def save(
        self,
        request_id: str,
        function_id: str,
        version_id: str,
        head: ResponseHead,
        body: AsyncIterable[bytes],
        *,
        size: int,
    ) -> None:
        """Store a response of `size` bytes and announce it to all replicas.

        Only the first response of a request counts. Raises ObjectExistsError for a later one, BrokerError.
        """
        headers = {
            "function": function_id,
            "version": version_id,
            "status": str(head.status),
            "headers": json.dumps(head.headers),
        }
        await self._make_room(size)
        await self._bucket.put(request_id, body, headers, replace=False)
        _stored.add(1)
        await self._client.publish(f"{RESULT_SUBJECTS}.{request_id}", b"")

    async def find(self, request_id: str) -> StoredResult | None:
        """Return the stored response of a request, None if there is none. Raises BrokerError."""
        stored = await self._bucket.find(request_id)
        if stored is None:
            return None
        headers = [(str(name), str(value)) for name, value in json.loads(stored.headers["headers"])]
        head = ResponseHead(int(stored.headers["status"]), headers)
        return StoredResult(stored.headers["function"], stored.headers["version"], head, stored)

    def read(self, result: StoredResult) -> AsyncIterator[bytes]:
        """Read the body of a response. Raises BrokerError on the way."""
        return self._bucket.read(result.stored)

    async def discard(self, request_id: str) -> None:
        """Delete a response. Raises BrokerError."""
        await self._bucket.delete(request_id)

    @contextlib.contextmanager
    def announcement(self, request_id: str) -> Iterator[asyncio.Event]:
        """Return an event that is set when any replica stores a response of the request."""
        event = asyncio.Event()
        self._waiting.setdefault(request_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[request_id]
            events.discard(event)
            if not events:
                del self._waiting[request_id]

    async def _announced(self, message: Msg) -> None:
        for event in self._waiting.get(message.subject.rpartition(".")[2], ()):
            event.set()

    async def _make_room(self, size: int) -> None:
        # Counting reads all names: not for every response.
        self._count += 1
        if self._count % COUNT_CHECK_EVERY == 1:
            count, _ = await self._bucket.usage()
            for _ in range(max(0, count - self._max_count + COUNT_CHECK_EVERY)):
                await self._evict_oldest()
        limit = self._bucket.max_bytes
        if limit < 0:
            return
        needed = size + self._bucket.overhead(size)
        if needed > limit:
            raise BucketFullError(f"the answer of {size} bytes is larger than the store for answers")
        while (await self._bucket.bytes_used()) + needed > limit:
            if not await self._evict_oldest():
                break

    async def _evict_oldest(self) -> bool:
        oldest = await self._bucket.oldest()
        if oldest is None or not await self._bucket.delete(oldest.name):
            return False
        _evicted.add(1)
        _log.warning("stored result dropped to make room", extra={"request_id": oldest.name})
        return True
