"""Telemetry of batches: size, waiting time and, for sampled traces, a span linked to the requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import Context

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, Status, StatusCode

from nvcf_otel import names
from nvcf_otel.worker_instruments import BATCH_SIZE, BATCH_WAIT_DURATION
from nvcf_worker.telemetry.measurements import measure

_tracer = trace.get_tracer("nvcf_worker")


class Member:
    """The span of the request of an item, if it is sampled, and the time since which the item waits."""

    __slots__ = ("_since", "span")

    def __init__(self) -> None:
        span = trace.get_current_span()
        # In a child process the span of the request is the worker's, of which only the ids are known.
        sampled = span.is_recording() or span.get_span_context().trace_flags.sampled
        self.span: Span | None = span if sampled else None
        self._since = time.time_ns() if self.span is not None else 0

    def waited(self, batch: Span) -> None:
        """Record the wait as a span that ends now, linked to the batch."""
        if self.span is not None:
            context = trace.set_span_in_context(self.span)
            links = [Link(batch.get_span_context())]
            _tracer.start_span(names.BATCH_WAIT, context=context, start_time=self._since, links=links).end()


class BatchTelemetry:
    """Telemetry of one batch. `waited` is how many seconds its oldest item has waited."""

    def __init__(self, function: str, members: Sequence[Member], waited: float) -> None:
        self._span = _batch_span(function, members)
        attributes = {names.BATCH_FUNCTION: function}
        measure(BATCH_SIZE.name, len(members), attributes, self._span)
        measure(BATCH_WAIT_DURATION.name, waited, attributes, self._span)
        # Empty except for the span of the batch: a batch does not belong to one request, so its logs must not
        # carry the id of the request that happened to complete it.
        self.context = Context()
        if self._span is not None:
            self.context.run(otel_context.attach, trace.set_span_in_context(self._span))
            for member in members:
                member.waited(self._span)

    def failed(self, error: BaseException) -> None:
        """Record that the batch function raised `error`."""
        if self._span is not None:
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))

    def end(self) -> None:
        """End the span of the batch."""
        if self._span is not None:
            self._span.end()


def _batch_span(function: str, members: Sequence[Member]) -> Span | None:
    recorded = [member.span for member in members if member.span is not None]
    if not recorded:
        return None
    # A child of the first recorded request, so that it is kept with that trace, and linked to all of them.
    return _tracer.start_span(
        names.BATCH,
        context=trace.set_span_in_context(recorded[0]),
        links=[Link(span.get_span_context()) for span in recorded],
        attributes={names.BATCH_FUNCTION: function, names.BATCH_MEMBERS: len(members)},
    )
