"""Status routes: polls for the response of a request that was answered 202 (protocol.md, section 4.11)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectMissingError
from nvcf_gateway.access.authorization import Authenticator, Authorizer, Caller
from nvcf_gateway.access.revocations import Revocations
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import CallerGone, HttpProblem, broker_errors
from nvcf_gateway.exchange.bodies import BodyTooLarge
from nvcf_gateway.exchange.call import Call, caller_poll_seconds, raw_headers
from nvcf_gateway.exchange.response_headers import (
    IN_PROGRESS,
    PENDING_EVALUATION,
    path_headers,
    raw_progress,
    wrapped_progress,
    wrapped_response,
)
from nvcf_gateway.exchange.sinks import CollectSink, Sink, StreamSink
from nvcf_gateway.http.responses import cors_headers
from nvcf_gateway.queue.message import forwarded_headers
from nvcf_gateway.queue.request_queue import Place, RequestQueue
from nvcf_gateway.results.idempotency_keys import UNREAD, Claim, IdempotencyKeys, is_same_body, patience
from nvcf_gateway.results.result_writer import TeeSink
from nvcf_gateway.results.retention import Retention
from nvcf_gateway.results.store import ResultStore
from nvcf_gateway.results.tracking import Tracked
from nvcf_gateway.results.worker_query import Poll, QueryResult, WorkerQuery
from nvcf_gateway.telemetry.http_span import set_request, set_version
from nvcf_proto.errors import H1Error, InvalidId
from nvcf_proto.h1 import ResponseHead
from nvcf_proto.ids import parse_id
from nvcf_proto.models import Scope
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.settings import GATEWAY_EXTRA_WAIT, MAX_DIRECT_RESPONSE

_log = logging.getLogger(__name__)

QUERY_INTERVAL = 1.0
DISCARD_DELAY = 60.0
NOT_QUEUED = "the first call with this Idempotency-Key is not queued yet: send it again"
NOT_ACKNOWLEDGED = "worker did not acknowledge the status request."


def status_of(place: Place | None) -> str:
    """Return the status of a request that nobody has answered."""
    return PENDING_EVALUATION if place == "queued" else IN_PROGRESS


def may_be_on_its_way(poll: Poll, now: float) -> bool:
    """Decide whether a request that is found nowhere may not have reached the queue yet."""
    return poll.tracked.retained and now < poll.lost_after


async def _whole_digest(call: Call, deadline: float) -> str:
    """Return the digest of a repeated call's body. Raises HttpProblem 408 and 413."""
    try:
        async with asyncio.timeout_at(deadline):
            await call.body.drain()
    except TimeoutError:
        raise HttpProblem(408, "the body did not arrive within the poll time") from None
    except BodyTooLarge as error:
        raise HttpProblem(413, str(error)) from None
    return call.body.digest or ""


@dataclass(frozen=True, slots=True, eq=False)
class Poller:
    """Answers polls: from the stored results, from the worker that holds the request, or by waiting."""

    query: WorkerQuery
    authenticator: Authenticator
    authorizer: Authorizer
    queue: RequestQueue
    retention: Retention
    background: BackgroundTasks
    keys: IdempotencyKeys
    revocations: Revocations

    async def pexec(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/pexec/status/{requestId}."""
        poll = await self._poll(request, values)
        with self.revocations.call(poll.caller, poll.version.function_id):
            return await self._raw(request, poll)

    async def exec(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/exec/status/{requestId}."""
        poll = await self._poll(request, values)
        with self.revocations.call(poll.caller, poll.version.function_id):
            return await self._wrapped(poll)

    async def follow(
        self, request: web.BaseRequest, claim: Claim, call: Call, *, wrapped: bool
    ) -> web.StreamResponse:
        """Follow the request that an idempotency key stands for; `call` is the repeated one.

        Raises HttpProblem 422 if that has another body.
        """
        version = self.authorizer.followed(call.caller, call.version.function_id, claim.version_id)
        if claim.region not in self.retention.results:
            raise HttpProblem(503, f"the call with this Idempotency-Key is in region {claim.region}")
        ids = (claim.request_id, claim.region, version.function_id, version.id)
        tracked = Tracked(*ids, int(call.started * 1e9), retained=True, nca_id=call.caller.nca_id)
        now = asyncio.get_running_loop().time()
        deadline = now + call.poll_seconds + GATEWAY_EXTRA_WAIT
        headers = forwarded_headers(
            raw_headers(request), call.poll_seconds, self.queue.region, pass_through=False
        )
        lost_after = now + patience(claim, time.time())
        poll = Poll(call.caller, tracked, version, headers, deadline, call.started, lost_after)
        poll = replace(poll, claim=claim, body=await _whole_digest(call, deadline))
        try:
            return await (self._wrapped(poll) if wrapped else self._raw(request, poll))
        except HttpProblem as problem:
            if problem.status != 504:
                raise
            # Its gateway died before it was queued, or its response has been dropped.
            with contextlib.suppress(BrokerError):
                await self.keys.release(claim)
            detail = "the first call with this Idempotency-Key came to nothing: send it again"
            raise HttpProblem(503, detail, headers={"Retry-After": "0"}) from None

    async def status(self, version_id: str, request_id: str, region: str) -> str:
        """Look up the status of a request that nobody has answered."""
        try:
            return status_of(await self.queue.place(version_id, request_id, region))
        except BrokerError:
            return PENDING_EVALUATION

    async def _raw(self, request: web.BaseRequest, poll: Poll) -> web.StreamResponse:
        cors = cors_headers(request.headers)
        request_id = poll.tracked.request_id
        sink = StreamSink(request, lambda head: path_headers(head, request_id, list(cors.items())))
        status = await self._answer(poll, sink)
        if status is not None:
            return raw_progress(request_id, status, cors)
        if sink.response is None:
            raise HttpProblem(502, "the worker left in the middle of its response")
        return sink.response

    async def _wrapped(self, poll: Poll) -> web.StreamResponse:
        sink = CollectSink(MAX_DIRECT_RESPONSE)
        status = await self._answer(poll, sink)
        if status is not None:
            return wrapped_progress(poll.tracked.request_id, status)
        if sink.head is None:
            raise HttpProblem(502, "the worker left in the middle of its response")
        return wrapped_response(poll.tracked.request_id, sink.head, sink.body)

    async def cancel(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """[ext] DELETE /v2/nvcf/pexec/status/{requestId}: cancel the request."""
        tracked = (await self._poll(request, values)).tracked
        with broker_errors():
            await self.queue.cancel(tracked.version_id, tracked.request_id)
            await self.queue.remove(tracked.version_id, tracked.request_id, None, tracked.region)
            await self._discard(tracked)
            await self._forget(tracked)
        self.query.close(tracked.request_id)
        return web.Response(status=204)

    async def _poll(self, request: web.BaseRequest, values: dict[str, str]) -> Poll:
        caller = self.authenticator.caller(request.headers)
        caller.require(Scope.INVOKE)
        seconds = caller_poll_seconds(request, path_route=True)
        try:
            request_id = parse_id(values["request_id"], "request id")
        except InvalidId as error:
            raise HttpProblem(404, str(error)) from None
        tracked = await self.tracked(caller, request_id)
        version = self.authorizer.followed(caller, tracked.function_id, tracked.version_id)
        set_version(version)
        set_request(request_id, tracked.trace)
        deadline = asyncio.get_running_loop().time() + seconds + GATEWAY_EXTRA_WAIT
        headers = forwarded_headers(raw_headers(request), seconds, self.queue.region, pass_through=False)
        return Poll(caller, tracked, version, headers, deadline, time.time())

    async def tracked(self, caller: Caller, request_id: str) -> Tracked:
        """Return the place of a caller's request. Raises HttpProblem 404 and 503."""
        with broker_errors():
            tracked = await self._find(request_id)
            # Another account's request looks like one that does not exist.
            if tracked is None or await self._account(tracked) != caller.nca_id:
                raise HttpProblem(404, f"no request {request_id}: unknown, or answered already")
        return replace(tracked, nca_id=caller.nca_id)

    async def _find(self, request_id: str) -> Tracked | None:
        """Find a request by its tracking record, else by its stored response, which lives longer."""
        tracked = await self.retention.tracking.find(request_id)
        if tracked is not None:
            return tracked
        for region, store in self.retention.results.items():
            stored = await store.find(request_id)
            if stored is not None:
                ids = (stored.function_id, stored.version_id)
                return Tracked(request_id, region, *ids, 0, retained=not stored.once, nca_id=stored.nca_id)
        return None

    async def _account(self, tracked: Tracked) -> str:
        """Return the account that made a call. Raises BrokerError."""
        if tracked.nca_id:
            return tracked.nca_id
        # The record is of another service: the request itself names the account.
        queued = await self.queue.find(tracked.version_id, tracked.request_id)
        if queued is not None:
            return nvcf_pb2.WorkerInvokeFunctionRequest.FromString(queued.data).ncaId
        return self.authorizer.owner(tracked.function_id)

    def _store(self, tracked: Tracked) -> ResultStore:
        return self.retention.results[tracked.region]

    async def _answer(self, poll: Poll, sink: CollectSink | StreamSink) -> str | None:
        """Answer into `sink`, or return the status of a 202."""
        loop = asyncio.get_running_loop()
        until = poll.deadline
        tracked, store = poll.tracked, self._store(poll.tracked)
        of = (poll.caller.nca_id, tracked.function_id, tracked.version_id)
        kept = self.retention.kept(
            tracked.request_id, of, tracked.region, keyed=tracked.retained, once=not tracked.retained
        )
        with store.announcement(tracked.request_id) as announced:
            while True:
                announced.clear()
                with broker_errors():
                    if not await self._is_same(poll):
                        await self._wait_for_body(poll)
                        continue
                    if await self._fetch(poll, sink):
                        return None
                    # Stored besides if others may ask for it, else only if this caller leaves.
                    tee = TeeSink(sink, kept.sink(), always=tracked.retained)
                    match await self.query.ask(
                        poll, tee, replace(kept, tracking=self.retention.tracking), announced
                    ):
                        case QueryResult.ANSWERED:
                            await self._delivered(poll, sink.head)
                            return None
                        case QueryResult.BROKEN:
                            raise HttpProblem(502, "the worker left in the middle of its response")
                        case QueryResult.TIME_OVER:
                            # Another execution may have been faster, and its response is stored.
                            if await self._fetch(poll, sink):
                                return None
                            return await self._still(poll, IN_PROGRESS)
                        case QueryResult.NOT_ACKNOWLEDGED:
                            place = await self.queue.place(
                                tracked.version_id, tracked.request_id, tracked.region
                            )
                            missing = place is None and not announced.is_set()
                            missing = missing and not await store.has(tracked.request_id)
                            if missing and await self._is_lost(poll):
                                raise HttpProblem(504, NOT_ACKNOWLEDGED)
                            # Only a worker is given the extra time.
                            until = poll.deadline - (GATEWAY_EXTRA_WAIT if place == "queued" else 0.0)
                            if loop.time() >= until:
                                if missing:
                                    # A 202 would promise what is not there.
                                    raise HttpProblem(503, NOT_QUEUED, headers={"Retry-After": "1"})
                                return await self._still(poll, status_of(place))
                await _wait(announced, min(QUERY_INTERVAL, until - loop.time()))

    async def _is_lost(self, poll: Poll) -> bool:
        """Find out whether a request that is neither in the queue nor answered came to nothing."""
        if may_be_on_its_way(poll, asyncio.get_running_loop().time()):
            # Unless its key has been given back.
            return poll.claim is not None and await self._current(poll.claim) is None
        return True

    async def _current(self, claim: Claim) -> Claim | None:
        """Return the claim as it is now, None if the key no longer stands for that request."""
        found = await self.keys.current(claim.subject)
        return found if found is not None and found.request_id == claim.request_id else None

    async def _is_same(self, poll: Poll) -> bool:
        """Return whether a repeated call is known to be the first one's. Raises HttpProblem 422 if it is not.

        A poll repeats nothing. A key that is free again leaves nothing to compare with.
        """
        if poll.claim is None or is_same_body(poll.claim.body, poll.body):
            return True
        found = await self._current(poll.claim)
        return found is None or is_same_body(found.body, poll.body)

    async def _wait_for_body(self, poll: Poll) -> None:
        """Wait for the first call's body. Raises HttpProblem 503 and 504 when it does not come."""
        tracked, now = poll.tracked, asyncio.get_running_loop().time()
        if now >= poll.deadline:
            detail = "the body of the first call with this Idempotency-Key is still coming: send it again"
            raise HttpProblem(503, detail, headers={"Retry-After": "1"})
        place = await self.queue.place(tracked.version_id, tracked.request_id, tracked.region)
        answered = await self._store(tracked).has(tracked.request_id)
        if place is None and not answered and await self._is_lost(poll):
            raise HttpProblem(504, NOT_ACKNOWLEDGED)
        if poll.claim is not None and answered:
            # Its gateway records the digest before it stores the response. Another gateway has stored this.
            found = await self._current(poll.claim)
            if found is not None:
                is_same_body(found.body or UNREAD, poll.body)
        await asyncio.sleep(min(QUERY_INTERVAL, poll.deadline - now))

    async def _fetch(self, poll: Poll, sink: Sink) -> bool:
        """Answer from the result store; return False if there is nothing."""
        store = self._store(poll.tracked)
        stored = await store.find(poll.tracked.request_id)
        if stored is None:
            return False
        chunks = store.read(stored)
        try:
            # Before the head goes out: what has lost its bytes is no answer.
            first = await anext(chunks, b"")
        except ObjectMissingError:
            raise HttpProblem(504, NOT_ACKNOWLEDGED) from None
        try:
            await sink.start(stored.head)
            if first:
                await sink.write(first)
            async for chunk in chunks:
                await sink.write(chunk)
            await sink.finish()
        except (BrokerError, H1Error) as error:
            _log.warning("stored result: %s", error, extra={"request_id": poll.tracked.request_id})
            sink.abort()
            raise HttpProblem(503, "the stored answer cannot be read now") from None
        except CallerGone:
            # It remains: the caller may ask again.
            return True
        await self._delivered(poll, stored.head)
        return True

    async def _delivered(self, poll: Poll, head: ResponseHead | None) -> None:
        """End the tracking record after any response but 202; delete the stored result a little later.

        Not at once, because another poll may be reading it.
        """
        if head is not None and head.status == 202:
            await self.retention.tracking.record(poll.tracked)
            return
        await self._forget(poll.tracked)
        if poll.tracked.retained:
            return
        self.background.spawn_later(
            DISCARD_DELAY, lambda: self._discard(poll.tracked), f"discard {poll.tracked.request_id}"
        )

    async def _forget(self, tracked: Tracked) -> None:
        await self.retention.tracking.forget(tracked.region, tracked.request_id, overflow=tracked.overflow)

    async def _discard(self, tracked: Tracked) -> None:
        await self._store(tracked).discard(tracked.request_id)
        await self.retention.drop_body(tracked.request_id)

    async def _still(self, poll: Poll, status: str) -> str:
        # A record lives an hour: as long as somebody asks, it is renewed.
        await self.retention.tracking.record(poll.tracked)
        return status


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
