"""The requests in work: finding, signalling, settling them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import nats.errors

from nvcf_proto import settings
from nvcf_worker.message import Work
from nvcf_worker.process.backoff import in_progress_interval
from nvcf_worker.queue.delivery import ActiveRequest, End
from nvcf_worker.queue.journal import Journal
from nvcf_worker.queue.puller import ConsumerLimits

if TYPE_CHECKING:
    from nats.aio.client import Client

log = logging.getLogger("nvcf_worker")

ACK = b"+ACK"
NAK = b"-NAK"
IN_PROGRESS = b"+WPI"
TERMINATE = b"+TERM"


def nak_later(seconds: float) -> bytes:
    """A NAK after which the broker waits before it delivers again (NATS ADR-15)."""
    return b'-NAK {"delay": %d}' % int(seconds * 1e9)


MAX_UNSENT = 10_000


class InFlight:
    """Table of active requests, their journal entries and their acknowledgements."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._active: dict[str, ActiveRequest] = {}
        self._connection: Client | None = None
        # Acknowledgements that no connection would take; sent by the next one.
        self._unsent: deque[tuple[str, bytes]] = deque(maxlen=MAX_UNSENT)
        self._interval = settings.IN_PROGRESS_INTERVAL
        self._signalled_at = 0.0

    def __len__(self) -> int:
        return len(self._active)

    def __iter__(self) -> Iterator[ActiveRequest]:
        return iter(tuple(self._active.values()))

    def get(self, request_id: str) -> ActiveRequest | None:
        """The active request with this id."""
        return self._active.get(request_id)

    def use(self, connection: Client) -> None:
        """Acknowledge through this connection from now on."""
        self._connection = connection

    def add(self, work: Work, limits: ConsumerLimits) -> ActiveRequest:
        """Enter a request into table and journal."""
        ack_wait = limits.ack_wait
        active = ActiveRequest(work, time.monotonic())
        active.max_deliver = limits.max_deliver
        self._active[work.request_id] = active
        if self._journal is not None:
            active.journal_slot = self._journal.add(work.ack_subject, now=work.received_at, ack_wait=ack_wait)
        self._interval = min(self._interval, in_progress_interval(ack_wait))
        return active

    def adopt_redelivery(self, active: ActiveRequest, work: Work, ack_wait: float) -> None:
        """The broker delivered a request again that is still in work here: go on with the new delivery."""
        log.warning("request %s was delivered again while it is in work", work.request_id)
        active.work.ack_subject = work.ack_subject
        active.failed_signals = 0
        if self._journal is not None:
            self._journal.remove(active.journal_slot)
            active.journal_slot = self._journal.add(work.ack_subject, now=work.received_at, ack_wait=ack_wait)

    def tick(self, now: float) -> None:
        """Tell whoever's poll time is over how far its request is. `now` is Unix time."""
        for active in self:
            if active.conversation is not None:
                active.conversation.tick(now)

    async def settle(self, active: ActiveRequest, verdict: bytes | None) -> None:
        """Acknowledge or hand back a request (None: tell the broker nothing) and forget it."""
        if self._active.pop(active.work.request_id, None) is None:
            return
        if verdict is not None:
            await self.send(active.work.ack_subject, verdict)
        if self._journal is not None:
            self._journal.remove(active.journal_slot)

    async def send(self, ack_subject: str, verdict: bytes) -> None:
        """Send an acknowledgement, now or as soon as there is a connection."""
        connection = self._connection
        try:
            if connection is not None and not connection.is_closed:
                await connection.publish(ack_subject, verdict)
                return
        except nats.errors.Error as error:
            log.debug("acknowledgement kept for later: %s", error)
        self._unsent.append((ack_subject, verdict))

    async def send_unsent(self) -> None:
        """Send what earlier connections would not take."""
        for _ in range(len(self._unsent)):
            await self.send(*self._unsent.popleft())

    async def hand_back_leftovers(self) -> None:
        """Return what a killed predecessor held to the queue."""
        if self._journal is None or not self._journal.leftovers:
            return
        now = time.time()
        held = [entry for entry in self._journal.leftovers if entry.still_held(now)]
        for entry in held:
            await self.send(entry.ack_subject, NAK)
        if held:
            log.warning("handed back %d requests that a killed predecessor held", len(held))
        try:
            if held and self._connection is not None:
                await self._connection.flush()
        except nats.errors.Error as error:
            log.warning("could not hand them back now: %s", error)
            return
        self._journal.forget_leftovers()

    async def signal_if_due(self, now: float) -> None:
        """Send the in-progress signals when their interval has passed. `now` is monotonic seconds."""
        if now - self._signalled_at >= self._interval:
            await self.signal(now)

    async def signal(self, now: float) -> None:
        """Tell the broker that all requests are being worked on; stop those that could not be for long."""
        self._signalled_at = now
        if not self._active:
            return
        if self._journal is not None and self._connection is not None and self._connection.is_connected:
            self._journal.heartbeat(time.time())
        for active in self:
            if await self._signal(active):
                active.failed_signals = 0
                continue
            active.failed_signals += 1
            if active.failed_signals >= settings.IN_PROGRESS_MAX_FAILURES:
                log.error("request %s: %s", active.work.request_id, End.CONNECTION_LOST.value)
                active.stop(End.CONNECTION_LOST)

    async def _signal(self, active: ActiveRequest) -> bool:
        connection = self._connection
        # While disconnected nats-py would only buffer the signal, which tells the broker nothing.
        if connection is None or not connection.is_connected:
            return False
        try:
            await connection.publish(active.work.ack_subject, IN_PROGRESS)
        except nats.errors.Error:
            return False
        return True

    def close(self) -> None:
        """Release the journal."""
        if self._journal is not None:
            self._journal.close()
