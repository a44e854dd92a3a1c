"""The HTTP server: pass-through first, then routes by path; every failure becomes problem+json.

On the OpenAI routes it becomes OpenAI's error object.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web

from nvcf_gateway.durability import Durability
from nvcf_gateway.errors import HttpProblem, StoreUnavailable, broker_errors
from nvcf_gateway.exchange.attach import Attach
from nvcf_gateway.http.connections import abort_on_disconnect
from nvcf_gateway.http.responses import (
    SERVER,
    cors_headers,
    internal_error,
    json_response,
    preflight_headers,
    problem_response,
)
from nvcf_gateway.http.routing import Handler, PathTable, Route, Target, pass_through_target, path_id
from nvcf_gateway.invocation.invoke import Invoker
from nvcf_gateway.llm.errors import error_response
from nvcf_gateway.llm.routes import is_openai_path, openai_routes
from nvcf_gateway.readiness import Readiness
from nvcf_gateway.results.status import Poller
from nvcf_gateway.sessions.service import Sessions
from nvcf_gateway.telemetry.http_span import HttpTelemetry, RequestTelemetry
from nvcf_otel import names
from nvcf_proto.settings import ATTACH_PATH

_log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
_READS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class _Served:
    """A route. `kind`: set if it invokes a function or polls. `own`: it begins traces of its own."""

    handler: Handler
    pattern: str
    kind: str | None = None
    own: bool = True


class HttpServer:
    """Dispatches callers' and workers' HTTP requests."""

    def __init__(
        self,
        invoker: Invoker,
        poller: Poller,
        attach: Attach,
        is_healthy: Callable[[], bool],
        telemetry: HttpTelemetry,
        routes: Iterable[Route],
        agent_routes: Iterable[Route],
        readiness: Readiness,
        durability: Durability,
    ) -> None:
        self._durability = durability
        self._readiness = readiness
        self.sessions: Sessions | None = None
        self._telemetry = telemetry
        self._invoker = invoker
        self._is_healthy = is_healthy
        self._table: PathTable[_Served] = PathTable()
        self._add_calls(attach, poller)
        for call in openai_routes(invoker):
            self._add(*call)
        for route in routes:
            self._add(*route)
        for route in agent_routes:
            # Nothing of them has to survive the loss of the machine: agents say it again.
            self._add(*route, own=False)

    def _add(
        self, method: str, pattern: str, handler: Handler, kind: str | None = None, *, own: bool = True
    ) -> None:
        self._table.add(method, pattern, _Served(handler, pattern, kind, own))

    @property
    def routes(self) -> list[tuple[str, str]]:
        """Methods and path patterns of all path routes."""
        return self._table.routes()

    def _add_calls(self, attach: Attach, poller: Poller) -> None:
        add = self._add
        add("GET", "/v2/nvcf/pexec/status/{request_id}", poller.pexec, names.POLL)
        add("DELETE", "/v2/nvcf/pexec/status/{request_id}", poller.cancel)
        add("GET", "/v2/nvcf/exec/status/{request_id}", poller.exec, names.POLL)
        for kind, call in (("exec", self._invoker.exec), ("pexec", self._invoker.pexec)):
            handler = _invoking(call)
            add("POST", f"/v2/nvcf/{kind}/functions/{{function_id}}", handler, kind)
            add("POST", f"/v2/nvcf/{kind}/functions/{{function_id}}/versions/{{version_id}}", handler, kind)
        add("GET", ATTACH_PATH, lambda request, _: attach.get(request), own=False)
        add("POST", ATTACH_PATH, lambda request, _: attach.post(request), own=False)
        add("GET", "/health", self._health, own=False)
        add("GET", "/health/live", self._live, own=False)
        add("GET", "/health/ready", self._ready, own=False)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request."""
        telemetry = self._telemetry.request(request.method, request.headers)
        try:
            if request.content.is_eof():
                response = await self._handle(request, telemetry)
            else:
                # Its body is still on the way, and back-pressure may stop reading for long.
                with abort_on_disconnect(request):
                    response = await self._handle(request, telemetry)
        except BaseException as error:
            telemetry.end(None, error)
            raise
        telemetry.end(response.status)
        if not response.prepared:
            response.headers.setdefault("Server", SERVER)
        return response

    async def _handle(self, request: web.BaseRequest, telemetry: RequestTelemetry) -> web.StreamResponse:
        path_route = False
        try:
            if self.sessions is not None and self.sessions.takes(request):
                telemetry.set_route("", path=request.path)
                return await self.sessions.upgrade(request)
            target = pass_through_target(request.headers, request.headers.get("Host", ""))
            if target is not None:
                telemetry.set_route("", names.PASS_THROUGH, path=request.raw_path.partition("?")[0])
                self._check_store()
                return await self._invoker.pass_through(request, target)
            path_route = True
            return await self._by_path(request, telemetry)
        except HttpProblem as problem:
            telemetry.problem = problem
            return _failed(request, problem, path_route)
        except ConnectionError:
            # The caller or worker at the other end is gone; there is nobody to answer.
            raise
        except Exception:  # noqa: BLE001 # the log gets it with an id, the caller gets only the id
            telemetry.problem = internal_error(_log, path=request.path)
            return _failed(request, telemetry.problem, path_route)

    async def _by_path(self, request: web.BaseRequest, telemetry: RequestTelemetry) -> web.StreamResponse:
        path = request.raw_path.split("?", 1)[0]
        found = self._table.find(path)
        if request.method == "OPTIONS":
            return web.Response(status=200, headers=preflight_headers(request.headers))
        if found is None:
            raise HttpProblem(404, f"nothing is served at {path[:256]}")
        served, values = found
        route = served.get(request.method)
        if route is None:
            allowed = ", ".join(sorted(served))
            raise HttpProblem(405, f"{request.method} is not served here", headers={"Allow": allowed})
        telemetry.set_route(route.pattern, route.kind, path=path, may_start_trace=route.own)
        if request.method not in _READS and route.pattern != ATTACH_PATH:
            self._check_store()
        response = await route.handler(request, values)
        if request.method not in _READS and route.kind is None and route.own and response.status < 300:
            with broker_errors():
                await self._durability.commit()
        if not response.prepared:
            response.headers.update(cors_headers(request.headers))
        return response

    async def _health(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        if self._is_healthy():
            return json_response(200, {"status": "ok"})
        raise HttpProblem(503, "the broker is not reachable", headers={"Retry-After": "1"})

    async def _live(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        # A restart does not bring the broker back, so this does not look at it.
        return json_response(200, {"status": "ok"})

    async def _ready(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        return json_response(200 if self._readiness.ready else 503, self._readiness.document())

    def _check_store(self) -> None:
        """Refuse at once what would only wait for the store. Raises StoreUnavailable."""
        reason = self._readiness.refusal()
        if reason is not None:
            raise StoreUnavailable(reason, RETRY_AFTER_SECONDS)


def _invoking(call: Callable[[web.BaseRequest, Target], Awaitable[web.StreamResponse]]) -> Handler:
    def handle(request: web.BaseRequest, values: dict[str, str]) -> Awaitable[web.StreamResponse]:
        version = path_id(values, "version_id") if "version_id" in values else None
        return call(request, Target(path_id(values, "function_id"), version))

    return handle


def _failed(request: web.BaseRequest, problem: HttpProblem, path_route: bool) -> web.StreamResponse:
    if request.writer.output_size > 0:
        # Part of another response is sent already: only a cut connection tells the caller that it is void.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("response aborted")
    openai = path_route and is_openai_path(request.path)
    response = error_response(problem) if openai else problem_response(problem)
    if path_route:
        response.headers.update(cors_headers(request.headers))
    return response
