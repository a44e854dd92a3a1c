"""One request as telemetry sees it, from its arrival to its end."""

from __future__ import annotations

import time
from contextvars import Token
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode

from nvcf_otel import names, spans
from nvcf_worker.function.response import Outcome, StreamReply
from nvcf_worker.message import request_time
from nvcf_worker.queue.delivery import ActiveRequest, End

if TYPE_CHECKING:
    from nvcf_worker.telemetry.worker import WorkerTelemetry

_CONTEXT_HEADERS = ("tracestate", "baggage")


class Telling:
    """With telemetry: figures always, spans where the trace is sampled. Used by the request's own task."""

    __slots__ = (
        "_active",
        "_answered",
        "_arrived",
        "_delivery",
        "_error",
        "_handler_at",
        "_handler_done",
        "_handler_span",
        "_session",
        "_shared",
        "_span",
        "_status",
        "_stream_span",
        "_token",
        "bytes",
    )

    def __init__(self, shared: WorkerTelemetry, active: ActiveRequest) -> None:
        self._arrived = perf_counter()
        self._active = active
        self._shared = shared
        self._handler_at = 0.0
        self._handler_done = 0.0
        self._answered = False
        self._status = 0
        self._error: BaseException | None = None
        self._span: Span | None = None
        self._handler_span: Span | None = None
        self._stream_span: Span | None = None
        self._delivery: Span | None = None
        self._session = active.work.tunnel is not None
        self._token: Token[Context] | None = None
        self.bytes = 0
        work, figures = active.work, shared.figures
        figures.requests += 1
        if work.attempt > 1:
            figures.redeliveries += 1
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
        figures.queue.record(max(0.0, work.received_at - request_time(work)), self._span)
        shared.running[id(self)] = self._arrived
        if self._span is not None:
            self._token = otel_context.attach(trace.set_span_in_context(self._span))
        elif parent is not None and self._token is None:
            self._token = otel_context.attach(spans.below(parent))

    def _open(self, parent: SpanContext | None) -> None:
        shared, work = self._shared, self._active.work
        arrived_ns = int(work.received_at * 1e9)
        more: dict[str, Any] = {"start_time": arrived_ns, "links": shared.first_links()}
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
        """Spans and logs of the function join the handler's span from here on."""
        self._handler_at = perf_counter()
        self._shared.figures.before_seconds += self._handler_at - self._arrived
        if self._span is not None:
            handler = self._handler_span = self._shared.tracer.start_span(names.HANDLER)
            otel_context.attach(trace.set_span_in_context(handler))
            work = self._active.work
            known = work.trace or {}
            kept = {name: known[name] for name in _CONTEXT_HEADERS if name in known}
            # Whoever goes on from here, a child process or a server, is below the handler.
            work.trace = kept | spans.carrier(handler)

    def handler_failed(self, error: BaseException) -> None:
        """It raised; errors that are answers are no failures of the function's code."""
        self._error = error
        outcome = names.GONE if self._active.end is not None else names.ERRORED
        if self._handler_span is not None and outcome is names.ERRORED:
            self._handler_span.record_exception(error)
            self._handler_span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._handler_over(outcome)

    def handler_answered(self, outcome: Outcome) -> Outcome:
        """A complete answer, or the head and first item of a stream."""
        if not isinstance(outcome, StreamReply):
            self._handler_over(_outcome_of(outcome.status))
            return outcome
        self._shared.figures.first_item.record(perf_counter() - self._handler_at, self._handler_span)
        if self._span is not None and self._handler_span is not None:
            self._handler_span.add_event(names.FIRST_ITEM)
            self._stream_span = self._shared.tracer.start_span(
                names.STREAM, context=trace.set_span_in_context(self._span)
            )
        outcome.source = CountedSource(outcome.source, self, outcome.status, 1 if outcome.first else 0)
        self.bytes += len(outcome.first)
        return outcome

    def stream_over(self, items: int, status: int, *, complete: bool) -> None:
        """The stream was read to its end, or nobody reads on."""
        self._shared.figures.items += items
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
        figures = self._shared.figures
        figures.handler_seconds += took
        figures.handler(outcome).record(took, self._handler_span)
        if self._handler_span is not None:
            self._handler_span.set_attribute(names.OUTCOME, outcome)
            self._handler_span.end()

    # --- the answer

    def delivering(self, outcome: Outcome) -> None:
        """The answer goes to whoever waits."""
        self._status = outcome.status
        if not isinstance(outcome, StreamReply):
            self.bytes += len(outcome.body)
        if self._span is not None:
            self._delivery = self._shared.tracer.start_span(
                names.DELIVER, context=trace.set_span_in_context(self._span), kind=SpanKind.CLIENT
            )

    def delivered(self) -> None:
        """It has arrived."""
        self._answered = True
        if self._delivery is not None:
            self._delivery.end()
            self._delivery = None

    def failed(self, error: BaseException) -> None:
        """The request came to nothing, or the answer did not arrive."""
        self._error = error
        if self._delivery is not None:
            self._delivery.set_attribute(names.ERROR_TYPE, type(error).__name__)
            self._delivery.set_status(Status(StatusCode.ERROR, str(error)))

    # --- the end

    def end(self) -> None:
        """The request is over."""
        now = perf_counter()
        shared, figures = self._shared, self._shared.figures
        if shared.running.pop(id(self), None) is None:
            return
        if self._delivery is not None:
            self._delivery.end()
        if self._handler_at and not self._handler_done:
            self._handler_over(names.GONE if self._active.end is not None else names.ERRORED)
        whole = now - self._arrived
        figures.busy_seconds += whole
        if self._handler_done:
            figures.after_seconds += now - self._handler_done
        figures.latency.record(whole, self._span)
        figures.response_bytes += self.bytes
        outcome = self._outcome()
        if outcome is names.FULFILLED or self._answered:
            figures.answered += 1
        else:
            figures.failed += 1
        if self._span is not None:
            self._finish(self._span, outcome)
        if self._token is not None:
            otel_context.detach(self._token)
        if shared.metering is not None:
            seconds = self._handler_done - self._handler_at if self._handler_done else 0.0
            shared.metering.invocation(self._active.work, outcome, seconds, self.bytes)

    def _outcome(self) -> str:
        if self._answered:
            return _outcome_of(self._status)
        if self._session and self._error is None and self._active.end is None:
            self._shared.figures.sessions += 1
            return names.FULFILLED
        return names.ERRORED if self._active.end is None else names.GONE

    def _finish(self, span: Span, outcome: str) -> None:
        span.set_attribute(names.OUTCOME, outcome)
        if self._status:
            span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, self._status)
        end = self._active.end
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


class CountedSource:
    """The rest of a streamed body, with its items counted."""

    __slots__ = ("_inner", "_items", "_over", "_status", "_told")

    def __init__(self, inner: object, told: Telling, status: int, items: int) -> None:
        self._inner = inner
        self._told = told
        self._status = status
        self._items = items
        self._over = False

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await self._inner.__anext__()  # type: ignore[attr-defined] # a Source
        except StopAsyncIteration:
            self._end(complete=True)
            raise
        except Exception as error:
            self._told.handler_failed(error)
            raise
        self._items += 1
        self._told.bytes += len(chunk)
        return chunk

    async def aclose(self) -> None:
        """Stop the handler and wait until it has really ended."""
        try:
            await self._inner.aclose()  # type: ignore[attr-defined] # a Source
        finally:
            self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        if not self._over:
            self._over = True
            self._told.stream_over(self._items, self._status, complete=complete)
