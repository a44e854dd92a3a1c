"""Queues as they are now, read from JetStream; who asks again within a second gets the same answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_proto import subjects

LIFE_SECONDS = 1.0
TIMEOUT = 2.0
AT_ONCE = 16
MOST_KEPT = 10_000


@dataclass(frozen=True)
class Queue:
    """One version, all regions together: requests that wait, that workers hold, and the oldest one's age."""

    queued: int = 0
    in_flight: int = 0
    oldest_seconds: float | None = None

    def joined(self, other: Queue) -> Queue:
        """Both together."""
        ages = [each for each in (self.oldest_seconds, other.oldest_seconds) if each is not None]
        return Queue(
            self.queued + other.queued, self.in_flight + other.in_flight, max(ages) if ages else None
        )


class Queues:
    """Reads queues."""

    def __init__(self, requests: Requester, regions: tuple[str, ...]) -> None:
        self._jetstream = JetStream(requests, TIMEOUT)
        self._regions = regions
        self._seen: dict[str, tuple[float, Queue]] = {}

    async def read(self, versions: Iterable[str]) -> dict[str, Queue]:
        """State of these versions' queues. One whose broker does not answer in time is left out."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(version_id: str) -> tuple[str, Queue | None]:
            async with gate:
                return version_id, await self._version(version_id)

        found = await asyncio.gather(*(one(version_id) for version_id in versions))
        return {version_id: queue for version_id, queue in found if queue is not None}

    async def _version(self, version_id: str) -> Queue | None:
        now = time.monotonic()
        seen = self._seen.get(version_id)
        if seen is not None and now - seen[0] < LIFE_SECONDS:
            return seen[1]
        total = Queue()
        try:
            for region in self._regions:
                total = total.joined(await self._region(region, version_id))
        except (BrokerError, ValueError):
            return None
        if len(self._seen) >= MOST_KEPT:
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
        """Seconds since the first message from `sequence` on was stored; None if it is gone by now."""
        message = await self._jetstream.direct_get(
            subjects.request_stream(region, version_id),
            seq=sequence,
            next_by_subj=subjects.request_subjects(region, version_id),
        )
        stamp = None if message is None else (message.headers or {}).get("Nats-Time-Stamp")
        if stamp is None:
            return None
        return max(0.0, time.time() - datetime.fromisoformat(stamp).timestamp())
