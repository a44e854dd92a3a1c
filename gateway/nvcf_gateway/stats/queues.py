"""The current state of queues, read from JetStream and cached for a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_proto import subjects

CACHE_SECONDS = 1.0
TIMEOUT = 2.0
MAX_CONCURRENT = 16
MAX_CACHED = 10_000


@dataclass(frozen=True)
class Queue:
    """A version's queue over all regions: requests that wait and are in flight, age of the oldest."""

    queued: int = 0
    in_flight: int = 0
    oldest_seconds: float | None = None

    def plus(self, other: Queue) -> Queue:
        """Return the sum of both."""
        ages = [each for each in (self.oldest_seconds, other.oldest_seconds) if each is not None]
        return Queue(
            self.queued + other.queued, self.in_flight + other.in_flight, max(ages) if ages else None
        )


class Queues:
    """Reads the queues of versions."""

    def __init__(self, requests: Requester, regions: tuple[str, ...]) -> None:
        self._jetstream = JetStream(requests, TIMEOUT)
        self._regions = regions
        self._seen: dict[str, tuple[float, Queue]] = {}

    async def read(self, versions: Iterable[str]) -> dict[str, Queue]:
        """Return the queues of these versions, without those whose broker does not reply in time."""
        gate = asyncio.Semaphore(MAX_CONCURRENT)

        async def one(version_id: str) -> tuple[str, Queue | None]:
            async with gate:
                return version_id, await self._version(version_id)

        found = await asyncio.gather(*(one(version_id) for version_id in versions))
        return {version_id: queue for version_id, queue in found if queue is not None}

    async def _version(self, version_id: str) -> Queue | None:
        now = time.monotonic()
        seen = self._seen.get(version_id)
        if seen is not None and now - seen[0] < CACHE_SECONDS:
            return seen[1]
        total = Queue()
        try:
            for region in self._regions:
                total = total.plus(await self._region(region, version_id))
        except (BrokerError, ValueError):
            return None
        if len(self._seen) >= MAX_CACHED:
            self._seen.clear()
        self._seen[version_id] = (now, total)
        return total

    async def _region(self, region: str, version_id: str) -> Queue:
        stream = subjects.request_stream(region, version_id)
        consumer = subjects.request_consumer(region, version_id)
        info = await self._jetstream.consumer_info(stream, consumer)
        if info is None:
            return Queue()
        if not info.pending:
            return Queue(0, info.ack_pending)
        age = await self._age(region, version_id, info.delivered + 1)
        return Queue(info.pending, info.ack_pending, age)

    async def _age(self, region: str, version_id: str, sequence: int) -> float | None:
        """Return the age in seconds of the first message from `sequence` on; None if there is none."""
        message = await self._jetstream.direct_get(
            subjects.request_stream(region, version_id),
            seq=sequence,
            next_by_subj=subjects.request_subjects(region, version_id),
        )
        stamp = None if message is None else (message.headers or {}).get("Nats-Time-Stamp")
        if stamp is None:
            return None
        return max(0.0, time.time() - datetime.fromisoformat(stamp).timestamp())
