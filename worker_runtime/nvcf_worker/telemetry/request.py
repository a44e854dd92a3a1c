"""Telemetry of one request, from its arrival to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from nvcf_otel import names, spans
from nvcf_proto import subjects
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.function.response import Outcome, Source, StreamReply
from nvcf_worker.message import Work, request_time
from nvcf_worker.telemetry.observer import RequestObserver

if TYPE_CHECKING:
    from nvcf_worker.telemetry.metering import Metering
    from nvcf_worker.telemetry.metrics import WorkerMetrics

_CONTEXT_HEADERS = ("tracestate", "baggage")


@dataclass(eq=False)
class RequestInstruments:
    """What the telemetry of all requests of a worker shares.

    attributes: of every request's span. start_links: returns the links of the first request of an instance.
    running: when each request in flight arrived, for the busy time so far.
    """

    metrics: WorkerMetrics
    metering: Metering | None
    version_id: str
    attributes: Mapping[str, str | int | bool]
    start_links: Callable[[], Sequence[Link]]
    running: dict[int, float] = field(default_factory=dict)
    first: bool = True

    def __post_init__(self) -> None:
        self.tracer = trace.get_tracer("nvcf_worker")
        self.tracing = spans.is_tracing()
        self.follows_parents = self.tracing and spans.follows_parents()

    def request_attributes(self, work: Work) -> dict[str, str | int | bool]:
        """Return the attributes of a request's span."""
        return {
            **self.attributes,
            names.MESSAGING_DESTINATION_NAME: subjects.request_stream(work.region, self.version_id),
            names.MESSAGING_MESSAGE_ID: work.request_id,
            names.MESSAGING_MESSAGE_BODY_SIZE: work.message.ByteSize(),
            names.REQUEST_ID: work.request_id,
            names.ATTEMPT: work.attempt,
            names.FAAS_COLDSTART: self.first,
        }


@dataclass(slots=True, eq=False)
class RequestTelemetry(RequestObserver):
    """Records metrics always, and spans where the trace is sampled. Used by the request's own task."""

    shared: RequestInstruments
    work: Work
    scope: CancelScope
    bytes: int = 0
    _arrived: float = field(default_factory=perf_counter)
    _handler_at: float = 0.0
    _handler_done: float = 0.0
    _answered: bool = False
    _status: int = 0
    _error: BaseException | None = None
    _span: Span | None = None
    _handler_span: Span | None = None
    _stream_span: Span | None = None
    _delivery: Span | None = None
    _token: Token[Context] | None = None

    def __post_init__(self) -> None:
        shared, work, metrics = self.shared, self.work, self.shared.metrics
        metrics.requests += 1
        if work.attempt > 1:
            metrics.redeliveries += 1
        parent = None if work.trace is None else spans.parse(work.trace)
        if not shared.tracing:
            pass
        elif parent is None:
            if spans.begins(work.request_id):
                self._open(None)
            else:
                self._token = otel_context.attach(spans.unrecorded(work.request_id))
        elif parent.trace_flags.sampled or not shared.follows_parents:
            self._open(parent)
        metrics.queue.record(max(0.0, work.received_at - request_time(work)), self._span)
        shared.running[id(self)] = self._arrived
        if self._span is not None:
            self._token = otel_context.attach(trace.set_span_in_context(self._span))
        elif parent is not None and self._token is None:
            self._token = otel_context.attach(spans.below(parent))

    def _open(self, parent: SpanContext | None) -> None:
        shared, work = self.shared, self.work
        arrived_ns = int(work.received_at * 1e9)
        links = shared.start_links() if shared.first else ()
        more: dict[str, Any] = {"start_time": arrived_ns, "links": links}
        if parent is None:
            request_id = work.request_id
            span = spans.root(
                shared.tracer, names.PROCESS_REQUEST, SpanKind.CONSUMER, request_id=request_id, **more
            )
        else:
            context = spans.below(parent)
            span = shared.tracer.start_span(names.PROCESS_REQUEST, context, SpanKind.CONSUMER, **more)
        if not span.is_recording():
            self._token = otel_context.attach(trace.set_span_in_context(span))
            return
        self._span = span
        span.set_attributes(shared.request_attributes(work))
        span.add_event("pull", timestamp=arrived_ns)
        waited = shared.tracer.start_span(
            names.QUEUE_WAIT,
            context=trace.set_span_in_context(span),
            start_time=min(int(request_time(work) * 1e9), arrived_ns),
        )
        waited.end(arrived_ns)

    # --- the handler

    def handler_begins(self) -> None:
        """Start the handler's span; spans and logs of the function belong to it from here on."""
        self._handler_at = perf_counter()
        self.shared.metrics.before_seconds += self._handler_at - self._arrived
        if self.work.trace is not None and spans.BAGGAGE in self.work.trace:
            otel_context.attach(spans.with_baggage(self.work.trace, otel_context.get_current()))
        if self._span is not None:
            handler = self._handler_span = self.shared.tracer.start_span(names.HANDLER)
            otel_context.attach(trace.set_span_in_context(handler))
            work = self.work
            known = work.trace or {}
            kept = {name: known[name] for name in _CONTEXT_HEADERS if name in known}
            # The trace goes on below the handler, in a child process or a server.
            work.trace = kept | spans.carrier(handler)

    def handler_failed(self, error: BaseException) -> None:
        self._error = error
        outcome = names.GONE if self.scope.end is not None else names.ERRORED
        if self._handler_span is not None and outcome is names.ERRORED:
            self._handler_span.record_exception(error)
            self._handler_span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._handler_over(outcome)

    def handler_answered(self, response: Outcome) -> Outcome:
        """Record a complete response, or the head and first item of a stream."""
        if not isinstance(response, StreamReply):
            self._handler_over(_outcome_of(response.status))
            return response
        self.shared.metrics.first_item.record(perf_counter() - self._handler_at, self._handler_span)
        if self._span is not None and self._handler_span is not None:
            self._handler_span.add_event(names.FIRST_ITEM)
            self._stream_span = self.shared.tracer.start_span(
                names.STREAM, context=trace.set_span_in_context(self._span)
            )
        response.source = CountedSource(response.source, self, response.status, 1 if response.first else 0)
        self.bytes += len(response.first)
        return response

    def stream_over(self, items: int, status: int, *, complete: bool) -> None:
        """Record the end of a stream: it was read to its end, or nobody reads on."""
        self.shared.metrics.items += items
        if self._stream_span is not None:
            self._stream_span.set_attribute(names.STREAMED_ITEMS, items)
            self._stream_span.end()
            self._stream_span = None
        self._handler_over(_outcome_of(status) if complete else names.GONE)

    def _handler_over(self, outcome: str) -> None:
        if self._handler_done or not self._handler_at:
            return
        self._handler_done = perf_counter()
        took = self._handler_done - self._handler_at
        metrics = self.shared.metrics
        metrics.handler_seconds += took
        metrics.handler(outcome).record(took, self._handler_span)
        if self._handler_span is not None:
            self._handler_span.set_attribute(names.OUTCOME, outcome)
            self._handler_span.end()

    # --- the response

    def delivering(self, response: Outcome) -> None:
        self._status = response.status
        if not isinstance(response, StreamReply):
            self.bytes += len(response.body)
        if self._span is not None:
            self._delivery = self.shared.tracer.start_span(
                names.DELIVER, context=trace.set_span_in_context(self._span), kind=SpanKind.CLIENT
            )

    def delivered(self) -> None:
        self._answered = True
        if self._delivery is not None:
            self._delivery.end()
            self._delivery = None

    def failed(self, error: BaseException) -> None:
        self._error = error
        if self._delivery is not None:
            self._delivery.set_attribute(names.ERROR_TYPE, type(error).__name__)
            self._delivery.set_status(Status(StatusCode.ERROR, str(error)))

    # --- the end

    def end(self) -> None:
        now = perf_counter()
        shared, metrics = self.shared, self.shared.metrics
        if shared.running.pop(id(self), None) is None:
            return
        if self._delivery is not None:
            self._delivery.end()
        if self._handler_at and not self._handler_done:
            self._handler_over(names.GONE if self.scope.end is not None else names.ERRORED)
        whole = now - self._arrived
        metrics.busy_seconds += whole
        if self._handler_done:
            metrics.after_seconds += now - self._handler_done
        metrics.latency.record(whole, self._span)
        metrics.response_bytes += self.bytes
        outcome = self._outcome()
        if outcome is names.FULFILLED or self._answered:
            metrics.answered += 1
        else:
            metrics.failed += 1
        if self._span is not None:
            self._finish(self._span, outcome)
        if self._token is not None:
            otel_context.detach(self._token)
        if shared.metering is not None:
            seconds = self._handler_done - self._handler_at if self._handler_done else 0.0
            shared.metering.invocation(self.work, outcome, seconds, self.bytes)

    def _outcome(self) -> str:
        if self._answered:
            return _outcome_of(self._status)
        if self.work.tunnel is not None and self._error is None and self.scope.end is None:
            self.shared.metrics.sessions += 1
            return names.FULFILLED
        return names.ERRORED if self.scope.end is None else names.GONE

    def _finish(self, span: Span, outcome: str) -> None:
        span.set_attribute(names.OUTCOME, outcome)
        if self._status:
            span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, self._status)
        end = self.scope.end
        if outcome is names.ERRORED and (not self._answered or self._status >= 500):
            why = str(self._status) if self._error is None else type(self._error).__name__
            span.set_attribute(names.ERROR_TYPE, why)
            span.set_status(Status(StatusCode.ERROR, None if self._error is None else str(self._error)))
        elif end is not None and end is not End.CALLER_GONE:
            span.set_attribute(names.ERROR_TYPE, end.name.lower())
            span.set_status(Status(StatusCode.ERROR, end.value))
        span.end(time.time_ns())


def _outcome_of(status: int) -> str:
    return names.FULFILLED if status < 400 else names.ERRORED


@dataclass(slots=True, eq=False)
class CountedSource:
    """The rest of a streamed body; counts its items and bytes."""

    inner: Source
    telemetry: RequestTelemetry
    status: int
    items: int
    over: bool = False

    async def __anext__(self) -> bytes:
        try:
            chunk = await self.inner.__anext__()
        except StopAsyncIteration:
            self._end(complete=True)
            raise
        except Exception as error:
            self.telemetry.handler_failed(error)
            raise
        self.items += 1
        self.telemetry.bytes += len(chunk)
        return chunk

    async def aclose(self) -> None:
        try:
            await self.inner.aclose()
        finally:
            self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        if not self.over:
            self.over = True
            self.telemetry.stream_over(self.items, self.status, complete=complete)
