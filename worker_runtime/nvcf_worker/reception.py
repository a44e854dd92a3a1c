"""What arrives for a worker: requests, polls, cancel broadcasts; and handing back what is left at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from nvcf_worker.errors import MalformedWork
from nvcf_worker.exchange.exchange import poll_due
from nvcf_worker.message import parse_work
from nvcf_worker.queue.delivery import ActiveRequest, End
from nvcf_worker.queue.inflight import ACK, NAK, TERMINATE, InFlight, nak_later
from nvcf_worker.queue.puller import ConsumerLimits
from nvcf_worker.queue.redelivery import exhausted, slotless_delay
from nvcf_worker.queue.slots import Slots
from nvcf_worker.sessions.tunnel import Tunnels

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger("nvcf_worker")

HAND_BACK_WAIT = 1.0
TAKEN = b""
"""Answer to a poll: somebody works on the request."""


class Reception:
    """Starts a task (`run`) for each request that has a slot. `draining`: nothing more is started."""

    def __init__(
        self,
        inflight: InFlight,
        slots: Slots,
        tunnels: Tunnels,
        run: Callable[[ActiveRequest], Coroutine[Any, Any, None]],
    ) -> None:
        self.draining = False
        self._inflight = inflight
        self._slots = slots
        self._tunnels = tunnels
        self._run = run
        self._tasks: set[asyncio.Task[None]] = set()

    async def polled(self, message: Msg) -> None:
        """A poll: say that the request is in work here, if it is; the answer goes through the poll's door."""
        active = self._inflight.get(message.subject.rpartition(".")[2])
        if active is None or active.conversation is None or active.conversation.closed:
            return
        try:
            poll = parse_work(message.data, "", message.headers, region="", now=time.time())
        except MalformedWork as error:
            log.error("ignored a malformed poll on %s: %s", message.subject, error)
            return
        conversation = active.conversation
        # First, so that a conversation that closes meanwhile answers this poll as well.
        conversation.polled(poll.door, poll_due(poll))
        await self._inflight.send(message.reply, TAKEN)

    async def receive(self, message: Msg, region: str, limits: ConsumerLimits) -> None:
        """Take a message of a request stream: start it, or hand it back when there is no slot."""
        try:
            work = parse_work(message.data, message.reply, message.headers, region=region, now=time.time())
        except MalformedWork as error:
            log.error("dropped a malformed message on %s: %s", message.subject, error)
            await self._inflight.send(message.reply, TERMINATE)
            return
        present = self._inflight.get(work.request_id)
        if present is not None:
            self._inflight.adopt_redelivery(present, work, limits.ack_wait)
            return
        # The last delivery is only answered, which needs no slot; handed back it would never come again.
        last = exhausted(work.attempt, limits.max_deliver)
        if not last and (self.draining or not self._slots.take()):
            back = NAK if self.draining else nak_later(slotless_delay(work.attempt))
            await self._inflight.send(message.reply, back)
            return
        active = self._inflight.add(work, limits)
        active.holds_slot = not last
        active.task = asyncio.create_task(self._run(active))
        self._tasks.add(active.task)
        active.task.add_done_callback(self._tasks.discard)

    def cancel_request(self, request_id: str) -> None:
        """A cancel broadcast: stop the request if it is one of ours."""
        active = self._inflight.get(request_id)
        if active is not None and not self._tunnels.caller_left(request_id):
            active.stop(End.CALLER_GONE)

    async def finish(self, grace: float) -> None:
        """Wait `grace` seconds for what is in work, and hand the rest back to the queue."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        if not self._tasks:
            return
        log.warning("handing %d unfinished requests back to the queue", len(self._inflight))
        for active in self._inflight:
            active.stop(End.HANDED_BACK)
        await asyncio.wait(self._tasks, timeout=HAND_BACK_WAIT)
        # Threads cannot be interrupted; their requests go back all the same, nobody waits for them here.
        for active in self._inflight:
            await self._inflight.settle(active, ACK if active.end is End.CALLER_GONE else NAK)


def release(slots: Slots, active: ActiveRequest) -> None:
    """Free a request's slot, once."""
    if active.holds_slot:
        active.holds_slot = False
        slots.give_back()
