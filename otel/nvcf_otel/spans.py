"""Spans that cost almost nothing where a trace is not sampled, and W3C trace context as text.

Formats: https://www.w3.org/TR/trace-context/ (traceparent, tracestate). Without an SDK there are no spans.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceFlags, Tracer, TraceState

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
BAGGAGE = "baggage"

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
# Shared and constant: creating them for each request costs as much as the rest of parsing.
_FLAGS = tuple(TraceFlags(value) for value in range(256))
_NO_STATE = TraceState()
_BAGGAGE = W3CBaggagePropagator()
NOTHING: AbstractContextManager[Span] = nullcontext(trace.INVALID_SPAN)
"""A `with` block without a span."""


def is_tracing() -> bool:
    """Return whether an SDK has been set up for tracing."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def follows_parents() -> bool:
    """Return whether the sampler follows the caller's trace context, so that it need not be asked.

    Read from the description that the specification prescribes for parent-based samplers.
    """
    sampler = getattr(trace.get_tracer_provider(), "sampler", None)
    return sampler is not None and str(sampler.get_description()).startswith("ParentBased")


def parse(carrier: Mapping[str, str]) -> SpanContext | None:
    """Return the remote span that a carrier names; None when it is missing or malformed."""
    text = carrier.get(TRACEPARENT)
    if text is None:
        return None
    match = _TRACEPARENT.fullmatch(text)
    if match is None or (match[0].startswith("00") and len(match[0]) != 55):
        return None
    return SpanContext(
        trace_id=int(match[1], 16),
        span_id=int(match[2], 16),
        is_remote=True,
        trace_flags=_FLAGS[int(match[3], 16)],
        trace_state=_state(carrier.get(TRACESTATE)),
    )


def _state(text: str | None) -> TraceState:
    # Most callers send none, and parsing is slow.
    return TraceState.from_header([text]) if text else _NO_STATE


def parsed(traceparent: str | None) -> SpanContext | None:
    """Do as `parse`, for a traceparent alone."""
    return parse({TRACEPARENT: traceparent}) if traceparent else None


def below(parent: SpanContext | None) -> Context:
    """Return the context for a child of `parent`, or for the root of a new trace."""
    if parent is None:
        return Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())


def with_baggage(carrier: Mapping[str, str], context: Context) -> Context:
    """Return the context with the baggage of a carrier, for the function's own code and calls."""
    text = carrier.get(BAGGAGE)
    return _BAGGAGE.extract({BAGGAGE: text}, context) if text else context


def traceparent(context: SpanContext) -> str | None:
    """Return the text from which another process creates a child of this span; None for no span."""
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def carrier(span: Span) -> dict[str, str]:
    """Return the trace context headers of a span; empty for no span."""
    context = span.get_span_context()
    text = traceparent(context)
    if text is None:
        return {}
    found = {TRACEPARENT: text}
    if context.trace_state:
        found[TRACESTATE] = context.trace_state.to_header()
    return found


class _Planned(threading.local):
    """The trace id of the root span that this thread is about to create."""

    trace_id: int | None = None


planned = _Planned()
_MASK = (1 << 64) - 1
_bound: int | None = None
_bound_text = ""


def decide_roots(ratio: float | None) -> None:
    """Let `root` decide by this ratio. With None the provider's sampler decides.

    Called with the ratio of the provider's sampler; the provider takes its ids from `planned`.
    """
    global _bound, _bound_text  # as the provider, once for each process
    _bound = None if ratio is None else round(ratio * (1 << 64))
    all_wanted = _bound is not None and _bound > _MASK
    # Compares greater than all hexadecimal digits: all traces are wanted.
    _bound_text = "gg" if all_wanted else f"{_bound or 0:016x}"


def trace_id_of(request_id: str) -> int:
    """Return the id of the trace that a request (a UUID) starts: its own with bytes 0 and 8 swapped.

    Samplers read the last 64 bits of an id, and W3C's random flag promises that the last 56 are random. In a
    UUID the last 64 bits begin with a constant.
    """
    digits = request_id.replace("-", "")
    return int(digits[16:18] + digits[2:16] + digits[:2] + digits[18:], 16)


def begins(request_id: str) -> bool:
    """Return whether to create a span for the root of this request's trace.

    This is the specification's ratio sampler with `trace_id_of`: all processes with the same ratio decide
    alike without asking each other. True where only the provider's sampler can decide.
    """
    if _bound is None:
        return True
    # Hexadecimal digits compare as the numbers do, and the first two decide most cases.
    first = request_id[:2]
    if first > _bound_text[:2]:
        return False
    return first + request_id[21:23] + request_id[24:] < _bound_text


def root(
    tracer: Tracer,
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    request_id: str | None = None,
    **more: Any,
) -> Span:
    """Start the first span of a new trace, that of `request_id` if given.

    `more` are arguments of `start_span`. An unsampled span costs a tenth of the SDK's, and most are
    unsampled: the decision of the specification's ratio sampler is made here, and the SDK creates only spans
    that it will record.
    """
    trace_id = (random.getrandbits(128) or 1) if request_id is None else trace_id_of(request_id)
    bound = _bound
    if bound is not None and trace_id & _MASK >= bound:
        span_id = random.getrandbits(64) or 1
        return trace.NonRecordingSpan(SpanContext(trace_id, span_id, False, _FLAGS[0], _NO_STATE))
    planned.trace_id = trace_id
    try:
        return tracer.start_span(name, context=Context(), kind=kind, **more)
    finally:
        planned.trace_id = None


class Unrecorded(trace.NonRecordingSpan):
    """The span of a request whose trace is not recorded. Spans below it are not recorded either.

    Its ids are created when they are asked for, which is rare.
    """

    __slots__ = ("_known", "_request_id")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._known: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        """Return the context, the same each time."""
        if self._known is None:
            trace_id, span_id = trace_id_of(self._request_id), random.getrandbits(64) or 1
            self._known = SpanContext(trace_id, span_id, False, _FLAGS[0], _NO_STATE)
        return self._known


(_SPAN_KEY,) = trace.set_span_in_context(trace.INVALID_SPAN, Context())


def unrecorded(request_id: str) -> Context:
    """Return the context of a request for which `begins` is false."""
    return Context({_SPAN_KEY: Unrecorded(request_id)})


def link(context: SpanContext | None, attributes: Mapping[str, Any] | None = None) -> Sequence[Link]:
    """Return the links for `start_span`: one to the given span, or none."""
    return () if context is None else (Link(context, dict(attributes or {})),)


def child(
    tracer: Tracer,
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, Any] | None = None,
) -> AbstractContextManager[Span]:
    """Start a span below the current one for a `with` block, if that one is recorded."""
    if not trace.get_current_span().is_recording():
        return NOTHING
    return tracer.start_as_current_span(name, kind=kind, attributes=dict(attributes or {}))
