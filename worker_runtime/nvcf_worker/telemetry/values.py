"""Single values from anywhere in a process, e.g. of batches and tokens, on their way to the worker's figures.

In the worker itself they are recorded; in a child process they are sent to the worker, which has the only
figures of an instance. Where nobody listens they cost nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import NamedTuple

from opentelemetry.trace import NonRecordingSpan, Span

from nvcf_otel import spans
from nvcf_otel.histograms import histogram
from nvcf_otel.worker_instruments import ALL

_INSTRUMENTS = {instrument.name: instrument for instrument in ALL}


class Value(NamedTuple):
    """One value of a histogram: the instrument's name, its own attributes, the traceparent it belongs to."""

    name: str
    value: float
    attributes: Mapping[str, str]
    trace: str | None = None

    def pack(self) -> bytes:
        """For another process of the same worker."""
        return pickle.dumps(tuple(self), pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(payload: bytes) -> Value:
        """From another process of the same worker."""
        return Value(*pickle.loads(payload))  # noqa: S301 - from our own child


Listener = Callable[[Value], None]

_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Give all values of this process to `listener` from now on; it is called on any thread."""
    global _listener  # there is one worker a process
    _listener = listener


def tell(name: str, value: float, attributes: Mapping[str, str], span: Span | None = None) -> None:
    """One value. `span`: the span that it was measured in."""
    if _listener is not None:
        trace = None if span is None else spans.traceparent(span.get_span_context())
        _listener(Value(name, value, attributes, trace))


def received(payload: bytes) -> None:
    """A value that a child sent."""
    if _listener is not None:
        _listener(Value.unpack(payload))


def record(value: Value, shared: Mapping[str, str]) -> None:
    """Record a value; `shared` are the attributes of all figures of this worker. On the event loop."""
    context = spans.parsed(value.trace)
    series = histogram(_INSTRUMENTS[value.name]).series({**shared, **value.attributes})
    series.record(value.value, None if context is None else NonRecordingSpan(context))
