"""Ask the worker that holds a request for its response, or how far it is (protocol.md, section 2.8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import nats.errors

from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.access.authorization import Caller
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import CallerGone
from nvcf_gateway.exchange.bodies import empty_body
from nvcf_gateway.exchange.pending import Outcome, Pending, PendingRequests
from nvcf_gateway.exchange.reply_subjects import ReplySubjects
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.exchange.states import State
from nvcf_gateway.queue.message import Delivery, Work, build_request, message_headers
from nvcf_gateway.results.idempotency_keys import Claim
from nvcf_gateway.results.result_writer import KeptRequest
from nvcf_gateway.results.tracking import Tracked
from nvcf_gateway.telemetry.enqueue_span import outgoing_context, poll_span
from nvcf_proto.h1 import RequestHead
from nvcf_proto.models import FunctionVersion
from nvcf_proto.settings import CALL_MAX_SECONDS
from nvcf_proto.subjects import polling_subject, version_polling_subject

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
    claim: Claim | None = None
    """Of a call that repeats an earlier one: what its key stands for."""
    body: str = ""
    """Digest of that call's body."""


class QueryResult(Enum):
    """What a query came to."""

    NOT_ACKNOWLEDGED = auto()
    """No worker holds the request."""
    ANSWERED = auto()
    """The sink has a response, perhaps a 202."""
    TIME_OVER = auto()
    """A worker holds it and did not answer in time."""
    BROKEN = auto()
    """The response broke off; the sink was aborted."""
    STORED = auto()
    """The response went to the store meanwhile."""


class Acknowledged(Enum):
    """Whether a worker has taken the query."""

    YES = auto()
    NO = auto()
    PERHAPS = auto()


class Afterwards(Enum):
    """What becomes of the reply address of a query whose caller no longer waits."""

    VOID = auto()
    """It is void."""
    CARRY_ON = auto()
    """The response that has begun is taken to its end, and no other."""
    STORE = auto()
    """A response that still comes is stored."""


def afterwards(state: State, acknowledged: Acknowledged) -> Afterwards:
    """Decide what becomes of a query's reply address."""
    match state:
        case State.ANSWERED:
            return Afterwards.VOID
        case State.STREAMING | State.STORING:
            return Afterwards.CARRY_ON
        case State.WAITING if acknowledged is Acknowledged.NO:
            return Afterwards.VOID
        case _:
            # A worker that has the query answers by this address and by no other.
            return Afterwards.STORE


def query_result(outcome: Outcome) -> QueryResult:
    """Return what a query came to whose wait ended so."""
    match outcome:
        case Outcome.INLINE | Outcome.STREAMED:
            return QueryResult.ANSWERED
        case Outcome.TIME_OVER:
            return QueryResult.TIME_OVER
        case _:
            return QueryResult.BROKEN


@dataclass(frozen=True, slots=True, eq=False)
class WorkerQuery:
    """Lets a worker answer a poll as it answers a request: by the tokens of this very poll."""

    config: GatewayConfig
    replies: ReplySubjects
    attach_url: Callable[[], str]
    requests: ReplyInbox
    pending: PendingRequests

    def close(self, request_id: str) -> None:
        """Take no response of the request here any more."""
        pending = self.pending.detached(request_id)
        if pending is not None:
            pending.notify(answered=False)
            self.pending.remove(pending)

    async def ask(self, poll: Poll, sink: Sink, kept: KeptRequest, stored: asyncio.Event) -> QueryResult:
        """Query the worker, and wait for its response in `sink` until the poll's deadline or until `stored`.

        A worker that has the query answers by this poll's tokens and no others: if the caller stops waiting
        first, the response goes to `kept`.
        """
        request_id = poll.tracked.request_id
        head = RequestHead("GET", poll.version.inference_url, poll.headers)
        pending = Pending(
            request_id,
            poll.version.id,
            sink,
            empty_body(),
            head,
            storage=kept,
            stores_inline=poll.tracked.retained,
        )
        pending.longest = asyncio.get_running_loop().time() + CALL_MAX_SECONDS
        self.pending.add(pending)
        acknowledged = Acknowledged.PERHAPS
        try:
            with poll_span(poll.version, request_id):
                acknowledged = await self._acknowledged(poll, pending)
            if acknowledged is not Acknowledged.YES:
                return QueryResult.NOT_ACKNOWLEDGED
            pending.set_deadline(poll.deadline)
            result = await self._result(pending, sink, stored, kept)
            if result is QueryResult.STORED:
                acknowledged = Acknowledged.NO
            return result
        finally:
            self._release(pending, acknowledged)

    def _release(self, pending: Pending, acknowledged: Acknowledged) -> None:
        pending.clear_deadline()
        match afterwards(pending.state, acknowledged):
            case Afterwards.VOID:
                self.pending.remove(pending)
                pending.withdraw()
            case Afterwards.CARRY_ON:
                self.pending.remove(pending)
                pending.detach()
            case Afterwards.STORE:
                pending.detach()
                self.pending.expire(pending, CALL_MAX_SECONDS)

    async def _acknowledged(self, poll: Poll, pending: Pending) -> Acknowledged:
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
            work, Delivery(self.attach_url(), pending.response_token, None), b"", full_by_attach=False
        )
        inline = self.config.inline_reply_bytes
        reply = await self.replies.subject(pending.version_id, pending.inline_token) if inline else None
        headers = message_headers(outgoing_context(dict(poll.headers)), reply, inline)
        subjects = (
            version_polling_subject(pending.version_id, pending.request_id),
            polling_subject(pending.request_id),
        )
        acknowledged = Acknowledged.NO
        for subject in subjects:
            try:
                await self.requests.request(subject, payload, timeout=ACKNOWLEDGE_TIMEOUT, headers=headers)
            except nats.errors.NoRespondersError:
                continue
            except TimeoutError:
                # Somebody listens, busy with an earlier poll perhaps, and may take it later.
                acknowledged = Acknowledged.PERHAPS
                continue
            return Acknowledged.YES
        # A response without an acknowledgement is a response all the same.
        return acknowledged if pending.open else Acknowledged.YES

    @staticmethod
    async def _result(pending: Pending, sink: Sink, stored: asyncio.Event, kept: KeptRequest) -> QueryResult:
        noticed = asyncio.ensure_future(stored.wait())
        outcome = pending.outcome
        either: set[asyncio.Future[Any]] = {outcome, noticed}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if pending.state is State.STREAMING:
                await asyncio.wait({outcome})
        finally:
            noticed.cancel()
        if not outcome.done():
            return QueryResult.STORED
        result = query_result(outcome.result())
        if result is QueryResult.BROKEN:
            sink.abort()
        elif pending.inline is not None and pending.inline[0].status == 202 and await kept.is_stored():
            # The worker answered a late poll with its progress when the response was already on its way.
            return QueryResult.STORED
        elif pending.inline is not None:
            with contextlib.suppress(CallerGone):
                await sink.complete(*pending.inline)
        return result
