"""One HTTP request as telemetry sees it, from its head to its answer."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from time import perf_counter
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from nvcf_gateway.errors import HttpProblem
from nvcf_otel import names, spans
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion

if TYPE_CHECKING:
    from nvcf_gateway.telemetry.metrics import Figures

_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
OTHER_METHOD = "_OTHER"
"""What the semantic conventions call a method that is none of HTTP's own."""

_current: ContextVar[Exchange | None] = ContextVar("nvcf_gateway_exchange", default=None)


def current() -> Exchange | None:
    """The exchange that this task serves."""
    return _current.get()


def own_trace() -> str | None:
    """Traceparent of the span of this task's exchange, where it is recorded."""
    exchange = _current.get()
    if exchange is None or exchange.span is None:
        return None
    return spans.traceparent(exchange.span.get_span_context())


def new_request_id() -> str:
    """The id for the request that the current exchange queues. Ask once an exchange."""
    exchange = _current.get()
    planned = None if exchange is None else exchange.new_request_id
    return planned or new_id()


def of_version(version: FunctionVersion) -> None:
    """The current exchange is about this version."""
    exchange = _current.get()
    if exchange is not None:
        exchange.version = version


def of_request(request_id: str, began_as: str | None = None) -> None:
    """The current exchange is about this request; `began_as`: traceparent of the call that queued it."""
    exchange = _current.get()
    if exchange is not None:
        exchange.request_id = request_id
        exchange.links(began_as)


def known_method(method: str) -> str:
    """The method as an attribute: callers can make up any number of others."""
    return method if method in _METHODS else OTHER_METHOD


class Exchange:
    """Make one when a request arrives, say its route when that is known, and end it with the answer's status.

    `carrier` holds the trace context to pass on where no span of ours stands in between. `new_request_id` is
    the id of the request that this exchange queues: one that begins a trace decides by it whether that is
    recorded, as the worker does, so that the many that are not need not carry it there.
    """

    __slots__ = (
        "_began",
        "_doors",
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

    def __init__(self, doors: Doors, method: str, headers: Mapping[str, str]) -> None:
        self._began = perf_counter()
        self._doors = doors
        self._method = known_method(method)
        self._path = ""
        self._route = ""
        self._kind: str | None = None
        self.span: Span | None = None
        self._token: Token[Context] | None = None
        self.carrier = headers
        self.version: FunctionVersion | None = None
        self.problem: HttpProblem | None = None
        self.request_id: str | None = None
        self.new_request_id: str | None = None
        self.queued = False
        _current.set(self)

    def routed(self, route: str, kind: str | None = None, *, path: str = "", roots: bool = True) -> None:
        """The request's route is known. `kind` is set for those that invoke a function or ask for its answer;
        without `roots` it is part of a caller's trace or of none.
        """
        self._route, self._kind = route, kind
        doors = self._doors
        if not doors.tracing:
            return
        parent = spans.parse(self.carrier)
        if parent is None:
            if not roots:
                return
            if kind is not None:
                self.new_request_id = new_id()
                if not spans.begins(self.new_request_id):
                    return
        elif doors.follows_parents and not parent.trace_flags.sampled:
            # Nothing to record, and its own trace context goes on as it is.
            return
        self._path = path
        name = f"{self._method} {route or kind or ''}".rstrip()
        if parent is None:
            span = spans.root(doors.tracer, name, SpanKind.SERVER, request_id=self.new_request_id)
        else:
            span = doors.tracer.start_span(name, spans.below(parent), SpanKind.SERVER)
        if span.is_recording():
            self.span = span
            self._token = otel_context.attach(trace.set_span_in_context(span))
            return
        own = spans.carrier(span)
        baggage = self.carrier.get("baggage")
        if baggage is not None:
            own["baggage"] = baggage
        self.carrier = own

    def links(self, traceparent: str | None) -> None:
        """What this exchange is about began elsewhere."""
        context = spans.parsed(traceparent) if self.span is not None else None
        if self.span is not None and context is not None:
            self.span.add_link(context)

    def end(self, status: int | None, error: BaseException | None = None) -> None:
        """The answer is complete, or went no further; `status` is None when there was none."""
        took = perf_counter() - self._began
        span, version = self.span, self.version
        figures = self._doors.figures
        figures.http(self._method, self._route, status, error).record(took, span)
        outcome = None
        if self._kind is not None:
            outcome = self._outcome(status)
            figures.invocation(version, self._kind, outcome).record(took, span)
            if outcome == names.REJECTED:
                figures.rejected(self._kind, self.problem)
        if span is not None:
            if self._token is not None:
                otel_context.detach(self._token)
            self._finish(span, status, outcome, error)

    def _outcome(self, status: int | None) -> str:
        if status is None:
            # An answer that cannot be taken back was cut off, or nobody was left to read it.
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
            names.URL_SCHEME: self._doors.figures.scheme,
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


class Doors:
    """What all exchanges of a gateway share."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self.tracer = trace.get_tracer("nvcf_gateway")
        self.tracing = spans.is_tracing()
        self.follows_parents = self.tracing and spans.follows_parents()

    def exchange(self, method: str, headers: Mapping[str, str]) -> Exchange:
        """A request has arrived."""
        return Exchange(self, method, headers)
