"""Responses that nobody waits for, stored until any replica is polled (protocol.md, section 4.9)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry import metrics

from nvcf_broker.objects import ObjectBucket, ObjectExistsError, StoredObject
from nvcf_gateway.durability import Durability
from nvcf_gateway.quotas.kept_answers import KeptAnswers
from nvcf_proto.h1 import ResponseHead

RESULT_SUBJECTS = "nvcf.result"

_stored = metrics.get_meter("nvcf_gateway").create_counter(
    "nvcf.gateway.results.parked", unit="{result}", description="Results that nobody waited for"
)


@dataclass(frozen=True)
class StoredResult:
    """A stored response; `ResultStore.read` reads its body. `once`: it goes when it has been fetched."""

    nca_id: str
    function_id: str
    version_id: str
    head: ResponseHead
    stored: StoredObject
    once: bool


class ResultStore:
    """Stored responses of one region. Each lives its time, and none goes to make room for another."""

    def __init__(
        self, client: Client, bucket: ObjectBucket, durability: Durability, kept: KeptAnswers
    ) -> None:
        self._durability = durability
        self._kept = kept
        self._client = client
        self._bucket = bucket
        self._waiting: dict[str, set[asyncio.Event]] = {}

    async def start(self) -> None:
        """Create the bucket and listen for results that other replicas store. Raises BrokerError."""
        await self._bucket.ensure()
        await self._client.subscribe(f"{RESULT_SUBJECTS}.*", cb=self._announced)

    async def save(
        self,
        request_id: str,
        nca_id: str,
        function_id: str,
        version_id: str,
        head: ResponseHead,
        body: AsyncIterable[bytes],
        *,
        once: bool,
    ) -> None:
        """Store a response and announce it to all replicas. `once`: it goes when it has been fetched.

        Only the first response of a request counts. Raises ObjectExistsError for a later one, BrokerError.
        """
        headers = {
            "account": nca_id,
            "function": function_id,
            "version": version_id,
            "status": str(head.status),
            "headers": json.dumps(head.headers),
        }
        if once:
            headers["once"] = "true"
        try:
            stored = await self._bucket.put(request_id, body, headers, replace=False)
        except ObjectExistsError:
            # The worker of this one is told that there is a response, so that one has to last as well.
            await self._durability.commit()
            raise
        self._kept.add(nca_id, stored.size)
        await self._durability.commit()
        _stored.add(1)
        await self._client.publish(f"{RESULT_SUBJECTS}.{request_id}", b"")

    async def find(self, request_id: str) -> StoredResult | None:
        """Return the stored response of a request, None if there is none. Raises BrokerError."""
        stored = await self._bucket.find(request_id)
        if stored is None:
            return None
        headers = [(str(name), str(value)) for name, value in json.loads(stored.headers["headers"])]
        head = ResponseHead(int(stored.headers["status"]), headers)
        once = "once" in stored.headers
        of = (stored.headers.get("account", ""), stored.headers["function"], stored.headers["version"])
        return StoredResult(*of, head, stored, once)

    async def has(self, request_id: str) -> bool:
        """Return whether a response is stored, by the word of the store's leader. Raises BrokerError.

        A replica may lag behind, and without a response the request may be executed again.
        """
        return await self._bucket.has(request_id)

    def read(self, result: StoredResult) -> AsyncIterator[bytes]:
        """Read the body of a response. Raises BrokerError on the way."""
        return self._bucket.read(result.stored)

    async def discard(self, request_id: str) -> None:
        """Delete a response. Raises BrokerError."""
        stored = await self._bucket.find(request_id)
        if stored is not None and await self._bucket.delete(request_id):
            self._kept.remove(stored.headers.get("account", ""), stored.size)

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
