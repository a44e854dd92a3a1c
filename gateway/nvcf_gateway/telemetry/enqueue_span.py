"""Requests on their way into the queue, and those that find nobody there: cold starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from nvcf_gateway.telemetry.http_span import current, of_request
from nvcf_gateway.telemetry.metrics import Figures, Version
from nvcf_otel import names, spans
from nvcf_proto import subjects

_tracer = trace.get_tracer("nvcf_gateway")


def passed_on(caller: Mapping[str, str]) -> Mapping[str, str]:
    """The trace context for a message that is sent now; `caller` are the caller's own headers."""
    span = trace.get_current_span()
    if span.is_recording():
        return _below(span, caller)
    exchange = current()
    return caller if exchange is None else exchange.carrier


def _below(span: Span, caller: Mapping[str, str]) -> dict[str, str]:
    carrier = spans.carrier(span)
    if "baggage" in caller:
        carrier["baggage"] = caller["baggage"]
    return carrier


def asking(version: Version, request_id: str) -> AbstractContextManager[Span]:
    """Wrap asking a worker for its answer."""
    return spans.child(
        _tracer,
        names.SEND_POLL,
        SpanKind.PRODUCER,
        {
            names.MESSAGING_SYSTEM: names.NATS,
            names.MESSAGING_OPERATION_NAME: "send",
            names.MESSAGING_OPERATION_TYPE: "send",
            names.MESSAGING_DESTINATION_NAME: "rq_polling",
            names.REQUEST_ID: request_id,
            names.FUNCTION_ID: version.function_id,
            names.FUNCTION_VERSION_ID: version.id,
        },
    )


class Sending:
    """Publishing one request. `carrier` is the trace context that goes with the message."""

    __slots__ = ("_began", "_figures", "_span", "_version", "carrier")

    def __init__(
        self, figures: Figures, version: Version, span: Span | None, carrier: Mapping[str, str]
    ) -> None:
        self._figures = figures
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
            self._figures.enqueued(self._version).record(perf_counter() - self._began, span)
            exchange = current()
            if exchange is not None:
                exchange.queued = True
        if span is not None:
            if error is not None:
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
                span.set_status(Status(StatusCode.ERROR, str(error)))
            span.end()


class SendingTelemetry:
    """Makes these for one gateway."""

    def __init__(self, figures: Figures, region: str) -> None:
        self._figures = figures
        self._region = region

    def sending(self, version: Version, request_id: str, size: int, caller: Mapping[str, str]) -> Sending:
        """Wrap publishing a request; `caller` are the headers whose trace context goes on as it is where
        nothing is recorded.
        """
        of_request(request_id)
        if not trace.get_current_span().is_recording():
            return Sending(self._figures, version, None, passed_on(caller))
        span = _tracer.start_span(
            names.SEND_REQUEST,
            kind=SpanKind.PRODUCER,
            attributes={
                names.MESSAGING_SYSTEM: names.NATS,
                names.MESSAGING_OPERATION_NAME: "send",
                names.MESSAGING_OPERATION_TYPE: "send",
                names.MESSAGING_DESTINATION_NAME: subjects.request_stream(self._region, version.id),
                names.MESSAGING_MESSAGE_ID: request_id,
                names.MESSAGING_MESSAGE_BODY_SIZE: size,
                names.REQUEST_ID: request_id,
                names.FUNCTION_ID: version.function_id,
                names.FUNCTION_VERSION_ID: version.id,
            },
        )
        return Sending(self._figures, version, span, _below(span, caller))

    def cold_start(self, version: Version, request_id: str) -> Callable[[bool], None]:
        """A request was queued and nobody is there; call the result with whether it was answered, once."""
        self._figures.met_no_instance(version)
        began, began_at = perf_counter(), time.time_ns()
        parent = trace.get_current_span()
        span: Span | None = None
        if parent.is_recording():
            span = _tracer.start_span(
                names.COLD_START,
                start_time=began_at,
                attributes={
                    names.REQUEST_ID: request_id,
                    names.FUNCTION_ID: version.function_id,
                    names.FUNCTION_VERSION_ID: version.id,
                },
            )

        def ended(answered: bool) -> None:
            if answered:
                self._figures.cold_start(version).record(perf_counter() - began, span)
            if span is not None:
                if not answered:
                    span.set_status(Status(StatusCode.ERROR, "nobody waits for the answer any more"))
                span.end()

        return ended
