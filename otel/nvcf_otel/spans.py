"""Spans that cost next to nothing where a trace is not sampled, and W3C trace context as text.

Formats: https://www.w3.org/TR/trace-context/ (traceparent, tracestate). Without an SDK nothing is made.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, TraceFlags, Tracer, TraceState

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
# Shared: made for each request they cost as much as reading the rest, and they never change.
_FLAGS = tuple(TraceFlags(value) for value in range(256))
_NO_STATE = TraceState()
_NOTHING: AbstractContextManager[Span] = nullcontext(trace.INVALID_SPAN)


def is_tracing() -> bool:
    """Whether spans lead anywhere: an SDK has been set up."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def follows_parents() -> bool:
    """Whether the sampler does as a caller's trace context says, so that nobody else need be asked.

    Known from the description that the specification prescribes for parent-based samplers.
    """
    sampler = getattr(trace.get_tracer_provider(), "sampler", None)
    return sampler is not None and str(sampler.get_description()).startswith("ParentBased")


def parse(carrier: Mapping[str, str]) -> SpanContext | None:
    """The remote span that a carrier names; None without one, and for one that is malformed."""
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
    # Most callers send none, and reading one is not cheap.
    return TraceState.from_header([text]) if text else _NO_STATE


def parsed(traceparent: str | None) -> SpanContext | None:
    """As `parse`, for a traceparent alone."""
    return parse({TRACEPARENT: traceparent}) if traceparent else None


def below(parent: SpanContext | None) -> Context:
    """The context for a child of `parent`, or for the root of a new trace."""
    if parent is None:
        return Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())


def traceparent(context: SpanContext) -> str | None:
    """The text by which another process makes a child of this span; None for no span."""
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def carrier(span: Span) -> dict[str, str]:
    """Trace context headers of a span; empty for no span."""
    context = span.get_span_context()
    text = traceparent(context)
    if text is None:
        return {}
    found = {TRACEPARENT: text}
    if context.trace_state:
        found[TRACESTATE] = context.trace_state.to_header()
    return found


class _Planned(threading.local):
    """The trace id of the root span that this thread is about to make."""

    trace_id: int | None = None


planned = _Planned()
_MASK = (1 << 64) - 1
_bound: int | None = None
_bound_text = ""


def decide_roots(ratio: float | None) -> None:
    """Let `root` decide by this ratio; None: it leaves that to the provider's sampler.

    Set by whoever sets up the provider, whose sampler has the same ratio and whose ids come from `planned`.
    """
    global _bound, _bound_text  # as the provider, there is one a process
    _bound = None if ratio is None else round(ratio * (1 << 64))
    all_wanted = _bound is not None and _bound > _MASK
    # Greater than any hexadecimal digits if all are wanted.
    _bound_text = "gg" if all_wanted else f"{_bound or 0:016x}"


def trace_id_of(request_id: str) -> int:
    """The id of the trace that begins with a request (a UUID): its own, with bytes 0 and 8 exchanged.

    Samplers look at the last 64 bits of an id, and W3C's random flag promises that the last 56 are random. In
    a UUID the last 64 begin with a constant.
    """
    digits = request_id.replace("-", "")
    return int(digits[16:18] + digits[2:16] + digits[:2] + digits[18:], 16)


def begins(request_id: str) -> bool:
    """Whether a span should be made for the root of this request's trace.

    The specification's ratio sampler, asked with `trace_id_of`: all processes with the same ratio decide the
    same, and need not tell each other. True where only the provider's sampler knows.
    """
    if _bound is None:
        return True
    # Hexadecimal digits compare as the numbers do, and the first two say no to most.
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
    """The first span of a new trace, that of `request_id` if there is one; `more` as `start_span` takes it.

    One that is not sampled costs a tenth of what the SDK takes for it, and most are not: the decision is made
    here as the specification's ratio sampler makes it, and the SDK only makes those that it will record.
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
    """The span of a request whose trace is not recorded: spans below it are not either.

    Its ids are made when somebody asks for them, which for most requests nobody does.
    """

    __slots__ = ("_known", "_request_id")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._known: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        """The same each time."""
        if self._known is None:
            trace_id, span_id = trace_id_of(self._request_id), random.getrandbits(64) or 1
            self._known = SpanContext(trace_id, span_id, False, _FLAGS[0], _NO_STATE)
        return self._known


(_SPAN_KEY,) = trace.set_span_in_context(trace.INVALID_SPAN, Context())


def unrecorded(request_id: str) -> Context:
    """The context of a request for which `begins` is false."""
    return Context({_SPAN_KEY: Unrecorded(request_id)})


def link(context: SpanContext | None, attributes: Mapping[str, Any] | None = None) -> Sequence[Link]:
    """A link to a span as `start_span` takes links; none for no span."""
    return () if context is None else (Link(context, dict(attributes or {})),)


def child(
    tracer: Tracer,
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, Any] | None = None,
) -> AbstractContextManager[Span]:
    """A span below the current one while the context lasts, if that one is recorded; otherwise nothing."""
    if not trace.get_current_span().is_recording():
        return _NOTHING
    return tracer.start_as_current_span(name, kind=kind, attributes=dict(attributes or {}))
