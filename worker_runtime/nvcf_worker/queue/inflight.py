"""The requests in flight: keep them alive at the broker, and acknowledge them.

A request that goes back to the queue after its handler has been started is noted as an attempt, so that one
that kills its worker on every try ends with a response. One that is only handed back does not count.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nats.errors

from nvcf_proto import settings
from nvcf_proto.subjects import started_subject
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.message import Work
from nvcf_worker.process.durations import in_progress_interval
from nvcf_worker.queue.journal import Journal

if TYPE_CHECKING:
    from nats.aio.client import Client

log = logging.getLogger("nvcf_worker")

ACK = b"+ACK"
NAK = b"-NAK"
IN_PROGRESS = b"+WPI"
TERMINATE = b"+TERM"

MAX_UNSENT = 10_000
"""Acknowledgements that are kept while there is no connection."""


def nak_later(seconds: float) -> bytes:
    """Encode a NAK after which the broker waits before it delivers the request again (NATS ADR-15)."""
    return b'-NAK {"delay": %d}' % int(seconds * 1e9)


def slotless_delay(attempt: int) -> float:
    """Return the seconds before a request that found no slot is delivered again.

    Without a delay, the queue and busy workers would do nothing else. attempt: 1 for the first delivery.
    """
    return float(0.1 * 4.0 ** min(attempt - 1, 4))


@dataclass(slots=True, eq=False)
class Delivery:
    """A request that JetStream delivered to this worker, until it is acknowledged.

    failed_signals: in-progress signals in a row that could not be sent.
    """

    work: Work
    scope: CancelScope = field(default_factory=CancelScope)
    holds_slot: bool = True
    journal_slot: int = -1
    failed_signals: int = 0


class InFlight:
    """Table of the requests in flight, with their journal entries and acknowledgements."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._deliveries: dict[str, Delivery] = {}
        self._connection: Client | None = None
        # Acknowledgements that no connection would take; the next connection sends them.
        self._unsent: deque[tuple[str, bytes]] = deque(maxlen=MAX_UNSENT)
        self._interval = settings.IN_PROGRESS_INTERVAL
        self._signalled_at = 0.0

    def __len__(self) -> int:
        return len(self._deliveries)

    def __iter__(self) -> Iterator[Delivery]:
        return iter(tuple(self._deliveries.values()))

    def get(self, request_id: str) -> Delivery | None:
        """Return the request with this id."""
        return self._deliveries.get(request_id)

    def use(self, connection: Client) -> None:
        """Send acknowledgements through this connection from now on."""
        self._connection = connection

    def add(self, work: Work, ack_wait: float) -> Delivery:
        """Add a request to the table and to the journal."""
        delivery = self._deliveries[work.request_id] = Delivery(work)
        self._write_down(delivery, work, ack_wait)
        self._interval = min(self._interval, in_progress_interval(ack_wait))
        return delivery

    def adopt_redelivery(self, delivery: Delivery, work: Work, ack_wait: float) -> None:
        """Acknowledge by the newer delivery: the broker delivered a request again that still runs here."""
        log.warning("request %s was delivered again while it is in flight", work.request_id)
        delivery.work.ack_subject = work.ack_subject
        delivery.failed_signals = 0
        self._write_down(delivery, work, ack_wait)

    def _write_down(self, delivery: Delivery, work: Work, ack_wait: float) -> None:
        if self._journal is not None:
            self._journal.remove(delivery.journal_slot)
            now = work.received_at
            delivery.journal_slot = self._journal.add(work.ack_subject, now=now, ack_wait=ack_wait)

    async def settle(self, delivery: Delivery, ack: bytes | None) -> None:
        """Acknowledge a request (None: send the broker nothing) and remove it."""
        if self._deliveries.pop(delivery.work.request_id, None) is None:
            return
        if ack is not None:
            if ack.startswith(NAK) and delivery.scope.end is not End.HANDED_BACK:
                await self._note_attempt(delivery.work.ack_subject)
            await self.send(delivery.work.ack_subject, ack)
        if self._journal is not None:
            self._journal.remove(delivery.journal_slot)

    async def send(self, ack_subject: str, ack: bytes) -> None:
        """Send an acknowledgement, now or as soon as there is a connection."""
        connection = self._connection
        try:
            if connection is not None and not connection.is_closed:
                await connection.publish(ack_subject, ack)
                return
        except nats.errors.Error as error:
            log.debug("acknowledgement kept for later: %s", error)
        self._unsent.append((ack_subject, ack))

    async def _note_attempt(self, ack_subject: str) -> None:
        subject = started_subject(ack_subject)
        if subject is not None:
            await self.send(subject, b"")

    async def send_unsent(self) -> None:
        """Send the acknowledgements that earlier connections would not take."""
        for _ in range(len(self._unsent)):
            await self.send(*self._unsent.popleft())

    async def nak_orphans(self) -> None:
        """Return the requests of a predecessor that was killed to the queue."""
        if self._journal is None or not self._journal.orphans:
            return
        now = time.time()
        held = [entry for entry in self._journal.orphans if entry.still_held(now)]
        for entry in held:
            await self._note_attempt(entry.ack_subject)
            await self.send(entry.ack_subject, NAK)
        if held:
            log.warning("returned %d requests of a killed predecessor to the queue", len(held))
        try:
            if held and self._connection is not None:
                await self._connection.flush()
        except nats.errors.Error as error:
            log.warning("they could not be returned now: %s", error)
            return
        self._journal.forget_orphans()

    async def signal_if_due(self, now: float) -> None:
        """Send the in-progress signals when their interval has passed. `now` is monotonic seconds."""
        if now - self._signalled_at >= self._interval:
            await self.signal(now)

    async def signal(self, now: float) -> None:
        """Send in-progress signals for all requests; stop those that have had none for too long."""
        self._signalled_at = now
        if not self._deliveries:
            return
        if self._journal is not None and self._connection is not None and self._connection.is_connected:
            self._journal.heartbeat(time.time())
        for delivery in self:
            delivery.failed_signals = 0 if await self._signal(delivery) else delivery.failed_signals + 1
            if delivery.failed_signals >= settings.IN_PROGRESS_MAX_FAILURES:
                log.error("request %s: %s", delivery.work.request_id, End.CONNECTION_LOST.value)
                delivery.scope.stop(End.CONNECTION_LOST)

    async def _signal(self, delivery: Delivery) -> bool:
        connection = self._connection
        # While disconnected, nats-py would only buffer the signal.
        if connection is None or not connection.is_connected:
            return False
        try:
            await connection.publish(delivery.work.ack_subject, IN_PROGRESS)
        except nats.errors.Error:
            return False
        return True

    def close(self) -> None:
        """Release the journal."""
        if self._journal is not None:
            self._journal.close()
