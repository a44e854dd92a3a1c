"""Asking the worker that holds a request for its answer, or how far it is (section 2, polling)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import nats.errors

from nvcf_broker.requests import BrokerRequests
from nvcf_gateway.auth import Caller
from nvcf_gateway.bodies import CallerBody
from nvcf_gateway.calls import BytesSource
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import CallerGone
from nvcf_gateway.pending import Keeper, Outcome, Pending, PendingRequests
from nvcf_gateway.sinks import Sink
from nvcf_gateway.tracking import Tracked
from nvcf_gateway.work import Delivery, Work, build_request, message_headers
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


class WorkerDoor:
    """Lets a worker answer a poll as it answers a request: by the tokens of this very poll."""

    def __init__(
        self,
        config: GatewayConfig,
        gateway_id: str,
        attach_url: Callable[[], str],
        requests: BrokerRequests,
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
            self._pending.remove(pending)

    async def ask(self, poll: Poll, sink: Sink, keeper: Keeper | None, parked: asyncio.Event) -> Asked:
        """Ask, and wait for the answer in `sink` until the poll's deadline, or until it is parked.

        `keeper` stores an inline answer before the worker learns that it was delivered.
        """
        request_id = poll.tracked.request_id
        head = RequestHead("GET", poll.version.inference_url, poll.headers)
        body = CallerBody(BytesSource(b""), 0, spool_memory_bytes=0)
        pending = Pending(request_id, poll.version.id, sink, body, head, keeper=keeper)
        pending.longest = asyncio.get_running_loop().time() + CALL_MAX_SECONDS
        self._pending.add(pending)
        try:
            if not await self._acknowledged(poll, pending):
                return Asked.NOT_ACKNOWLEDGED
            pending.set_deadline(poll.deadline)
            return await self._outcome(pending, sink, parked)
        finally:
            pending.clear_deadline()
            self._pending.remove(pending)
            if not pending.outcome.done():
                if pending.streaming is None:
                    pending.outcome.cancel()
                else:
                    # The caller has left in the middle of the answer: it is taken to its end, and kept.
                    pending.carry_on()

    async def _acknowledged(self, poll: Poll, pending: Pending) -> bool:
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
        headers = message_headers(dict(poll.headers), reply, inline)
        subjects = (
            version_polling_subject(pending.version_id, pending.request_id),
            polling_subject(pending.request_id),
        )
        for subject in subjects:
            try:
                await self._requests.request(subject, payload, timeout=ACKNOWLEDGE_TIMEOUT, headers=headers)
            except (nats.errors.NoRespondersError, TimeoutError):
                continue
            return True
        # An answer without an acknowledgement is an answer all the same.
        return not pending.open

    @staticmethod
    async def _outcome(pending: Pending, sink: Sink, parked: asyncio.Event) -> Asked:
        noticed = asyncio.ensure_future(parked.wait())
        either: set[asyncio.Future[Any]] = {pending.outcome, noticed}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if pending.streaming is not None:
                await asyncio.wait({pending.outcome})
        finally:
            noticed.cancel()
        if not pending.outcome.done():
            return Asked.PARKED
        match pending.outcome.result():
            case Outcome.INLINE if pending.inline is not None:
                try:
                    await sink.complete(*pending.inline)
                except CallerGone:
                    return Asked.ANSWERED
                return Asked.ANSWERED
            case Outcome.STREAMED:
                return Asked.ANSWERED
            case Outcome.TIME_OVER if pending.streaming is None:
                return Asked.TIME_OVER
            case _:
                sink.abort()
                return Asked.BROKEN
