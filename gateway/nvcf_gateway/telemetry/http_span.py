"""Telemetry of one HTTP request: metrics always, a span if the trace is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from time import perf_counter

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.telemetry.metrics import GatewayMetrics
from nvcf_otel import names, spans
from nvcf_otel.propagation import PROPAGATORS, W3C_ONLY
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion

_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
OTHER_METHOD = "_OTHER"
"""The semantic conventions' name for a method that HTTP does not define."""

_current: ContextVar[RequestTelemetry | None] = ContextVar("nvcf_gateway_request", default=None)


def current() -> RequestTelemetry | None:
    """Return the telemetry of the HTTP request that this task serves."""
    return _current.get()


def current_traceparent() -> str | None:
    """Return the traceparent of the current HTTP request's span; None if it is not recorded."""
    telemetry = _current.get()
    if telemetry is None or telemetry.span is None:
        return None
    return spans.traceparent(telemetry.span.get_span_context())


def new_request_id() -> str:
    """Return the id for the request that the current HTTP request queues. Call it once per HTTP request."""
    telemetry = _current.get()
    planned = None if telemetry is None else telemetry.new_request_id
    return planned or new_id()


def child(name: str) -> AbstractContextManager[Span]:
    """Start a span below that of the current HTTP request for a `with` block, if that is recorded."""
    telemetry = _current.get()
    if telemetry is None or telemetry.span is None:
        return spans.NOTHING
    return spans.child(telemetry.tracer, name)


def set_version(version: FunctionVersion) -> None:
    """Record which version the current HTTP request is about."""
    telemetry = _current.get()
    if telemetry is not None:
        telemetry.version = version


def set_request(request_id: str, began_as: str | None = None) -> None:
    """Record which request the current HTTP request is about.

    `began_as` is the traceparent of the call that queued it.
    """
    telemetry = _current.get()
    if telemetry is not None:
        telemetry.request_id = request_id
        telemetry.add_link(began_as)


def carrier_below(span: Span, caller: Mapping[str, str]) -> dict[str, str]:
    """Return the trace context to pass on below `span`; baggage is that of the caller's headers."""
    carrier = spans.carrier(span)
    if "baggage" in caller:
        carrier["baggage"] = caller["baggage"]
    return carrier


def known_method(method: str) -> str:
    """Return the method as an attribute: callers can invent any number of methods."""
    return method if method in _METHODS else OTHER_METHOD


class RequestTelemetry:
    """Telemetry of one HTTP request: create it on arrival, set the route, end it with the response's status.

    `carrier` holds the trace context to pass on where no span of ours is in between. `new_request_id` is
    the id of the request that this HTTP request queues. A call that begins a trace decides by this id
    whether the trace is recorded. The worker decides by the same id, so unrecorded requests need not carry
    a trace context.
    """

    __slots__ = (
        "_began",
        "_http",
        "_kind",
        "_method",
        "_path",
        "_route",
        "_token",
        "carrier",
        "new_request_id",
        "problem",
        "queued",
        "request_id",
        "span",
        "version",
    )

    def __init__(self, http: HttpTelemetry, method: str, headers: Mapping[str, str]) -> None:
        self._began = perf_counter()
        self._http = http
        self._method = known_method(method)
        self._path = ""
        self._route = ""
        self._kind: str | None = None
        self.span: Span | None = None
        self._token: Token[Context] | None = None
        self.carrier = headers if http.extract is None else http.extract(headers)
        self.version: FunctionVersion | None = None
        self.problem: HttpProblem | None = None
        self.request_id: str | None = None
        self.new_request_id: str | None = None
        self.queued = False
        _current.set(self)

    def set_route(
        self, route: str, kind: str | None = None, *, path: str = "", may_start_trace: bool = True
    ) -> None:
        """Set the route, and start a span if the trace is recorded.

        `kind` is set for requests that invoke a function or poll for its response. Without
        `may_start_trace` the request belongs to the caller's trace or to none.
        """
        self._route, self._kind = route, kind
        http = self._http
        if not http.tracing:
            return
        parent = spans.parse(self.carrier)
        if parent is None:
            if not may_start_trace:
                return
            if kind is not None:
                self.new_request_id = new_id()
                if not spans.begins(self.new_request_id):
                    return
        elif http.follows_parents and not parent.trace_flags.sampled:
            # Nothing to record: the caller's trace context is passed on unchanged.
            return
        self._path = path
        name = f"{self._method} {route or kind or ''}".rstrip()
        if parent is None:
            span = spans.root(http.tracer, name, SpanKind.SERVER, request_id=self.new_request_id)
        else:
            span = http.tracer.start_span(name, spans.below(parent), SpanKind.SERVER)
        if span.is_recording():
            self.span = span
            self._token = otel_context.attach(trace.set_span_in_context(span))
            return
        self.carrier = carrier_below(span, self.carrier)

    @property
    def tracer(self) -> Tracer:
        """What makes spans."""
        return self._http.tracer

    def add_link(self, traceparent: str | None) -> None:
        """Link the span to the call that queued the request."""
        context = spans.parsed(traceparent) if self.span is not None else None
        if self.span is not None and context is not None:
            self.span.add_link(context)

    def end(self, status: int | None, error: BaseException | None = None) -> None:
        """Record the end of the response; `status` is None if there was no response."""
        took = perf_counter() - self._began
        span, version = self.span, self.version
        metrics = self._http.metrics
        metrics.http(self._method, self._route, status, error).record(took, span)
        outcome = None
        if self._kind is not None:
            outcome = self._outcome(status)
            metrics.invocation(version, self._kind, outcome).record(took, span)
            if outcome == names.REJECTED:
                metrics.rejected(self._kind, self.problem)
        if span is not None:
            if self._token is not None:
                otel_context.detach(self._token)
            self._finish(span, status, outcome, error)

    def _outcome(self, status: int | None) -> str:
        if status is None:
            # The response was cut off after its head was sent, or the caller has left.
            return names.GONE if self.problem is None else names.ERRORED
        if self.problem is not None and not self.queued and status < 500:
            return names.REJECTED
        if status == 202:
            return names.IN_PROGRESS
        return names.FULFILLED if status < 400 else names.ERRORED

    def _finish(
        self, span: Span, status: int | None, outcome: str | None, error: BaseException | None
    ) -> None:
        # All at once: each single attribute takes a lock.
        found: dict[str, str | int | None] = {
            names.HTTP_REQUEST_METHOD: self._method,
            names.HTTP_ROUTE: self._route or None,
            names.URL_SCHEME: self._http.metrics.scheme,
            names.URL_PATH: self._path,
            names.HTTP_RESPONSE_STATUS_CODE: status,
            names.OUTCOME: outcome,
            names.REQUEST_ID: self.request_id,
        }
        if self.version is not None:
            found[names.FUNCTION_ID] = self.version.function_id
            found[names.FUNCTION_VERSION_ID] = self.version.id
            found[names.FUNCTION_NAME] = self.version.name
        if status is None:
            found[names.ERROR_TYPE] = type(error).__name__
        elif status >= 500:
            found[names.ERROR_TYPE] = str(status)
            span.set_status(Status(StatusCode.ERROR, str(self.problem) if self.problem else None))
        span.set_attributes({name: value for name, value in found.items() if value is not None})
        span.end()


class HttpTelemetry:
    """Telemetry that all HTTP requests of a gateway share."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self.metrics = metrics
        self.tracer = trace.get_tracer("nvcf_gateway")
        self.tracing = spans.is_tracing()
        self.follows_parents = self.tracing and spans.follows_parents()
        # W3C headers pass as they are.
        self.extract = None if W3C_ONLY else PROPAGATORS.extract

    def request(self, method: str, headers: Mapping[str, str]) -> RequestTelemetry:
        """Return the telemetry of a request that has just arrived."""
        return RequestTelemetry(self, method, headers)
