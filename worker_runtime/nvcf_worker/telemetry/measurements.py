"""Measurements from anywhere in a process, e.g. of batches and tokens, on their way to the worker's metrics.

In the worker they are recorded. A child process sends them to the worker, which has the metrics of the
instance. Without a listener they are dropped.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, Status, StatusCode

from nvcf_otel import names, spans
from nvcf_otel.histograms import histogram
from nvcf_otel.process import age
from nvcf_otel.worker_instruments import ALL, INSTANCE_LOAD_DURATION
from nvcf_proto.environment import TRACEPARENT

_INSTRUMENTS = {instrument.name: instrument for instrument in ALL}
_tracer = trace.get_tracer("nvcf_worker")


class Measurement(NamedTuple):
    """One value of a histogram: the instrument's name, its own attributes, the traceparent of its span."""

    name: str
    value: float
    attributes: Mapping[str, str]
    trace: str | None = None

    def pack(self) -> bytes:
        """Serialise it for another process of the same worker."""
        return pickle.dumps(tuple(self), pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(payload: bytes) -> Measurement:
        """Read what another process of the same worker has packed."""
        return Measurement(*pickle.loads(payload))  # noqa: S301 - from our own child


Listener = Callable[[Measurement], None]

_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Pass all measurements of this process to `listener`, which is called on any thread."""
    global _listener  # there is one worker per process
    _listener = listener


def measure(name: str, value: float, attributes: Mapping[str, str], span: Span | None = None) -> None:
    """Report one value. `span` is the span in which it was measured."""
    if _listener is not None:
        context = None if span is None else spans.traceparent(span.get_span_context())
        _listener(Measurement(name, value, attributes, context))


def received(payload: bytes) -> None:
    """Report a measurement that a child process has sent."""
    if _listener is not None:
        _listener(Measurement.unpack(payload))


def record(measurement: Measurement, shared: Mapping[str, str]) -> None:
    """Record a measurement, on the event loop. `shared` are the attributes of all metrics of this worker."""
    context = spans.parsed(measurement.trace)
    series = histogram(_INSTRUMENTS[measurement.name]).series({**shared, **measurement.attributes})
    series.record(measurement.value, None if context is None else NonRecordingSpan(context))


async def measure_load(environ: Mapping[str, str], setting_up: Awaitable[None]) -> None:
    """Await the set-up of the function, in the worker or in a child process; record it as span and duration.

    The span is a child of the one that `environ` names. The duration counts from the start of the process, so
    that it includes imports.
    """
    span = _tracer.start_span(names.LOAD, context=spans.below(spans.parsed(environ.get(TRACEPARENT))))
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        await setting_up
    except BaseException as error:
        span.set_attribute(names.ERROR_TYPE, type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, str(error)))
        raise
    else:
        measure(INSTANCE_LOAD_DURATION.name, age(), {}, span)
    finally:
        otel_context.detach(token)
        span.end()
