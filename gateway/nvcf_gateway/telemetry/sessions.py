"""Telemetry of sessions: how long opening takes, how many have a tunnel, how many bytes pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from time import perf_counter

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.telemetry.enqueue_span import EnqueueSpan, EnqueueTelemetry
from nvcf_gateway.telemetry.http_span import HttpTelemetry
from nvcf_gateway.telemetry.metrics import Version
from nvcf_otel import names, spans


class SessionTelemetry:
    """Counts sessions and their bytes on the event loop; `active` and `bytes` may be read from any thread."""

    def __init__(self, http: HttpTelemetry, sending: EnqueueTelemetry) -> None:
        self._http = http
        self._sending = sending
        self._tunnels: set[Wire] = set()
        self._past = (0, 0)

    @property
    def active(self) -> int:
        """Number of sessions with a tunnel to a worker."""
        return len(self._tunnels)

    def bytes(self) -> tuple[int, int]:
        """Return how many bytes went to workers and to callers since the start."""
        tunnels, (sent, received) = list(self._tunnels), self._past
        return sent + sum(each.sent for each in tunnels), received + sum(each.received for each in tunnels)

    def connected(self, wire: Wire) -> None:
        """Count the tunnel of a session."""
        if wire.is_lost:
            return
        self._tunnels.add(wire)
        wire.on_lost = lambda: self._disconnected(wire)

    def _disconnected(self, wire: Wire) -> None:
        self._tunnels.discard(wire)
        self._past = (self._past[0] + wire.sent, self._past[1] + wire.received)

    def enqueue(
        self, version: Version, request_id: str, size: int, carrier: Mapping[str, str]
    ) -> EnqueueSpan:
        """Return a context manager around queueing the request of a session."""
        return self._sending.enqueue(version, request_id, size, carrier)

    @contextlib.contextmanager
    def opening(self, version: Version, caller: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
        """Wrap the opening of a session; yield the trace context to pass on. `caller` are its headers."""
        began = perf_counter()
        span, carrier = self._span(version, caller)
        token = None if span is None else otel_context.attach(trace.set_span_in_context(span))
        outcome = names.GONE
        try:
            yield carrier
            outcome = names.FULFILLED
        except HttpProblem as problem:
            refused = problem.status < 500
            outcome = names.REJECTED if refused else names.ERRORED
            if refused:
                self._http.metrics.rejected(names.SESSION, problem)
            if span is not None:
                span.set_attribute(names.ERROR_TYPE, str(problem.status))
                span.set_status(Status(StatusCode.ERROR, str(problem)))
            raise
        finally:
            if token is not None:
                otel_context.detach(token)
            series = self._http.metrics.invocation(version, names.SESSION, outcome)
            series.record(perf_counter() - began, span)
            if span is not None:
                span.set_attribute(names.OUTCOME, outcome)
                span.end()

    def _span(self, version: Version, caller: Mapping[str, str]) -> tuple[Span | None, Mapping[str, str]]:
        """Start a span below that of the HTTP request, if there is one, else below the caller's own."""
        http = self._http
        if http.extract is not None:
            caller = http.extract(caller)
        if not http.tracing:
            return None, caller
        attributes = {names.FUNCTION_ID: version.function_id, names.FUNCTION_VERSION_ID: version.id}
        if trace.get_current_span().is_recording():
            return http.tracer.start_span(names.OPEN_SESSION, attributes=attributes), caller
        carrier = {name.lower(): value for name, value in caller.items()}
        parent = spans.parse(carrier)
        if parent is not None and http.follows_parents and not parent.trace_flags.sampled:
            return None, carrier
        span = http.tracer.start_span(
            names.OPEN_SESSION, context=spans.below(parent), kind=SpanKind.SERVER, attributes=attributes
        )
        return (span, carrier) if span.is_recording() else (None, carrier | spans.carrier(span))
