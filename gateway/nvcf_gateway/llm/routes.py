"""The routes of OpenAI's API: chat completions, completions, responses, embeddings, models."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.access.revocations import Revocations
from nvcf_gateway.background import end_task
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.bodies import BodyTooLarge, BytesSource, CallerBody
from nvcf_gateway.exchange.call import Call, expect_continue, raw_headers
from nvcf_gateway.http.bodies import read_all
from nvcf_gateway.http.body_budget import BodyBudget
from nvcf_gateway.http.durations import poll_seconds
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Handler
from nvcf_gateway.http.spool_budget import SpoolBudget
from nvcf_gateway.invocation.invoke import Invoker
from nvcf_gateway.invocation.waiting import CallRunner, Ended
from nvcf_gateway.llm.body import ModelCallBody, parse_body
from nvcf_gateway.llm.errors import model_not_found
from nvcf_gateway.llm.models import MAX_MODEL_CHARACTERS, Models
from nvcf_gateway.llm.sink import OpenAiSink
from nvcf_gateway.llm.token_budgets import Charge, TokenBudgets
from nvcf_gateway.queue.message import forwarded_headers
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.registry import Registry
from nvcf_gateway.telemetry.http_span import child, new_request_id, set_version
from nvcf_otel import names as telemetry
from nvcf_proto.h1 import RequestHead
from nvcf_proto.headers import EVENT_STREAM, NVCF_POLL_SECONDS
from nvcf_proto.models import FunctionVersion
from nvcf_proto.settings import MAX_INLINE_BODY

EMBEDDINGS_PATH = "/v1/embeddings"
CALL_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", EMBEDDINGS_PATH)
MODELS_PATH = "/v1/models"
HEARTBEAT_SECONDS = 10.0
READ_AHEAD_PATIENCE = 5.0
_USAGE_ON_REQUEST = ("/v1/chat/completions", "/v1/completions")
"""Where an engine counts the tokens of a stream only if it is asked to."""
_OF_THE_BODY = frozenset(("content-length", "expect"))


def is_openai_path(path: str) -> bool:
    """Return whether errors at a path are in OpenAI's form."""
    return path in CALL_PATHS or path == MODELS_PATH or path.startswith(MODELS_PATH + "/")


@dataclass(frozen=True, slots=True, eq=False)
class OpenAiRoutes:
    """Serves the routes."""

    config: GatewayConfig
    registry: Registry
    authenticator: Authenticator
    models: Models
    runner: CallRunner
    limiter: RateLimiter
    bodies: BodyBudget
    spool: SpoolBudget
    revocations: Revocations
    budgets: TokenBudgets

    def routes(self) -> list[tuple[str, str, Handler, str | None]]:
        """Return methods, patterns, handlers, and the kind of call if it is one."""
        calls = [("POST", path, self.call, telemetry.OPENAI) for path in CALL_PATHS]
        listed = ("GET", MODELS_PATH, self.list_models, None)
        # A name has slashes, which clients escape or do not.
        named = [
            ("GET", f"{MODELS_PATH}/{pattern}", self.get_model, None)
            for pattern in ("{model}", "{function_id}/{name}")
        ]
        return [*calls, listed, *named]

    async def list_models(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """List the models that the caller may use."""
        caller = self.authenticator.caller(request.headers)
        return json_response(200, {"object": "list", "data": self.models.listed(caller)})

    async def get_model(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Show one model."""
        caller = self.authenticator.caller(request.headers)
        wanted = request.path.removeprefix(MODELS_PATH + "/")
        for model in self.models.listed(caller):
            if model["id"] == wanted:
                return json_response(200, model)
        raise model_not_found(f"no model '{wanted[:MAX_MODEL_CHARACTERS]}'")

    async def call(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Serve a call of a model."""
        caller = self.authenticator.caller(request.headers)
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise HttpProblem(415, "send the body without a Content-Encoding")
        with contextlib.ExitStack() as charges:
            with self.bodies.room(caller.nca_id) as grow:
                await expect_continue(request)
                body = await parse_body(await read_all(request, self.config.exec_body_bytes, grow=grow))
                with child(telemetry.AUTHORISE):
                    version = self.models.version(caller, body.model, request.path)
                    set_version(version)
                    await self.limiter.admit(version, caller.nca_id, caller.subject)
                streams = body.streams
                hidden = streams and request.path in _USAGE_ON_REQUEST and not body.asks_for_usage
                charge = self._charge(request, caller, version, body, hidden=hidden)
                if charge is not None:
                    charges.callback(charge.settle)
                data = body.data(add_usage=hidden and charge is not None)
                call = await self._call(request, caller, version, data, readable=charge is not None)
                # The call may wait for long, and its body is in the message or spooled.
                del body, data
            sink = OpenAiSink(request, call.request_id, streams=streams, charge=charge)
            with self.revocations.call(caller, version.function_id):
                return await self._answer(request, call, sink)

    def _charge(
        self,
        request: web.BaseRequest,
        caller: Caller,
        version: FunctionVersion,
        body: ModelCallBody,
        *,
        hidden: bool,
    ) -> Charge | None:
        output = 0 if request.path == EMBEDDINGS_PATH else body.output_bound
        size, name = len(body.raw), body.model.name
        return self.budgets.charge(version, name, caller.nca_id, size=size, output=output, hidden=hidden)

    async def _call(
        self,
        request: web.BaseRequest,
        caller: Caller,
        version: FunctionVersion,
        data: bytes,
        *,
        readable: bool,
    ) -> Call:
        # A caller of OpenAI's API cannot poll: it waits as long as callers of event streams do.
        seconds = poll_seconds(request.headers.get(NVCF_POLL_SECONDS), accept=EVENT_STREAM, path_route=True)
        inner = [pair for pair in raw_headers(request) if pair[0].lower() not in _OF_THE_BODY]
        if readable:
            # Its tokens are read out of the response.
            inner = [pair for pair in inner if pair[0].lower() != "accept-encoding"]
        inner.append(("Content-Length", str(len(data))))
        headers = forwarded_headers(inner, seconds, self.config.region, pass_through=True)
        deployment = self.registry.deployments.get(version.id)
        body = CallerBody(
            BytesSource(data),
            len(data),
            max_bytes=None if deployment is None else deployment.max_body_bytes,
            spool_memory_bytes=self.config.spool_memory_bytes,
            directory=self.config.spool_directory,
            budget=self.spool,
            account=caller.nca_id,
        )
        try:
            body.check_announced()
            await body.read_ahead(MAX_INLINE_BODY, READ_AHEAD_PATIENCE)
        except BodyTooLarge as error:
            raise HttpProblem(413, str(error)) from None
        if len(data) > self.config.spool_memory_bytes:
            await body.spool_rest()
        head = RequestHead(request.method, request.raw_path, headers)
        return Call(caller, version, head, body, seconds, new_request_id(), time.time())

    async def _answer(self, request: web.BaseRequest, call: Call, sink: OpenAiSink) -> web.StreamResponse:
        try:
            async with _heartbeats(sink):
                ended = await self.runner.run(call, sink, request.headers)
            if ended is Ended.TIME_OVER:
                raise HttpProblem(504, f"no response within {call.poll_seconds} s")
            if ended is not Ended.ANSWERED or sink.response is None:
                raise HttpProblem(502, "the worker left in the middle of its response")
        except HttpProblem as problem:
            if not await sink.fail(problem):
                raise
        assert sink.response is not None  # noqa: S101 # a failed stream has begun
        return sink.response


def openai_routes(invoker: Invoker) -> list[tuple[str, str, Handler, str | None]]:
    """Return the routes, beside an invoker and with what it has."""
    return OpenAiRoutes(
        invoker.config,
        invoker.registry,
        invoker.authenticator,
        Models(invoker.registry, invoker.authorizer),
        invoker.runner,
        invoker.limiter,
        invoker.bodies,
        invoker.spool,
        invoker.revocations,
        TokenBudgets(),
    ).routes()


@contextlib.asynccontextmanager
async def _heartbeats(sink: OpenAiSink) -> AsyncIterator[None]:
    beats = asyncio.create_task(sink.heartbeat(HEARTBEAT_SECONDS), name="heartbeats of a stream")
    try:
        yield
    finally:
        await end_task(beats)
