"""Sessions as telemetry sees them: how long opening takes, how many are linked, what flows through them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from time import perf_counter

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.telemetry.enqueue_span import Sending, SendingTelemetry
from nvcf_gateway.telemetry.http_span import Doors
from nvcf_gateway.telemetry.metrics import Version
from nvcf_otel import names, spans


class SessionTelemetry:
    """Used on the event loop; `active` and `bytes` may be read from any thread."""

    def __init__(self, doors: Doors, sending: SendingTelemetry) -> None:
        self._doors = doors
        self._sending = sending
        self._links: set[Wire] = set()
        self._past = (0, 0)

    @property
    def active(self) -> int:
        """Sessions with a link to a worker."""
        return len(self._links)

    def bytes(self) -> tuple[int, int]:
        """Bytes that ever went to workers, and to callers."""
        links, (sent, received) = list(self._links), self._past
        return sent + sum(each.sent for each in links), received + sum(each.received for each in links)

    def linked(self, wire: Wire) -> None:
        """A worker has dialled in."""
        if wire.is_lost:
            return
        self._links.add(wire)
        wire.on_lost = lambda: self._gone(wire)

    def _gone(self, wire: Wire) -> None:
        self._links.discard(wire)
        self._past = (self._past[0] + wire.sent, self._past[1] + wire.received)

    def sending(self, version: Version, request_id: str, size: int, carrier: Mapping[str, str]) -> Sending:
        """Wrap queueing the request of a session."""
        return self._sending.sending(version, request_id, size, carrier)

    @contextlib.contextmanager
    def opening(self, version: Version, caller: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
        """Wrap opening a session; yields the trace context to pass on. `caller` are the caller's headers."""
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
                self._doors.figures.rejected(names.SESSION, problem)
            if span is not None:
                span.set_attribute(names.ERROR_TYPE, str(problem.status))
                span.set_status(Status(StatusCode.ERROR, str(problem)))
            raise
        finally:
            if token is not None:
                otel_context.detach(token)
            series = self._doors.figures.invocation(version, names.SESSION, outcome)
            series.record(perf_counter() - began, span)
            if span is not None:
                span.set_attribute(names.OUTCOME, outcome)
                span.end()

    def _span(self, version: Version, caller: Mapping[str, str]) -> tuple[Span | None, Mapping[str, str]]:
        """A span below the HTTP request's, where there is one, else below the caller's own."""
        doors = self._doors
        if not doors.tracing:
            return None, caller
        attributes = {names.FUNCTION_ID: version.function_id, names.FUNCTION_VERSION_ID: version.id}
        if trace.get_current_span().is_recording():
            return doors.tracer.start_span(names.OPEN_SESSION, attributes=attributes), caller
        carrier = {name.lower(): value for name, value in caller.items()}
        parent = spans.parse(carrier)
        if parent is not None and doors.follows_parents and not parent.trace_flags.sampled:
            return None, carrier
        span = doors.tracer.start_span(
            names.OPEN_SESSION, context=spans.below(parent), kind=SpanKind.SERVER, attributes=attributes
        )
        return (span, carrier) if span.is_recording() else (None, carrier | spans.carrier(span))
