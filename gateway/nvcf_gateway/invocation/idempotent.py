"""Execute a call at most once for each idempotency key ([ext])."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import HttpProblem, NotEnqueued
from nvcf_gateway.exchange.bodies import CallerBody
from nvcf_gateway.exchange.call import Call, raw_headers
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.invocation.waiting import CallRunner, Ended
from nvcf_gateway.quotas.limits import QuotaExceeded
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.results.idempotency_keys import (
    HEADER,
    UNREAD,
    Claim,
    Fingerprint,
    IdempotencyKeys,
    checked_key,
    head_digest,
)
from nvcf_gateway.results.result_writer import TeeSink, is_result
from nvcf_gateway.results.retention import BODY_PATIENCE, Retention

_log = logging.getLogger(__name__)


def holds_key(ended: Ended | BaseException, status: int) -> bool:
    """Decide whether a key still stands for its call after the attempt to enqueue and execute the call.

    `ended` is the result of the attempt, `status` that of the response. The key is free again when nothing
    of the call can be executed any more and there is no response to repeat. In all unclear cases it stays:
    a request that the broker has not acknowledged may be in the queue all the same, and so may one whose
    caller left meanwhile. A second execution must not start beside it. The repeated call then follows the
    first one, and frees the key when the request is found nowhere.
    """
    match ended:
        case NotEnqueued():
            return False
        case HttpProblem():
            # Below 500 the request is refused or withdrawn; above it may be queued all the same.
            return ended.status >= 500
        case Ended.TIME_OVER:
            return False
        case Ended.ANSWERED:
            return status == 202 or is_result(status, keyed=True)
        case _:
            return True


class Execution:
    """One call's hold on its idempotency key, as an `async with` block.

    `call` is the call to execute, with a key or without. If another call has the key already, `earlier` is
    that one's claim, and there is nothing to execute. Every way out of the block frees the key, unless
    `holds_key` says that the key still stands for this call.
    """

    __slots__ = ("_assets", "_calls", "_claim", "_held", "_refused", "_request", "call", "earlier")

    def __init__(
        self,
        calls: IdempotentCalls,
        request: web.BaseRequest,
        call: Call,
        assets: Sequence[str],
        refused: HttpProblem | None,
    ) -> None:
        self._calls = calls
        self._request = request
        self._assets = assets
        self._refused = refused
        self._claim: Claim | None = None
        self._held = False
        self.call = call
        self.earlier: Claim | None = None

    async def __aenter__(self) -> Self:
        key = checked_key(self._request.headers.get(HEADER))
        if key is None:
            if self._refused is not None:
                raise self._refused
            return self
        try:
            claim = await self._calls.claim(self.call, key, self._fingerprint(), self._refused)
            if not claim.first:
                self.earlier = claim
                return self
            self._claim = claim
            # The caller may come back for it, so it outlives both the caller and the poll time.
            self.call = replace(self.call, request_id=claim.request_id, keep_queued=True, keyed=True)
            if claim.body is None:
                record = BodyRecord(self._calls, claim, self.call.body)
                self.call.body.before_end = record.when_it_ends
                self.call = replace(self.call, settle=record.settle)
        except BaseException as error:
            await self._leave()
            if isinstance(error, BrokerError):
                raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
            raise
        return self

    def _fingerprint(self) -> Fingerprint:
        request, call = self._request, self.call
        path = request.raw_path.partition("?")[0]
        head = head_digest(call.head.method, path, raw_headers(request), self._assets)
        return Fingerprint(head, call.body.digest)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        if self._claim is not None and not self._held:
            await self._calls.release(self._claim)

    def run(self, call: Call, sink: Sink, trace: Mapping[str, str]) -> Coroutine[Any, Any, Ended]:
        """Wait for the response as CallRunner.run does; with a key the response is stored as well."""
        if self._claim is None:
            return self._calls.runner.run(call, sink, trace)
        return self._run(self._claim, call, sink, trace)

    async def _run(self, claim: Claim, call: Call, sink: Sink, trace: Mapping[str, str]) -> Ended:
        calls = self._calls
        tee = TeeSink(sink, calls.retention.kept_call(call).sink())
        self._held = True
        try:
            ended = await calls.runner.run(call, tee, trace, lambda: calls.release(claim))
        except BaseException as error:
            self._held = holds_key(error, tee.status)
            raise
        self._held = holds_key(ended, tee.status)
        return ended


class BodyRecord:
    """Records the digest of a claimed call's body once all of it has come.

    That is before a worker has all of it, and before its response is stored, so that a repeated call can be
    compared before it is given that response.
    """

    def __init__(self, calls: IdempotentCalls, claim: Claim, body: CallerBody) -> None:
        self._calls = calls
        self._claim = claim
        self._body = body
        self._lock = asyncio.Lock()

    async def when_it_ends(self) -> None:
        """Record it; a failure is tried again before the response is stored."""
        try:
            await self._record(self._body.digest)
        except BrokerError as error:
            _log.warning("body not recorded yet: %s", error, extra={"request_id": self._claim.request_id})

    async def settle(self) -> None:
        """Record it, also if the worker did not want all of the body. Raises BrokerError."""
        if self._body.digest is None:
            limit = self._calls.retention.config.kept_body_bytes
            await self._body.receive_all(BODY_PATIENCE, limit)
        await self._record(self._body.digest or UNREAD)

    async def _record(self, digest: str | None) -> None:
        async with self._lock:
            if digest is not None and self._claim.body is None:
                self._claim = await self._calls.keys.complete(self._claim, digest)


class IdempotentCalls:
    """Executes calls; those with a key are claimed, tracked and stored."""

    def __init__(
        self,
        runner: CallRunner,
        retention: Retention,
        keys: IdempotencyKeys,
        background: BackgroundTasks,
        usage: Usage,
    ) -> None:
        self.runner = runner
        self.retention = retention
        self.keys = keys
        self._background = background
        self._usage = usage

    def execution(
        self,
        request: web.BaseRequest,
        call: Call,
        assets: Sequence[str] = (),
        refused: HttpProblem | None = None,
    ) -> Execution:
        """Return the block in which to execute `call`; `assets` are the ids that it names.

        `refused` is why it cannot be executed: then it can only follow an earlier call. Entering the block
        raises that, and HttpProblem 400 (malformed key), 422 (key of another request) and 503.
        """
        return Execution(self, request, call, assets, refused)

    async def claim(
        self, call: Call, key: str, fingerprint: Fingerprint, refused: HttpProblem | None = None
    ) -> Claim:
        """Claim `key` for `call`, or learn which request has it.

        Raises HttpProblem 422, BrokerError, and `refused` if the key is free.
        """
        account, function_id = call.caller.nca_id, call.version.function_id
        refused = refused or self._refusal(account)
        if refused is not None:
            known = await self.keys.holder(account, function_id, key, fingerprint)
            if known is None:
                raise refused
            return known
        claiming = self._background.spawn(
            self.keys.claim(account, function_id, call.version.id, key, fingerprint, call.request_id),
            f"claim {call.request_id}",
            logged=False,
        )
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # The caller left while the broker was asked: what it gives is given back.
            self._background.spawn(self._release_when_made(claiming), f"free the key of {call.request_id}")
            raise

    def _refusal(self, account: str) -> HttpProblem | None:
        """Return why no new answer can be kept. What is promised is not dropped, so nothing is promised."""
        try:
            self._usage.require_room_for_an_answer(account)
        except QuotaExceeded as problem:
            return problem
        return None

    async def _release_when_made(self, claiming: asyncio.Task[Claim]) -> None:
        await asyncio.wait({claiming})
        if not claiming.cancelled() and claiming.exception() is None and claiming.result().first:
            await self._release(claiming.result())

    async def release(self, claim: Claim) -> None:
        """Free the key of a call that came to nothing, also when the task that awaits this is cancelled."""
        await asyncio.shield(
            self._background.spawn(self._release(claim), f"free the key of {claim.request_id}")
        )

    async def _release(self, claim: Claim) -> None:
        try:
            await self.keys.release(claim)
        except BrokerError as error:
            _log.warning("idempotency key not released: %s", error, extra={"request_id": claim.request_id})
