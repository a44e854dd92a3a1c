"""Running a call at most once for each idempotency key ([ext])."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from nvcf_gateway.errors import HttpProblem, QueueError
from nvcf_gateway.exchange.call import Call
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.invocation.waiting import Ended, Waiting
from nvcf_gateway.results.handoff import Keeping
from nvcf_gateway.results.idempotency_keys import HEADER, Claim, Idempotency, checked_key, fingerprint
from nvcf_gateway.results.store_sink import NO_RESULT_OF_KEY, TeeSink

_log = logging.getLogger(__name__)

MAX_KEPT_STREAM = 64 * 1024 * 1024
"""A streamed answer beyond this is not kept for repeated calls, bytes."""


class Once:
    """Runs calls; those with a key are claimed, kept and parked."""

    def __init__(self, waiting: Waiting, keeping: Keeping, idempotency: Idempotency) -> None:
        self._waiting = waiting
        self._keeping = keeping
        self._idempotency = idempotency
        self._claims: dict[str, Claim] = {}

    async def claim(self, request: web.BaseRequest, call: Call) -> Call | Claim:
        """The call to run, or the claim of an earlier one to follow.

        Raises HttpProblem 400 (malformed key), 422 (key of another request) and 503.
        """
        key = checked_key(request.headers.get(HEADER))
        if key is None:
            return call
        print_ = fingerprint(call.head.method, call.body.length, call.body.prefix)
        try:
            claim = await self._idempotency.claim(
                call.caller.nca_id, call.version.function_id, call.version.id, key, print_, call.request_id
            )
            if not claim.first:
                return claim
            # The caller may come back for it, so it outlives both the caller and the poll time.
            claimed = replace(call, request_id=claim.request_id, keep_queued=True, survives=True)
            self._claims[claim.request_id] = claim
            await self._keeping.track(claimed)
        except QueueError as error:
            raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
        return claimed

    def run(self, call: Call, sink: Sink, trace: Mapping[str, str]) -> Coroutine[Any, Any, Ended]:
        """Wait for the answer as Waiting.run does; an answer under a key is parked as well."""
        claim = self._claims.pop(call.request_id, None)
        if claim is None:
            return self._waiting.run(call, sink, trace)
        return self._run(claim, call, sink, trace)

    async def _run(self, claim: Claim, call: Call, sink: Sink, trace: Mapping[str, str]) -> Ended:
        tee = TeeSink(sink, self._keeping.sink_of(call), MAX_KEPT_STREAM)
        try:
            ended = await self._waiting.run(call, tee, trace, keeper=True)
        except HttpProblem as problem:
            # After a failure of ours it may be queued all the same: those who follow the key find out.
            if problem.status < 500:
                await self._release(claim)
            raise
        if ended is Ended.TIME_OVER or (ended is Ended.ANSWERED and tee.status in NO_RESULT_OF_KEY - {202}):
            await self._release(claim)
        return ended

    async def _release(self, claim: Claim) -> None:
        """The call came to nothing: the next one with its key starts anew."""
        try:
            await self._idempotency.release(claim)
        except QueueError as error:
            _log.warning("idempotency key not released: %s", error, extra={"request_id": claim.request_id})
