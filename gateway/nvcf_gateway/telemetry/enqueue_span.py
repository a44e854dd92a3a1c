"""Telemetry of requests on their way into the queue, and of cold starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from nvcf_gateway.telemetry.http_span import carrier_below, current
from nvcf_gateway.telemetry.metrics import GatewayMetrics, Version, attributes_of
from nvcf_otel import names, spans
from nvcf_proto import subjects

_tracer = trace.get_tracer("nvcf_gateway")
_SEND = {
    names.MESSAGING_SYSTEM: names.NATS,
    names.MESSAGING_OPERATION_NAME: "send",
    names.MESSAGING_OPERATION_TYPE: "send",
}


def outgoing_context(caller: Mapping[str, str]) -> Mapping[str, str]:
    """Return the trace context for a message that is sent now; `caller` are the caller's own headers."""
    span = trace.get_current_span()
    if span.is_recording():
        return carrier_below(span, caller)
    telemetry = current()
    return caller if telemetry is None else telemetry.carrier


def poll_span(version: Version, request_id: str) -> AbstractContextManager[Span]:
    """Return a span around the query for a worker's response."""
    return spans.child(
        _tracer,
        names.SEND_POLL,
        SpanKind.PRODUCER,
        {
            **_SEND,
            names.MESSAGING_DESTINATION_NAME: "rq_polling",
            **_request_attributes(version, request_id),
        },
    )


def _request_attributes(version: Version, request_id: str) -> dict[str, str]:
    return {names.REQUEST_ID: request_id, **attributes_of((version.function_id, version.id))}


class EnqueueSpan:
    """The publishing of one request, as a context manager. `carrier` is the trace context for the message."""

    __slots__ = ("_began", "_metrics", "_span", "_version", "carrier")

    def __init__(
        self, metrics: GatewayMetrics, version: Version, span: Span | None, carrier: Mapping[str, str]
    ) -> None:
        self._metrics = metrics
        self._version = version
        self._span = span
        self._began = perf_counter()
        self.carrier = carrier

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        span = self._span
        if error is None:
            self._metrics.enqueued(self._version).record(perf_counter() - self._began, span)
            telemetry = current()
            if telemetry is not None:
                telemetry.queued = True
        if span is not None:
            if error is not None:
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end()


class EnqueueTelemetry:
    """Telemetry of one gateway's queue."""

    def __init__(self, metrics: GatewayMetrics, region: str) -> None:
        self._metrics = metrics
        self._region = region
        self._tracing = spans.is_tracing()

    def enqueue(self, version: Version, request_id: str, size: int, caller: Mapping[str, str]) -> EnqueueSpan:
        """Return a context manager around publishing a request.

        `caller` are the caller's headers: if nothing is recorded, their trace context is passed on unchanged.
        """
        telemetry = current()
        if telemetry is not None:
            telemetry.request_id = request_id
        if not self._tracing or not trace.get_current_span().is_recording():
            return EnqueueSpan(
                self._metrics, version, None, caller if telemetry is None else telemetry.carrier
            )
        span = _tracer.start_span(
            names.SEND_REQUEST,
            kind=SpanKind.PRODUCER,
            attributes={
                **_SEND,
                names.MESSAGING_DESTINATION_NAME: subjects.request_stream(self._region, version.id),
                names.MESSAGING_MESSAGE_ID: request_id,
                names.MESSAGING_MESSAGE_BODY_SIZE: size,
                **_request_attributes(version, request_id),
            },
        )
        return EnqueueSpan(self._metrics, version, span, carrier_below(span, caller))

    def cold_start(self, version: Version, request_id: str) -> Callable[[bool], None]:
        """Record that a request was queued while no instance ran.

        Call the result once, with whether a worker has responded.
        """
        self._metrics.found_no_instance(version)
        began, began_at = perf_counter(), time.time_ns()
        span: Span | None = None
        if self._tracing and trace.get_current_span().is_recording():
            span = _tracer.start_span(
                names.COLD_START, start_time=began_at, attributes=_request_attributes(version, request_id)
            )

        return partial(self._cold_start_ended, version, began, span)

    def _cold_start_ended(self, version: Version, began: float, span: Span | None, responded: bool) -> None:
        if responded:
            self._metrics.cold_start(version).record(perf_counter() - began, span)
        if span is not None:
            if not responded:
                span.set_status(Status(StatusCode.ERROR, "nobody waits for the response any more"))
            span.end()
