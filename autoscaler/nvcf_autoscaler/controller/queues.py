"""Requests of a version that are queued and in flight, over all regions, read from JetStream."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from nvcf_broker.jetstream import JetStream, Requester
from nvcf_proto import subjects

TIMEOUT = 3.0
# An age is too high by at most this part of the longest wait in the queue.
RESOLUTION = 512


class QueueAge:
    """How long the oldest waiting request of a queue has waited. Pure; instants are Unix seconds.

    JetStream reports how many requests were delivered and how many wait, but not since when. Requests are
    delivered in order, so it is enough to remember when the number of stored requests grew. An age is late by
    at most the time between two samples.
    """

    def __init__(self) -> None:
        self._grown: list[tuple[float, int]] = []
        self._stored: int | None = None

    def sample(self, now: float, delivered: int, pending: int) -> float | None:
        """Add a sample and return the age of the oldest waiting request, 0 if none waits.

        None if it came before the first sample. Then call `began`.
        """
        stored = delivered + pending
        known, self._stored = self._stored, stored
        # Fewer than before: some were cancelled while they waited.
        while self._grown and self._grown[-1][1] > stored:
            at, _ = self._grown.pop()
            if not self._grown or self._grown[-1][1] < stored:
                self._grown.append((at, stored))
                break
        if known is not None and stored > known:
            self._add(now, stored)
        first = next((index for index, (_, upto) in enumerate(self._grown) if upto > delivered), None)
        if not pending or first is None:
            self._grown.clear()
            return None if pending else 0.0
        del self._grown[:first]
        return max(0.0, now - self._grown[0][0])

    def began(self, now: float, at: float) -> float:
        """Set the instant at which the first waiting request came, and return its age."""
        if self._stored is not None:
            self._grown.insert(0, (at, self._stored))
        return max(0.0, now - at)

    def _add(self, now: float, stored: int) -> None:
        if self._grown:
            last = self._grown[-1][0]
            if now - last < (now - self._grown[0][0]) / RESOLUTION:
                # A long backlog does not need exact instants.
                self._grown[-1] = (last, stored)
                return
        self._grown.append((now, stored))


@dataclass(frozen=True)
class QueueState:
    """Requests of a version. `stored` counts all ever queued; `age` is that of the oldest waiting one."""

    queued: int = 0
    in_flight: int = 0
    stored: int = 0
    age: float = 0.0


async def read_queue(
    requests: Requester,
    regions: tuple[str, ...],
    version_id: str,
    ages: dict[str, QueueAge] | None = None,
) -> QueueState:
    """Return the sum of the version's queues. A missing queue is empty. Raises BrokerError.

    `ages` keeps the state of each region's queue between two calls.
    """
    jetstream = JetStream(requests, TIMEOUT)
    queued = in_flight = stored = 0
    oldest = 0.0
    for region in regions:
        stream = subjects.request_stream(region, version_id)
        consumer = subjects.request_consumer(region, version_id)
        info = await jetstream.consumer_info(stream, consumer)
        if info is None:
            continue
        pending, delivered = info.pending, info.delivered
        queued += pending
        in_flight += info.ack_pending
        stored += delivered + pending
        if ages is not None:
            known = ages.setdefault(region, QueueAge())
            age = known.sample(time.time(), delivered, pending)
            if age is None:
                age = known.began(time.time(), await _first_stored(jetstream, stream))
            oldest = max(oldest, age)
    return QueueState(queued, in_flight, stored, oldest)


async def _first_stored(jetstream: JetStream, stream: str) -> float:
    """Return when the oldest request in the stream was stored, waiting or in flight (Unix seconds)."""
    info = await jetstream.stream_info(stream)
    text = "" if info is None else info.first_time
    try:
        at = datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()
    # The first_ts of an empty stream is in the year 1.
    return at if at > 0 else time.time()
