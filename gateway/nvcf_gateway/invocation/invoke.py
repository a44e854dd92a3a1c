"""The callers' invocation routes: exec, pexec and pass-through."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Authorizer, Caller
from nvcf_gateway.access.revocations import Revocations
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import HttpProblem, broker_errors
from nvcf_gateway.exchange.bodies import BodyTooLarge, ByteSource, BytesSource, CallerBody
from nvcf_gateway.exchange.call import Call, caller_poll_seconds, expect_continue, flag, raw_headers
from nvcf_gateway.exchange.exec_json import parse_exec
from nvcf_gateway.exchange.response_headers import (
    PENDING_EVALUATION,
    pass_through_headers,
    path_headers,
    raw_progress,
    raw_time_out,
    wrapped_progress,
    wrapped_response,
    wrapped_time_out,
)
from nvcf_gateway.exchange.sinks import CollectSink, StreamSink
from nvcf_gateway.http.bodies import read_all
from nvcf_gateway.http.body_budget import BodyBudget
from nvcf_gateway.http.responses import cors_headers
from nvcf_gateway.http.routing import Target
from nvcf_gateway.http.spool_budget import SpoolBudget
from nvcf_gateway.invocation.idempotent import IdempotentCalls
from nvcf_gateway.invocation.waiting import CallRunner, Ended
from nvcf_gateway.objects.assets import Assets
from nvcf_gateway.objects.large_results import LargeResults
from nvcf_gateway.queue.message import AssetReference, forwarded_headers
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.registry import Registry
from nvcf_gateway.results.idempotency_keys import HEADER
from nvcf_gateway.results.status import Poller
from nvcf_gateway.telemetry.http_span import child, new_request_id, set_version
from nvcf_otel import names as telemetry
from nvcf_proto import headers as names
from nvcf_proto.h1 import RequestHead, ResponseHead
from nvcf_proto.models import Deployment, FunctionVersion
from nvcf_proto.settings import MAX_DIRECT_RESPONSE, MAX_INLINE_BODY, POLL_SECONDS_MAX

READ_AHEAD_PATIENCE = 5.0
_REPEATABLE = (HEADER, names.NVCF_KEEP_QUEUED)


class _New(NamedTuple):
    """What a new request gets: an id, when its call began (Unix seconds), its objects.

    `refused` is why it cannot be executed. That is not raised at once: a call that repeats another one needs
    no assets.
    """

    request_id: str
    started: float
    large_response_url: str = ""
    assets: tuple[AssetReference, ...] = ()
    refused: HttpProblem | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Invoker:
    """Serves the invocation routes."""

    config: GatewayConfig
    registry: Registry
    authenticator: Authenticator
    authorizer: Authorizer
    runner: CallRunner
    idempotent: IdempotentCalls
    poller: Poller
    limiter: RateLimiter
    assets: Assets
    large: LargeResults
    bodies: BodyBudget
    spool: SpoolBudget
    revocations: Revocations

    async def pass_through(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Serve any method and path as the function sees it."""
        caller, version = await self._admit(request, target)
        with self.revocations.call(caller, version.function_id):
            new = _New(new_request_id(), time.time())
            call = await self._call(request, caller, version, new, target=request.raw_path, path_route=False)
            sink = StreamSink(
                request,
                lambda head: pass_through_headers(head, call.request_id),
                lambda head: self._before_progress(head, call),
            )
            return await self._answer(request, call, await self.runner.run(call, sink, request.headers), sink)

    async def pexec(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Serve a call with a raw body in and out."""
        caller, version = await self._admit(request, target)
        with self.revocations.call(caller, version.function_id):
            asset_ids = _asset_ids(request)
            new = await self._new(caller, asset_ids)
            call = await self._call(
                request, caller, version, new, target=version.inference_url, path_route=True
            )
            cors = list(cors_headers(request.headers).items())
            async with self.idempotent.execution(request, call, asset_ids, new.refused) as execution:
                if execution.earlier is not None:
                    return await self.poller.follow(request, execution.earlier, call, wrapped=False)
                call = execution.call
                sink = StreamSink(
                    request,
                    lambda head: path_headers(head, call.request_id, cors),
                    lambda head: self._before_progress(head, call),
                )
                ended = await execution.run(call, sink, request.headers)
            return await self._answer(request, call, ended, sink)

    async def exec(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        """Serve a call with the JSON wrapper in and out."""
        caller, version = await self._admit(request, target)
        with self.revocations.call(caller, version.function_id):
            return await self._exec(request, caller, version)

    async def _exec(
        self, request: web.BaseRequest, caller: Caller, version: FunctionVersion
    ) -> web.StreamResponse:
        with self.bodies.room(caller.nca_id) as grow:
            await expect_continue(request)
            limit = self.config.exec_body_bytes
            wrapped = await self.bodies.parsed(await read_all(request, limit, grow=grow), parse_exec)
            keyed = HEADER in request.headers
            source = BytesSource(wrapped.body)
            deployment = self.registry.deployments.get(version.id)
            body = self._body(source, len(wrapped.body), deployment, caller.nca_id, digested=keyed)
            await self._read_ahead(request, body, MAX_INLINE_BODY)
            if len(wrapped.body) > self.config.spool_memory_bytes or keyed:
                await body.spool_rest()
        length, asset_ids = len(wrapped.body), wrapped.asset_ids or _asset_ids(request)
        seconds = wrapped.poll_seconds or caller_poll_seconds(request, path_route=True)
        # The call may wait for long, and its body is in the message or spooled.
        del wrapped
        # The headers of an exec call describe the wrapper, so the function gets none of them but two. Those
        # say that the caller may fetch the response later, which the worker has to know [ext].
        inner = [(name, request.headers[name]) for name in _REPEATABLE if name in request.headers]
        inner += [("Content-Type", "application/json"), ("Content-Length", str(length))]
        keep = _keep_queued(request, deployment)
        worker_seconds = self._worker_poll_seconds(seconds, keep=keep)
        headers = forwarded_headers(inner, worker_seconds, self.config.region, pass_through=False)
        head = RequestHead("POST", version.inference_url, headers)
        new = await self._new(caller, asset_ids)
        call = Call(
            caller,
            version,
            head,
            body,
            seconds,
            new.request_id,
            new.started,
            large_response_url=new.large_response_url,
            assets=new.assets,
            keep_queued=keep,
        )
        with self.bodies.room(caller.nca_id) as grow:
            return await self._collected(request, call, asset_ids, new.refused, grow)

    async def _collected(
        self,
        request: web.BaseRequest,
        call: Call,
        asset_ids: Sequence[str],
        refused: HttpProblem | None,
        grow: Callable[[int], None],
    ) -> web.StreamResponse:
        """Execute an exec call, and return its response, which is wrapped as a whole."""
        async with self.idempotent.execution(request, call, asset_ids, refused) as execution:
            if execution.earlier is not None:
                return await self.poller.follow(request, execution.earlier, call, wrapped=True)
            call = execution.call
            sink = CollectSink(MAX_DIRECT_RESPONSE, grow, lambda head: self._before_progress(head, call))
            ended = await execution.run(call, sink, request.headers)
        if ended is Ended.KEPT:
            return wrapped_progress(call.request_id, await self._kept_status(call))
        if ended is Ended.TIME_OVER:
            return _timed_out(request, call.request_id, wrapped=True)
        if sink.head is None or ended is Ended.BROKEN:
            raise HttpProblem(502, "the worker left in the middle of its response")
        return wrapped_response(call.request_id, sink.head, sink.body)

    async def _admit(self, request: web.BaseRequest, target: Target) -> tuple[Caller, FunctionVersion]:
        with child(telemetry.AUTHORISE):
            caller = self.authenticator.caller(request.headers)
            version = self.authorizer.version(caller, target)
            set_version(version)
            await self.limiter.admit(version, caller.nca_id, caller.subject)
        return caller, version

    async def _call(
        self,
        request: web.BaseRequest,
        caller: Caller,
        version: FunctionVersion,
        new: _New,
        *,
        target: str,
        path_route: bool,
    ) -> Call:
        seconds = caller_poll_seconds(request, path_route=path_route)
        deployment = self.registry.deployments.get(version.id)
        keep = path_route and _keep_queued(request, deployment)
        full = flag(request, names.NVCF_FEATURE_STREAM_FULL_REQUEST, default=False)
        worker_seconds = self._worker_poll_seconds(seconds, keep=keep)
        headers = forwarded_headers(
            raw_headers(request), worker_seconds, self.config.region, pass_through=not path_route
        )
        keyed = path_route and HEADER in request.headers
        body = self._body(request.content, request.content_length, deployment, caller.nca_id, digested=keyed)
        if request.can_read_body:
            await self._read_ahead(request, body, 0 if full else MAX_INLINE_BODY)
        head = RequestHead(request.method, target, headers)
        return Call(
            caller,
            version,
            head,
            body,
            seconds,
            new.request_id,
            new.started,
            full_by_attach=full,
            large_response_url=new.large_response_url,
            assets=new.assets,
            keep_queued=keep,
        )

    async def _new(self, caller: Caller, asset_ids: Sequence[str]) -> _New:
        """Make a request id and the URL for a large result, and look the input assets up."""
        request_id, started = new_request_id(), time.time()
        url = self.large.upload_url(request_id)
        if not asset_ids:
            return _New(request_id, started, url)
        try:
            return _New(request_id, started, url, await self.assets.references(caller, asset_ids))
        except HttpProblem as problem:
            return _New(request_id, started, url, refused=problem)

    def _worker_poll_seconds(self, seconds: int, *, keep: bool) -> int:
        # A third-party worker fails a request that it takes after the poll time, and gives up one that nobody
        # polls for. The gateway itself answers a kept request at its poll time, so that worker gets the
        # longest poll time there is.
        return POLL_SECONDS_MAX if keep and self.config.wide_inbox else seconds

    @staticmethod
    async def _read_ahead(request: web.BaseRequest, body: CallerBody, limit: int) -> None:
        try:
            # First: a caller must not be asked to send what is not taken.
            body.check_announced()
            await expect_continue(request)
            await body.read_ahead(limit, READ_AHEAD_PATIENCE)
        except BodyTooLarge as error:
            raise HttpProblem(413, str(error)) from None

    def _body(
        self,
        source: ByteSource,
        length: int | None,
        deployment: Deployment | None,
        account: str,
        *,
        digested: bool,
    ) -> CallerBody:
        return CallerBody(
            source,
            length,
            max_bytes=None if deployment is None else deployment.max_body_bytes,
            spool_memory_bytes=self.config.spool_memory_bytes,
            directory=self.config.spool_directory,
            digested=digested,
            budget=self.spool,
            account=account,
        )

    async def _before_progress(self, head: ResponseHead, call: Call) -> None:
        """Make the request known to polls before the caller gets a 202."""
        if head.status == 202:
            with broker_errors():
                await self.runner.retention.promise_running(call)

    async def _kept_status(self, call: Call) -> str:
        """Return the status of a kept call.

        Our workers answer 202 themselves while they execute a call; third-party workers have a longer poll
        time and do not, so the queue is looked at.
        """
        if not self.config.wide_inbox:
            return PENDING_EVALUATION
        return await self.poller.status(call.version.id, call.request_id, self.config.region)

    async def _answer(
        self, request: web.BaseRequest, call: Call, ended: Ended, sink: StreamSink
    ) -> web.StreamResponse:
        if ended is Ended.KEPT:
            status = await self._kept_status(call)
            return raw_progress(call.request_id, status, cors_headers(request.headers))
        if ended is Ended.TIME_OVER:
            return _timed_out(request, call.request_id)
        if sink.response is None:
            raise HttpProblem(502, "the worker left in the middle of its response")
        return sink.response


def _keep_queued(request: web.BaseRequest, deployment: Deployment | None) -> bool:
    return flag(request, names.NVCF_KEEP_QUEUED, deployment is not None and deployment.keep_queued)


def _asset_ids(request: web.BaseRequest) -> list[str]:
    value = request.headers.get(names.NVCF_INPUT_ASSET_REFERENCES)
    if value is None:
        return []
    return [part.strip() for part in value.split(",") if part.strip()]


def _timed_out(request: web.BaseRequest, request_id: str, *, wrapped: bool = False) -> web.StreamResponse:
    response = wrapped_time_out(request_id) if wrapped else raw_time_out(request_id)
    if not request.content.at_eof():
        response.headers["Connection"] = "close"
    return response
