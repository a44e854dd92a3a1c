"""Runs one request: request object, handler, response, and how it is acknowledged."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nvcf_proto.errors import H1Error
from nvcf_proto.headers import PROBLEM_JSON
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.problem import Problem, problem_for
from nvcf_worker.errors import (
    Abandoned,
    CallerGone,
    DeliveryError,
    Fatal,
    FunctionError,
    RequestCancelled,
    RetryLater,
    ServerUnreachable,
    StreamLost,
    TunnelError,
    Undeliverable,
    WorkerError,
)
from nvcf_worker.exchange.exchange import Exchange
from nvcf_worker.exchange.exchanges import Exchanges
from nvcf_worker.exchange.fetch import fetch_body, fetch_request
from nvcf_worker.exchange.files import FileContext, RequestFiles
from nvcf_worker.exchange.post import StreamBroken
from nvcf_worker.function.body import RequestBody
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.function.request import Asset, FunctionContext
from nvcf_worker.function.response import (
    Outcome,
    Reply,
    Response,
    StreamReply,
    problem_reply,
    response_headers,
)
from nvcf_worker.function.time_limit import TimeLimit, of_request
from nvcf_worker.message import Work, sent_headers
from nvcf_worker.process import logs
from nvcf_worker.process.loops import from_outside
from nvcf_worker.queue.inflight import ACK, NAK, nak_later
from nvcf_worker.run.executor import Executor, request_type
from nvcf_worker.run.long_polls import until_final
from nvcf_worker.run.overtime import Overdue, Overtime
from nvcf_worker.sessions.tunnel import Tunnels
from nvcf_worker.telemetry.observer import NoopObserver, RequestObserver

log = logging.getLogger("nvcf_worker")

SOURCE = "inference-service"
UNREACHABLE_SECONDS = 5.0
"""Wait before a request is delivered again whose response no gateway took."""
UNREACHABLE_TRIES = 5
"""Deliveries of such a request if its queue sets no limit: else it would run for ever."""
NOT_WANTED = "not-wanted"
UNDELIVERED = "undelivered"
DRAIN_SECONDS = 0.5
"""After these a broken worker pulls nothing more, so a request that it returns goes to another one."""


class Assets(Protocol):
    """Fetches input assets."""

    async def fetch(self, message: nvcf_pb2.WorkerInvokeFunctionRequest, directory: Path) -> dict[str, Asset]:
        """Download all assets of a request into `directory`. Raises AssetUnavailable."""


class Results(Protocol):
    """Finishes responses of compatibility mode."""

    async def finish(
        self, message: nvcf_pb2.WorkerInvokeFunctionRequest, outcome: Outcome, files: RequestFiles | None
    ) -> Outcome:
        """Return the response that the caller gets. Raises ResultNotDelivered."""


@dataclass(frozen=True, slots=True)
class Services:
    """What requests may need: their directories, assets, large results. `broken` ends the worker.

    `open_files`: every user may use the directories.
    """

    asset_base: Path
    output_base: Path
    assets: Assets
    results: Results
    broken: Callable[[str], None]
    open_files: bool = False


class Telemetry(Protocol):
    """Makes observers of requests."""

    def request(self, work: Work, scope: CancelScope) -> RequestObserver:
        """Return the observer of a request; called in the request's own task."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs the requests of one worker. `context` returns what all requests have in common.

    dropped: counts requests that are acknowledged although nobody has their response, by reason.
    """

    _executor: Executor
    _exchanges: Exchanges
    _services: Services
    _context: Callable[[], FunctionContext]
    _tunnels: Tunnels | None = None
    _telemetry: Telemetry | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    _time_limit: TimeLimit | None = None
    _overdue: Overdue = field(default_factory=Overdue)

    async def run(self, work: Work, scope: CancelScope, release: Callable[[], None]) -> bytes | None:
        """Run one request; return how to acknowledge it, None for not at all.

        `release` is called, once or more, when the request needs its slot no longer. Never raises but for
        cancellation when the process ends.
        """
        token = logs.request_id.set(work.request_id)
        observer = self._observe(work, scope)
        retry_after = 0.0
        try:
            scope.interruptible = True
            if scope.end is None:
                if work.tunnel is None:
                    await self._respond(work, scope, observer, release)
                elif self._tunnels is not None:
                    await self._tunnels.run(work, scope)
        except asyncio.CancelledError as error:
            if scope.end is None and from_outside(error):
                raise
            # A cancellation that nobody asked for: its caller has no answer.
            scope.end = scope.end or End.RETRY_LATER
            self._stopped(scope.end)
        except WorkerError as error:
            observer.failed(error)
            retry_after = self._ended_by(work, scope, error)
        except BaseException as error:
            if from_outside(error):
                raise
            observer.failed(error)
            log.exception("the worker failed to handle a request")
            # Nobody has answered its caller. The queue ends the tries.
            scope.end = scope.end or End.RETRY_LATER
        finally:
            scope.interruptible = False
            release()
            if scope.body is not None:
                scope.body.abort()
            try:
                observer.end()
            except Exception:
                log.exception("telemetry of the request failed")
            logs.request_id.reset(token)
        last = not work.limited and work.attempt >= UNREACHABLE_TRIES
        if last and scope.end is End.UNREACHABLE:
            self.dropped[UNDELIVERED] += 1
        return ack_of(scope.end, retry_after, last=last)

    def _stopped(self, end: End) -> None:
        if end is End.NOT_WANTED:
            self.dropped[NOT_WANTED] += 1
        log.log(logging.WARNING if end is End.NOT_WANTED else logging.INFO, "request stopped: %s", end.value)

    def _observe(self, work: Work, scope: CancelScope) -> RequestObserver:
        try:
            if self._telemetry is not None:
                return self._telemetry.request(work, scope)
        except Exception:
            # E.g. of a span processor of the function's own; the request goes on without.
            log.exception("telemetry of the request failed")
        return NoopObserver(work.trace)

    def _ended_by(self, work: Work, scope: CancelScope, error: WorkerError) -> float:
        """Log an error, and decide whether the request is tried again; return after how many seconds."""
        match error:
            case Abandoned():
                self.dropped[NOT_WANTED] += 1
                log.warning("request abandoned: %s", error)
            case CallerGone():
                log.info("request abandoned: %s", error)
            case RetryLater():
                log.info("request goes back to the queue: %s", error)
                scope.end = scope.end or End.RETRY_LATER
                return error.after
            case Fatal():
                log.critical("this instance is broken: %s", error)
                scope.end = scope.end or End.RETRY_LATER
                self._services.broken(str(error))
                return DRAIN_SECONDS
            case Undeliverable():
                log.error("the response could not be delivered: %s", error)
                scope.end = scope.end or End.UNREACHABLE
            case StreamBroken():
                log.error("the response broke off: %s", error, exc_info=error.__cause__)
                if isinstance(error.__cause__, Fatal):
                    self._services.broken(str(error.__cause__))
            case StreamLost(wanted_again=wanted):
                log.error("the response broke off: %s", error)
                if wanted:
                    scope.end = scope.end or End.RESPONSE_LOST
                else:
                    self.dropped[UNDELIVERED] += 1
            case TunnelError():
                log.error("the session could not be connected: %s", error)
            case DeliveryError():
                self.dropped[UNDELIVERED] += 1
                log.error("the response could not be delivered: %s", error)
            case _:
                log.error("the worker failed to handle a request", exc_info=error)
        return 0.0

    async def _respond(
        self, work: Work, scope: CancelScope, observer: RequestObserver, release: Callable[[], None]
    ) -> None:
        exchange = self._exchanges.open(work, scope)
        overtime = Overtime(exchange, observer, self._overdue)
        try:
            try:
                response = await self._response(exchange, observer, overtime)
                if exchange.compatible:
                    response = await self._services.results.finish(work.message, response, exchange.files)
            except FunctionError as error:
                response = _function_error(error, work.request_id)
            except WorkerError:
                raise
            except Exception:
                log.exception("the worker failed to make a response")
                response = _failed(work.request_id)
            if overtime.answers:
                if isinstance(response, StreamReply):
                    await response.source.aclose()
                return
            observer.delivering(response)
            await exchange.deliver(response, release)
            observer.delivered()
        except StreamLost as error:
            error.wanted_again = error.wanted_again or exchange.wanted_again
            raise
        finally:
            await overtime.close()
            await self._exchanges.close(exchange)

    async def _response(self, exchange: Exchange, observer: RequestObserver, overtime: Overtime) -> Outcome:
        work, scope = exchange.work, exchange.scope
        try:
            return await self._run(exchange, observer, overtime)
        except (FunctionError, CallerGone):
            raise
        except (RetryLater, Fatal) as error:
            if not work.last:
                raise
            if isinstance(error, Fatal):
                self._services.broken(str(error))
            return _no_more_tries(error, work.request_id)
        except RequestCancelled:
            if scope.end is not None:
                raise asyncio.CancelledError from None
            log.exception("the handler failed")
        # The executor makes an Exception of what handlers raise; this is for everything around it.
        except BaseException as error:
            if scope.end is not None or from_outside(error):
                raise
            log.exception("the handler failed")
        return _failed(work.request_id)

    async def _run(self, exchange: Exchange, observer: RequestObserver, overtime: Overtime) -> Outcome:
        work, scope = exchange.work, exchange.scope
        message = work.message
        if message.requestMethod:
            opener = functools.partial(fetch_body, exchange, whole_request=False)
            whole = work.reply_address.target.request_token is None
            body = scope.body = RequestBody(message.requestBody, None if whole else opener)
            method, target = message.requestMethod, message.requestPath
            sent = sent_headers(work)
        else:
            head, body = await fetch_request(exchange)
            scope.body = body
            method, target, sent = head.method, head.target, head.headers
        lowered = [(name.lower(), value) for name, value in sent]
        exchange.begin(lowered, time.time(), compatibility=self._exchanges.compatibility)
        handler, parameters = self._executor.select(method, target)
        services = self._services
        files = exchange.files = RequestFiles(
            services.asset_base, services.output_base, work.request_id, services.open_files
        )
        if message.inputAssetReference:
            files.assets = await services.assets.fetch(message, files.asset_dir)
        context = FileContext(
            files, exchange.progress, asyncio.get_running_loop(), carries_files=exchange.compatible
        )
        observer.handler_begins()
        request = request_type(handler)(
            work, self._context(), body, scope.cancelled, method, target, parameters, sent, context
        )
        limit = of_request(self._time_limit, lowered)
        if limit is not None:
            overtime.begin(limit)
            request._expires = asyncio.get_running_loop().time() + limit.seconds
        try:
            outcome = await self._executor.run(request, scope, handler)
            if outcome.status == 202 and handler.takes_polls:

                async def ask(poll: Work) -> Outcome:
                    asked = poll.message
                    nothing = RequestBody(asked.requestBody, None)
                    again = request_type(handler)(
                        poll, self._context(), nothing, scope.cancelled, asked.requestMethod,
                        asked.requestPath, parameters, sent_headers(poll), context,
                    )  # fmt: skip
                    again._expires = request._expires
                    return await self._executor.run(again, scope, handler)

                outcome = await until_final(outcome, exchange, target, sent, ask)
            # A stream is still being made; its limit counts to its end.
            if not isinstance(outcome, StreamReply):
                overtime.stop()
            return observer.handler_answered(outcome)
        except BaseException as error:
            observer.handler_failed(error)
            raise


def _failed(request_id: str) -> Reply:
    detail = f"The function failed to handle request {request_id}."
    return problem_reply(Problem("Internal Server Error", 500, detail, SOURCE))


def _function_error(error: FunctionError, request_id: str) -> Reply:
    log.info("answered with %d: %s", error.status, error.detail)
    try:
        reply = problem_reply(Problem(error.title, error.status, error.detail, SOURCE, error.extra))
        head = Response(None, error.status, error.headers, PROBLEM_JSON)
        return Reply(reply.status, response_headers(head, PROBLEM_JSON), reply.body)
    except (TypeError, ValueError, H1Error):
        log.exception("the error response cannot be sent")
        return _failed(request_id)


def _no_more_tries(error: RetryLater | Fatal, request_id: str) -> Reply:
    """Return the response for a request that the queue would not deliver again."""
    if isinstance(error, Fatal):
        return _failed(request_id)
    if isinstance(error, ServerUnreachable):
        return problem_reply(problem_for(502, str(error), source="inference-connection"))
    detail = f"The function cannot take request {request_id} now; try again later."
    reply = problem_reply(Problem("Service Unavailable", 503, detail, SOURCE))
    return Reply(503, [("retry-after", str(max(1, math.ceil(error.after)))), *reply.headers], reply.body)


def ack_of(end: End | None, retry_after: float, *, last: bool) -> bytes | None:
    """Return how to acknowledge a request that ended; None for not at all.

    An abandoned request must not be tried again, one that was given up must, unless it is the `last` try.
    """
    match end:
        case End.HANDED_BACK | End.RESPONSE_LOST:
            return NAK
        case End.RETRY_LATER:
            return nak_later(retry_after)
        case End.CONNECTION_LOST:
            # The broker has long redelivered it; whoever has it now must not be disturbed.
            return None
        case End.UNREACHABLE:
            # Perhaps another worker, or this one later, reaches a gateway.
            return ACK if last else nak_later(UNREACHABLE_SECONDS)
        case _:
            return ACK
