"""What the broker sends a worker: requests, polls and cancel broadcasts."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from nvcf_worker.errors import MalformedWork
from nvcf_worker.exchange.exchange import poll_due
from nvcf_worker.exchange.exchanges import Exchanges
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.message import Work, parse_work
from nvcf_worker.queue.inflight import (
    ACK,
    NAK,
    TERMINATE,
    Delivery,
    InFlight,
    nak_later,
    slotless_delay,
)
from nvcf_worker.queue.planner import Slots
from nvcf_worker.queue.puller import ConsumerLimits
from nvcf_worker.sessions.tunnel import Tunnels

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger("nvcf_worker")

HAND_BACK_WAIT = 1.0
IN_FLIGHT_HERE = b""
"""Reply to a poll: this worker has the request."""

Run = Callable[[Work, CancelScope, Callable[[], None]], Coroutine[Any, Any, bytes | None]]


class Dispatcher:
    """Starts a task for each request that has a slot.

    run: runs a request, and returns how to acknowledge it. dropped: counts malformed messages. draining:
    whether no request is started any more.
    """

    def __init__(
        self,
        inflight: InFlight,
        slots: Slots,
        exchanges: Exchanges,
        tunnels: Tunnels,
        run: Run,
        dropped: Counter[str] | None = None,
    ) -> None:
        self.draining = False
        self._inflight = inflight
        self._slots = slots
        self._exchanges = exchanges
        self._tunnels = tunnels
        self._run = run
        self._dropped = Counter() if dropped is None else dropped
        self._tasks: set[asyncio.Task[None]] = set()

    async def polled(self, message: Msg) -> None:
        """Take a poll of a request that is in flight here; the response goes to the poll's reply address."""
        request_id = message.subject.rpartition(".")[2]
        if not message.data:
            # A gateway only asks whether it is here [ext].
            if self._inflight.get(request_id) is not None:
                await self._inflight.send(message.reply, IN_FLIGHT_HERE)
            return
        if not self._exchanges.is_open(request_id):
            return
        try:
            poll = parse_work(message.data, "", message.headers, region="", now=time.time())
        except MalformedWork as error:
            log.error("ignored a malformed poll on %s: %s", message.subject, error)
            return
        # Before the reply, so that an exchange that is closed meanwhile answers this poll as well.
        self._exchanges.polled(request_id, poll.reply_address, poll_due(poll), poll)
        await self._inflight.send(message.reply, IN_FLIGHT_HERE)

    async def receive(self, message: Msg, region: str, limits: ConsumerLimits) -> None:
        """Take a message of a request stream: start it, or return it to the queue when there is no slot."""
        try:
            work = parse_work(
                message.data,
                message.reply,
                message.headers,
                region=region,
                now=time.time(),
                max_deliver=limits.max_deliver,
            )
        except MalformedWork as error:
            log.error("dropped a malformed message on %s: %s", message.subject, error)
            self._dropped["malformed"] += 1
            await self._inflight.send(message.reply, TERMINATE)
            return
        present = self._inflight.get(work.request_id)
        if present is not None:
            self._inflight.adopt_redelivery(present, work, limits.ack_wait)
            return
        if self.draining or not self._slots.acquire():
            back = NAK if self.draining else nak_later(slotless_delay(work.attempt))
            await self._inflight.send(message.reply, back)
            return
        delivery = self._inflight.add(work, limits.ack_wait)
        delivery.scope.task = task = asyncio.create_task(self._handle(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, delivery: Delivery) -> None:
        ack = await self._run(delivery.work, delivery.scope, functools.partial(self._release_slot, delivery))
        await self._inflight.settle(delivery, ack)

    def _release_slot(self, delivery: Delivery) -> None:
        """Release a request's slot; further calls do nothing."""
        if delivery.holds_slot:
            delivery.holds_slot = False
            self._slots.release()

    async def answered(self, request_id: str) -> None:
        """Acknowledge a request whose caller has been answered although its handler goes on.

        Nobody waits for that handler: not the queue, and not a worker that leaves.
        """
        delivery = self._inflight.get(request_id)
        if delivery is not None:
            if delivery.scope.task is not None:
                self._tasks.discard(delivery.scope.task)
            await self._inflight.settle(delivery, ACK)

    def cancel_request(self, request_id: str) -> None:
        """Stop a request after a cancel broadcast, if it is in flight here."""
        delivery = self._inflight.get(request_id)
        if delivery is not None and not self._tunnels.caller_left(request_id):
            delivery.scope.stop(End.CALLER_GONE)

    async def finish(self, grace: float) -> None:
        """Wait `grace` seconds for the requests in flight, and return the rest to the queue."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        if not self._tasks:
            return
        log.warning("returning %d unfinished requests to the queue", len(self._inflight))
        for delivery in self._inflight:
            delivery.scope.stop(End.HANDED_BACK)
        await asyncio.wait(self._tasks, timeout=HAND_BACK_WAIT)
        # A thread cannot be interrupted. Its request goes back all the same: nobody waits for it here.
        for delivery in self._inflight:
            await self._inflight.settle(delivery, ACK if delivery.scope.end is End.CALLER_GONE else NAK)
