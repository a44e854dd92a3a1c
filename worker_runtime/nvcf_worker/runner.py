"""The way of one request: request object, handler, delivery, acknowledgement."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvcf_proto.problem import Problem
from nvcf_worker.errors import (
    CallerGone,
    DeliveryError,
    Fatal,
    FunctionError,
    RequestCancelled,
    RetryLater,
    StreamLost,
    TunnelError,
    Undeliverable,
    WorkerError,
)
from nvcf_worker.exchange.assets import AssetFetcher
from nvcf_worker.exchange.exchange import Conversation
from nvcf_worker.exchange.extras import RequestExtras
from nvcf_worker.exchange.fetch_body import fetch_body
from nvcf_worker.exchange.fetch_request import whole_request
from nvcf_worker.exchange.files import RequestFiles
from nvcf_worker.exchange.large_results import LargeResults
from nvcf_worker.exchange.post import StreamBroken
from nvcf_worker.exchange.transports import Channels
from nvcf_worker.function.body import RequestBody
from nvcf_worker.function.request import FunctionContext
from nvcf_worker.function.response import Outcome, Reply, problem_reply
from nvcf_worker.process import logs
from nvcf_worker.queue.delivery import ActiveRequest, End
from nvcf_worker.queue.inflight import ACK, NAK, InFlight, nak_later
from nvcf_worker.queue.redelivery import exhausted, last_run
from nvcf_worker.run.executor import Executor, request_type
from nvcf_worker.sessions.tunnel import Tunnels
from nvcf_worker.telemetry.observer import Told, Untold
from nvcf_worker.telemetry.worker import NoTelemetry

log = logging.getLogger("nvcf_worker")

SOURCE = "inference-service"
LEAVING_SECONDS = 0.5
"""After these a broken worker asks for nothing more, and a request that it hands back goes to another one."""


@dataclass(frozen=True, slots=True)
class Services:
    """What requests may need: their directories, assets, large results; `broken` ends the worker."""

    asset_base: Path
    output_base: Path
    assets: AssetFetcher
    results: LargeResults
    broken: Callable[[str], None]


class Telemetry(Protocol):
    """Who is told of requests."""

    def request(self, active: ActiveRequest) -> Told:
        """One begins; called in its own task."""


class Runner:
    """Runs requests; each call of `run` is one request and never raises but for cancellation at exit."""

    def __init__(
        self,
        executor: Executor,
        channels: Channels,
        services: Services,
        inflight: InFlight,
        context: Callable[[], FunctionContext],
        release: Callable[[ActiveRequest], None],
        tunnels: Tunnels,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._executor = executor
        self._channels = channels
        self._services = services
        self._inflight = inflight
        self._context = context
        self._release = release
        self._tunnels = tunnels
        self._telemetry = telemetry or NoTelemetry()

    async def run(self, active: ActiveRequest) -> None:
        """Run one request to its acknowledgement."""
        token = logs.request_id.set(active.work.request_id)
        told = active.told = self._told(active)
        try:
            active.interruptible = True
            if active.end is None:
                await (
                    self._answer(active, told) if active.work.tunnel is None else self._tunnels.run(active)
                )
        except asyncio.CancelledError:
            if active.end is None:
                raise
            log.info("request stopped: %s", active.end.value)
        except WorkerError as error:
            told.failed(error)
            self._ended_by(active, error)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            told.failed(error)
            log.exception("the worker failed to handle a request")
        finally:
            self._end(active, token, told)
        await self._inflight.settle(active, verdict(active))

    def _told(self, active: ActiveRequest) -> Told:
        try:
            return self._telemetry.request(active)
        except Exception:
            # E.g. of a span processor of the function's own; the request goes on without.
            log.exception("telemetry of the request failed")
            return Untold(active)

    def _ended_by(self, active: ActiveRequest, error: WorkerError) -> None:
        """Say what an error means, and decide whether the request is tried again."""
        match error:
            case CallerGone():
                log.info("request abandoned: %s", error)
            case RetryLater():
                log.info("request goes back to the queue: %s", error)
                active.retry_after = error.after
                active.end = active.end or End.RETRY_LATER
            case Fatal():
                log.critical("this instance is broken: %s", error)
                active.retry_after = LEAVING_SECONDS
                active.end = active.end or End.RETRY_LATER
                self._services.broken(str(error))
            case Undeliverable():
                log.error("the answer could not be delivered: %s", error)
                active.end = active.end or End.UNREACHABLE
            case StreamBroken():
                log.error("the answer broke off: %s", error, exc_info=error.__cause__)
                if isinstance(error.__cause__, Fatal):
                    self._services.broken(str(error.__cause__))
            case StreamLost():
                log.error("the answer broke off: %s", error)
                if _may_be_repeated(active):
                    active.end = active.end or End.HANDED_BACK
            case TunnelError():
                log.error("the session did not come about: %s", error)
            case DeliveryError():
                log.error("the answer could not be delivered: %s", error)
            case _:
                log.error("the worker failed to handle a request", exc_info=error)

    def _end(self, active: ActiveRequest, token: Token[str | None], told: Told) -> None:
        active.interruptible = False
        self._release(active)
        if active.body is not None:
            active.body.abort()
        try:
            told.end()
        except Exception:
            log.exception("telemetry of the request failed")
        logs.request_id.reset(token)

    async def _answer(self, active: ActiveRequest, told: Told) -> None:
        conversation = active.conversation = Conversation(active, self._channels)
        message = active.work.message
        try:
            try:
                outcome = await self._outcome(active, conversation, told)
                if conversation.compatible:
                    outcome = await self._services.results.finish(message, outcome, active.files)
            except FunctionError as error:
                outcome = _function_error(error)
            told.delivering(outcome)
            await conversation.deliver(outcome, functools.partial(self._release, active))
            told.delivered()
        finally:
            await conversation.close()
            if active.files is not None:
                await active.files.remove()

    async def _outcome(self, active: ActiveRequest, conversation: Conversation, told: Told) -> Outcome:
        request_id = active.work.request_id
        if exhausted(active.work.attempt, active.max_deliver):
            log.error("not run again: delivered %d times", active.work.attempt)
            detail = f"Request {request_id} was delivered {active.work.attempt} times and never answered."
            return problem_reply(Problem("Too Many Deliveries", 500, detail))
        try:
            return await self._run(active, conversation, told)
        except FunctionError:
            raise
        except (RetryLater, Fatal) as error:
            if not last_run(active.work.attempt, active.max_deliver):
                raise
            if isinstance(error, Fatal):
                self._services.broken(str(error))
            return _no_more_tries(error, request_id)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if active.end is not None or (task is not None and task.cancelling()):
                raise
            log.exception("the handler let a cancellation of its own escape")
        except RequestCancelled:
            if active.end is not None:
                raise asyncio.CancelledError from None
            log.exception("the handler failed")
        except (KeyboardInterrupt, GeneratorExit):
            raise
        # Extensions written in Rust panic with a class that is no Exception.
        except BaseException:
            log.exception("the handler failed")
        detail = f"The function failed to handle request {request_id}."
        return problem_reply(Problem("Internal Server Error", 500, detail, SOURCE))

    async def _run(self, active: ActiveRequest, conversation: Conversation, told: Told) -> Outcome:
        message = active.work.message
        if message.requestMethod:
            opener = functools.partial(fetch_body, active, self._channels, conversation, whole_request=False)
            whole = active.work.target.request_token is None
            active.body = RequestBody(message.requestBody, None if whole else opener)
            method, target = message.requestMethod, message.requestPath
            sent = [(pair.key, pair.value) for pair in message.requestHeaders]
        else:
            head, active.body = await whole_request(active, self._channels, conversation)
            method, target, sent = head.method, head.target, head.headers
        conversation.begin(sent, time.time())
        handler, parameters = self._executor.select(method, target)
        services = self._services
        files = active.files = RequestFiles(services.asset_base, services.output_base, active.work.request_id)
        if message.inputAssetReference:
            files.assets = await services.assets.fetch(message, files.asset_dir)
        extras = RequestExtras(
            files,
            conversation,
            asyncio.get_running_loop(),
            carries_files=conversation.compatible,
        )
        told.handler_begins()
        request = request_type(handler)(
            active.work,
            self._context(),
            active.body,
            active.cancelled,
            method=method,
            target=target,
            sent=sent,
            path_params=parameters,
            extras=extras,
        )
        try:
            return told.handler_answered(await self._executor.run(request, active, handler))
        except BaseException as error:
            told.handler_failed(error)
            raise


def _function_error(error: FunctionError) -> Reply:
    log.info("answered with %d: %s", error.status, error.detail)
    reply = problem_reply(Problem(error.title, error.status, error.detail, SOURCE, error.extra))
    return Reply(reply.status, [*error.headers, *reply.headers], reply.body)


def _no_more_tries(error: RetryLater | Fatal, request_id: str) -> Reply:
    """The queue would not deliver the request again, so its caller is told."""
    if isinstance(error, RetryLater):
        detail = f"The function cannot take request {request_id} now; try again later."
        reply = problem_reply(Problem("Service Unavailable", 503, detail, SOURCE))
        return Reply(503, [("retry-after", str(max(1, math.ceil(error.after)))), *reply.headers], reply.body)
    detail = f"The function failed to handle request {request_id}."
    return problem_reply(Problem("Internal Server Error", 500, detail, SOURCE))


def _may_be_repeated(active: ActiveRequest) -> bool:
    """Whether a request whose stream was lost is worth another try: somebody may come back for it."""
    wanted = active.conversation is not None and active.conversation.wanted_again
    return wanted and not last_run(active.work.attempt, active.max_deliver)


def verdict(active: ActiveRequest) -> bytes | None:
    """What the broker is told: an abandoned request must not be tried again, one that was given up must."""
    if active.end is End.HANDED_BACK:
        return NAK
    if active.end is End.RETRY_LATER:
        return nak_later(active.retry_after)
    # Lost: the broker has long redelivered it by itself; whoever has it now must not be disturbed.
    # Unreachable: it is delivered again when its ack wait is over, and then perhaps a gateway is there. Where
    # the queue sets no limit that would go on for ever, for a caller whose gateway is gone.
    if active.end is End.UNREACHABLE:
        return None if active.max_deliver else ACK
    return None if active.end is End.CONNECTION_LOST else ACK
