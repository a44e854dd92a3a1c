"""Asking the worker that holds a request for its answer, or how far it is (section 2, polling)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import nats.errors

from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.access.authorization import Caller
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import CallerGone
from nvcf_gateway.exchange.bodies import CallerBody
from nvcf_gateway.exchange.call import BytesSource
from nvcf_gateway.exchange.pending import Keeper, Outcome, Pending, PendingRequests
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.queue.message import Delivery, Work, build_request, message_headers
from nvcf_gateway.results.tracking import Tracked
from nvcf_gateway.telemetry.enqueue_span import outgoing_context, poll_span
from nvcf_proto.h1 import RequestHead
from nvcf_proto.models import FunctionVersion
from nvcf_proto.settings import CALL_MAX_SECONDS
from nvcf_proto.subjects import inline_reply_subject, polling_subject, version_polling_subject

ACKNOWLEDGE_TIMEOUT = 2.0


@dataclass(frozen=True)
class Poll:
    """One status request. `deadline` is loop time, `started` Unix time in seconds."""

    caller: Caller
    tracked: Tracked
    version: FunctionVersion
    headers: list[tuple[str, str]]
    deadline: float
    started: float
    lost_after: float = 0.0
    """Loop time until which a request that is found nowhere may still be on its way to the queue."""
    stays: bool = False
    """Whether a parked answer stays for others who ask with the same idempotency key."""


class Asked(Enum):
    """What came of it."""

    NOT_ACKNOWLEDGED = auto()
    """No worker holds the request."""
    ANSWERED = auto()
    """The sink has an answer, a 202 perhaps."""
    TIME_OVER = auto()
    """A worker holds it and did not answer in time."""
    BROKEN = auto()
    """The answer broke off; the sink was aborted."""
    PARKED = auto()
    """The answer went to the store meanwhile."""


class Taken(Enum):
    """Whether a worker has the question."""

    YES = auto()
    NO = auto()
    PERHAPS = auto()


class WorkerDoor:
    """Lets a worker answer a poll as it answers a request: by the tokens of this very poll."""

    def __init__(
        self,
        config: GatewayConfig,
        gateway_id: str,
        attach_url: Callable[[], str],
        requests: ReplyInbox,
        pending: PendingRequests,
    ) -> None:
        self._config = config
        self._gateway_id = gateway_id
        self._attach_url = attach_url
        self._requests = requests
        self._pending = pending

    def close(self, request_id: str) -> None:
        """No answer of the request is taken here any more."""
        pending = self._pending.detached(request_id)
        if pending is not None:
            pending.tell(answered=False)
            self._pending.remove(pending)

    async def ask(
        self,
        poll: Poll,
        sink: Sink,
        keeper: Keeper | None,
        parked: asyncio.Event,
        park: Callable[[], tuple[Sink, Keeper]],
    ) -> Asked:
        """Ask, and wait for the answer in `sink` until the poll's deadline, or until it is parked.

        `keeper` stores an inline answer before the worker learns that it was delivered. A worker that has
        been asked answers by this poll's tokens and no others: when the caller stops waiting first, the
        answer goes where `park` says.
        """
        request_id = poll.tracked.request_id
        head = RequestHead("GET", poll.version.inference_url, poll.headers)
        body = CallerBody(BytesSource(b""), 0, spool_memory_bytes=0)
        pending = Pending(request_id, poll.version.id, sink, body, head, keeper=keeper)
        pending.longest = asyncio.get_running_loop().time() + CALL_MAX_SECONDS
        self._pending.add(pending)
        taken = Taken.PERHAPS
        try:
            with poll_span(poll.version, request_id):
                taken = await self._acknowledged(poll, pending)
            if taken is not Taken.YES:
                return Asked.NOT_ACKNOWLEDGED
            pending.keep = park
            pending.set_deadline(poll.deadline)
            asked = await self._outcome(pending, sink, parked)
            if asked is Asked.PARKED:
                taken = Taken.NO
            return asked
        finally:
            self._let_go(pending, taken, park)

    def _let_go(self, pending: Pending, taken: Taken, park: Callable[[], tuple[Sink, Keeper]]) -> None:
        pending.clear_deadline()
        if pending.outcome.done() and not pending.detached:
            self._pending.remove(pending)
        elif pending.streaming is not None:
            # The caller has left in the middle of the answer: it is taken to its end, and kept.
            self._pending.remove(pending)
            pending.carry_on()
        elif taken is Taken.NO:
            self._pending.remove(pending)
            pending.outcome.cancel()
        else:
            if not pending.detached:
                pending.outlive(*park())
            self._pending.keep_for(pending, CALL_MAX_SECONDS)

    async def _acknowledged(self, poll: Poll, pending: Pending) -> Taken:
        work = Work(
            request_id=pending.request_id,
            nca_id=poll.caller.nca_id,
            subject=poll.caller.subject,
            method=pending.head.method,
            path=pending.head.target,
            headers=pending.head.headers,
            requested_at=int(poll.started * 1e9),
        )
        payload = build_request(
            work, Delivery(self._attach_url(), pending.response_token, None), b"", full_by_attach=False
        )
        inline = self._config.inline_reply_bytes
        reply = inline_reply_subject(self._gateway_id, pending.inline_token) if inline else None
        headers = message_headers(outgoing_context(dict(poll.headers)), reply, inline)
        subjects = (
            version_polling_subject(pending.version_id, pending.request_id),
            polling_subject(pending.request_id),
        )
        taken = Taken.NO
        for subject in subjects:
            try:
                await self._requests.request(subject, payload, timeout=ACKNOWLEDGE_TIMEOUT, headers=headers)
            except nats.errors.NoRespondersError:
                continue
            except TimeoutError:
                # Somebody listens, busy with an earlier poll perhaps, and may take it later.
                taken = Taken.PERHAPS
                continue
            return Taken.YES
        # An answer without an acknowledgement is an answer all the same.
        return taken if pending.open else Taken.YES

    @staticmethod
    async def _outcome(pending: Pending, sink: Sink, parked: asyncio.Event) -> Asked:
        noticed = asyncio.ensure_future(parked.wait())
        # At the deadline the door gets another one, for whoever comes later.
        outcome = pending.outcome
        either: set[asyncio.Future[Any]] = {outcome, noticed}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if pending.streaming is not None:
                await asyncio.wait({outcome})
        finally:
            noticed.cancel()
        if not outcome.done():
            return Asked.PARKED
        match outcome.result():
            case Outcome.INLINE if pending.inline is not None:
                try:
                    await sink.complete(*pending.inline)
                except CallerGone:
                    return Asked.ANSWERED
                return Asked.ANSWERED
            case Outcome.STREAMED:
                return Asked.ANSWERED
            case Outcome.TIME_OVER if pending.detached or pending.streaming is None:
                return Asked.TIME_OVER
            case _:
                sink.abort()
                return Asked.BROKEN
