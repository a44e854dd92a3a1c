"""Enqueue one call and wait for its response."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

from nvcf_broker.errors import BrokerError
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import (
    CallerGone,
    HttpProblem,
    NoRoom,
    NotEnqueued,
    NotStored,
    QueueFull,
    StoreUnavailable,
)
from nvcf_gateway.exchange.call import Call
from nvcf_gateway.exchange.pending import Outcome, Pending, PendingRequests
from nvcf_gateway.exchange.reply_subjects import ReplySubjects
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.exchange.states import State
from nvcf_gateway.queue.demand import Demand, Tally
from nvcf_gateway.queue.message import Delivery, Work, build_request, message_headers
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.results.idempotency_keys import PUBLISH_SECONDS
from nvcf_gateway.results.retention import Retention
from nvcf_gateway.telemetry.enqueue_span import EnqueueTelemetry
from nvcf_proto.h1 import H1Error
from nvcf_proto.ids import new_id
from nvcf_proto.settings import CALL_MAX_SECONDS, GATEWAY_EXTRA_WAIT

_log = logging.getLogger(__name__)

Withdrawn = Callable[[], Awaitable[None]]
Publishing = asyncio.Task[tuple[int | None, Mapping[str, str]]]
"""Publishes a request; its result is the stream sequence and the trace context that went with it."""


class Ended(Enum):
    """How a wait ended."""

    ANSWERED = auto()
    """The sink has the whole response."""
    BROKEN = auto()
    """The response broke off; the sink was aborted."""
    TIME_OVER = auto()
    """No response came, and the request is withdrawn."""
    REJECTED = auto()
    """The request cannot be served, and is withdrawn."""
    KEPT = auto()
    """No response came; the request stays queued and can be polled."""


class StillQueued(HttpProblem):
    """No response, and nothing certain: a repeated call with the same key finds out."""


def stays_queued(ended: Ended, *, keyed: bool, published: bool) -> bool:
    """Decide whether a request that nobody waits for any more stays in the queue.

    An answered one is removed by its worker. If a worker left in the middle of its response, the queue
    delivers the request again, and a call that repeats the key gets the next response.
    """
    if ended is Ended.BROKEN:
        return keyed and published
    return ended in (Ended.ANSWERED, Ended.KEPT)


@dataclass(frozen=True, slots=True, eq=False)
class CallRunner:
    """Enqueues calls and waits for their responses."""

    config: GatewayConfig
    replies: ReplySubjects
    attach_url: Callable[[], str]
    queue: RequestQueue
    pending: PendingRequests
    retention: Retention
    background: BackgroundTasks
    demand: Demand
    telemetry: EnqueueTelemetry

    async def run(
        self, call: Call, sink: Sink, trace: Mapping[str, str], withdrawn: Withdrawn | None = None
    ) -> Ended:
        """Enqueue the call and wait for its response in `sink`.

        `trace` holds the caller's trace headers. `withdrawn` is called if the caller leaves and the call
        cannot go on without it. Raises HttpProblem 413, 429, 503 and 504.
        """
        with self.demand.counted(call.version.id) as tally:
            return await self._run(call, sink, trace, tally, withdrawn)

    async def _run(
        self, call: Call, sink: Sink, trace: Mapping[str, str], tally: Tally, withdrawn: Withdrawn | None
    ) -> Ended:
        loop = asyncio.get_running_loop()
        # The poll time counts from when the call arrived, its body included.
        began = loop.time() - max(0.0, time.time() - call.started)
        pending = Pending(call.request_id, call.version.id, sink, call.body, call.head)
        pending.longest = began + CALL_MAX_SECONDS
        if call.full_by_attach or not call.body.complete:
            pending.request_token = new_id()
        if call.keep_queued:
            pending.storage = self.retention.kept_later(call)
            pending.stores_inline = call.keyed
        # Workers of third-party platforms get a longer poll time for a kept call, so none answers at its end.
        extra = 0.0 if call.keep_queued and self.config.wide_inbox else GATEWAY_EXTRA_WAIT
        deadline = began + call.poll_seconds + extra
        sequence: int | None = None
        published = False
        publishing: Publishing | None = None
        ended = Ended.BROKEN
        self.pending.add(pending)
        try:
            # Whoever repeats the key has to know when nothing more can come of this call.
            until = min(deadline, loop.time() + PUBLISH_SECONDS) if call.keyed else deadline
            publish = self._publish(call, pending, trace, until)
            if call.keyed:
                # It goes on if the caller leaves now: the request may be in the queue already.
                publishing = self.background.spawn(publish, f"publish {call.request_id}", logged=False)
                sequence, sent = await asyncio.shield(publishing)
            else:
                sequence, sent = await publish
            pending.set_deadline(deadline - GATEWAY_EXTRA_WAIT, self._look)
            published = True
            pending.again = partial(self._publish, call, pending, trace, deadline)
            if await self.demand.queued(call.version.id, call.request_id, sent):
                pending.on_response = self.telemetry.cold_start(call.version, call.request_id)
            # Thousands wait here at a time: what is no longer needed goes, and nothing is called to wait.
            del sent
            outcome = await pending.outcome
            ended = await self._ended(outcome, call, pending, sink)
            if ended is Ended.REJECTED and pending.problem is not None:
                raise pending.problem
            tally.answered = ended is Ended.ANSWERED
            tally.failed = pending.status >= 500 if tally.answered else ended is not Ended.KEPT
            return ended
        except StillQueued:
            ended = Ended.KEPT
            raise
        except asyncio.CancelledError:
            if publishing is not None and self._outlive(call, pending, publishing, withdrawn):
                ended = Ended.KEPT
            raise
        finally:
            pending.again = None
            pending.clear_deadline()
            if ended is not Ended.KEPT:
                stays = stays_queued(ended, keyed=call.keyed, published=published)
                self._forget(call, pending, sequence, withdraw=not stays)

    def _look(self, pending: Pending) -> None:
        """End a wait whose poll time is over, unless a worker has the request: that says so itself."""
        self.background.spawn(self._end_if_queued(pending), f"look for {pending.request_id}")

    async def _end_if_queued(self, pending: Pending) -> None:
        with contextlib.suppress(BrokerError):
            place = await self.queue.place(pending.version_id, pending.request_id, self.config.region)
            if place == "queued":
                pending.give_way()

    async def _ended(self, outcome: Outcome, call: Call, pending: Pending, sink: Sink) -> Ended:
        match outcome:
            case Outcome.TIME_OVER:
                kept = pending.storage is not None and await self._keep(call, pending)
                return Ended.KEPT if kept else Ended.TIME_OVER
            case Outcome.REJECTED:
                return Ended.REJECTED
            case Outcome.CUT_OFF:
                sink.abort()
                raise HttpProblem(504, "the call took longer than a call may last")
            case Outcome.BROKEN:
                sink.abort()
                return Ended.BROKEN
            case Outcome.INLINE:
                await _complete(pending, sink)
        return Ended.ANSWERED

    async def _keep(self, call: Call, pending: Pending) -> bool:
        if pending.state is not State.ANSWERED:
            self.pending.retain(pending, self.config.results_ttl)
        try:
            return await self.retention.keep(call, pending, told=True)
        except BrokerError as error:
            if not call.keyed:
                return False
            raise StillQueued(503, str(error), headers={"Retry-After": "1"}) from None

    def _outlive(
        self, call: Call, pending: Pending, publishing: Publishing, withdrawn: Withdrawn | None
    ) -> bool:
        """Let the call go on without its caller; return False if its response is there already."""
        if pending.state is State.ANSWERED:
            return False
        pending.detach()
        self.pending.retain(pending, self.config.results_ttl)
        self.background.spawn(self._secure(call, pending, publishing, withdrawn), f"keep {call.request_id}")
        return True

    async def _secure(
        self, call: Call, pending: Pending, publishing: Publishing, withdrawn: Withdrawn | None
    ) -> None:
        sequence: int | None = None
        try:
            sequence, _ = await publishing
            kept = await self.retention.keep(call, pending, told=False)
        except (NoRoom, NotEnqueued):
            kept = False
        except (BrokerError, HttpProblem):
            # It stays where it is: whoever repeats the call with its key finds it, or finds it lost.
            return
        if not kept:
            self._forget(call, pending, sequence, withdraw=True)
            if withdrawn is not None:
                await withdrawn()

    async def _publish(
        self, call: Call, pending: Pending, trace: Mapping[str, str], deadline: float
    ) -> tuple[int | None, Mapping[str, str]]:
        """Enqueue the call; return its stream sequence and the trace context that went with it."""
        work = Work(
            request_id=call.request_id,
            nca_id=call.caller.nca_id,
            subject=call.caller.subject,
            method=call.head.method,
            path=call.head.target,
            headers=call.head.headers,
            requested_at=int(call.started * 1e9),
            large_response_url=call.large_response_url,
            assets=call.assets,
        )
        delivery = Delivery(self.attach_url(), pending.response_token, pending.request_token)
        payload = build_request(work, delivery, call.body.prefix, full_by_attach=call.full_by_attach)
        inline = self.config.inline_reply_bytes
        reply = await self.replies.subject(call.version.id, pending.inline_token) if inline else None
        sending = self.telemetry.enqueue(call.version, call.request_id, len(payload), trace)
        headers = message_headers(sending.carrier, reply, inline, kept=call.keep_queued)
        try:
            with sending:
                sequence = await self.queue.publish(
                    call.version.id,
                    call.request_id,
                    payload,
                    headers,
                    deadline=deadline,
                    answered=lambda: not pending.open,
                )
            return sequence, headers
        except QueueFull as error:
            raise NoRoom(str(error)) from None
        except BrokerError as error:
            _log.error("%s", error, extra={"request_id": call.request_id})
            kind = NotEnqueued if isinstance(error, NotStored) else StoreUnavailable
            raise kind(str(error)) from None

    def _forget(self, call: Call, pending: Pending, sequence: int | None, *, withdraw: bool) -> None:
        self.pending.remove(pending)
        pending.notify(answered=False)
        pending.withdraw()
        call.body.close()
        if withdraw:
            if pending.republished:
                sequence = None
            if pending.streaming is not None:
                pending.streaming.cancel()
            self.background.spawn(self._withdraw(call, sequence), f"withdraw {call.request_id}")

    async def _withdraw(self, call: Call, sequence: int | None) -> None:
        """Cancel the request at its worker and take it out of the queue."""
        try:
            await self.queue.cancel(call.version.id, call.request_id)
            await self.queue.remove(call.version.id, call.request_id, sequence)
        except BrokerError as error:
            _log.warning("%s", error, extra={"request_id": call.request_id})


async def _complete(pending: Pending, sink: Sink) -> None:
    assert pending.inline is not None  # noqa: S101 # set together with Outcome.INLINE
    head, body = pending.inline
    try:
        await sink.complete(head, body)
    except CallerGone:
        # Delivered as far as the worker is concerned.
        return
    except H1Error as error:
        sink.abort()
        _log.warning("inline response dropped: %s", error, extra={"request_id": pending.request_id})
