"""W3C trace context as text, and spans that are made only where somebody records them."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio, TraceIdRatioBased
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nvcf_otel import spans
from nvcf_otel.pipeline import PlannedIds

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_traceparent_is_read() -> None:
    context = spans.parse({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1,b=2"})
    assert context is not None
    assert (context.trace_id, context.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert context.is_remote
    assert context.trace_flags.sampled
    assert context.trace_state.to_header() == "a=1,b=2"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_a_malformed_one_is_none(text: str | None) -> None:
    assert spans.parsed(text) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    context = spans.parsed(f"01-{TRACE}-{SPAN}-03-more")
    assert context is not None
    assert context.trace_flags.sampled


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_what_others_read(trace_id: int, span_id: int, sampled: bool) -> None:
    context = SpanContext(trace_id, span_id, False, TraceFlags(sampled))
    carrier = spans.carrier(trace.NonRecordingSpan(context))
    assert spans.parse(carrier) == SpanContext(trace_id, span_id, True, TraceFlags(sampled))
    theirs = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    assert (theirs.trace_id, theirs.span_id, bool(theirs.trace_flags.sampled)) == (trace_id, span_id, sampled)


def test_no_span_has_no_context_to_pass_on() -> None:
    assert spans.carrier(trace.INVALID_SPAN) == {}
    assert spans.traceparent(trace.INVALID_SPAN.get_span_context()) is None
    assert list(spans.link(None)) == []


def test_children_are_made_only_of_recorded_spans() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(1.0))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with spans.child(tracer, "alone") as nothing:
        assert not nothing.is_recording()
    with tracer.start_as_current_span("parent"), spans.child(tracer, "child", SpanKind.CLIENT, {"a": 1}):
        pass
    unsampled = spans.below(spans.parsed(f"00-{TRACE}-{SPAN}-00"))
    with tracer.start_as_current_span("unsampled", context=unsampled), spans.child(tracer, "below"):
        pass
    child, parent = exporter.get_finished_spans()
    assert (child.name, parent.name) == ("child", "parent")
    assert child.parent is not None
    assert child.parent.span_id == parent.context.span_id
    assert dict(child.attributes or {}) == {"a": 1}


# --- traces that begin with a request


@pytest.fixture
def ratio(request: pytest.FixtureRequest) -> Iterator[float]:
    spans.decide_roots(request.param)
    yield request.param
    spans.decide_roots(None)


RATIOS = pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.01, 0.5, 1.0], indirect=True)


@RATIOS
@given(st.uuids(version=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_request_begins_a_trace_where_the_sampler_would_have_it(ratio: float, request_id: UUID) -> None:
    trace_id = spans.trace_id_of(str(request_id))
    theirs = TraceIdRatioBased(ratio).should_sample(None, trace_id, "request")
    assert spans.begins(str(request_id)) == (theirs.decision is Decision.RECORD_AND_SAMPLE)
    assert f"{trace_id:032x}"[2:16] == request_id.hex[2:16]


@pytest.mark.parametrize("ratio", [0.25], indirect=True)
def test_a_quarter_of_the_requests_begin_one_and_it_has_their_id(ratio: float) -> None:
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), id_generator=PlannedIds())
    tracer = provider.get_tracer("test")
    ids = [str(uuid4()) for _ in range(4000)]
    found = {each: spans.root(tracer, "root", request_id=each) for each in ids}
    recorded = {each for each, span in found.items() if span.is_recording()}
    assert 800 < len(recorded) < 1200
    assert recorded == {each for each in ids if spans.begins(each)}
    for each, span in found.items():
        assert span.get_span_context().trace_id == spans.trace_id_of(each)


def test_without_a_ratio_only_the_sampler_knows() -> None:
    assert spans.begins(str(uuid4()))


def test_below_a_request_that_is_not_recorded_nothing_is() -> None:
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(1.0))
    request_id = str(uuid4())
    context = spans.unrecorded(request_id)
    below = provider.get_tracer("test").start_span("think", context)
    assert not below.is_recording()
    own = trace.get_current_span(context).get_span_context()
    # Whoever asks gets ids, the same each time, for logs and for calls of its own.
    assert own.is_valid
    assert own == trace.get_current_span(context).get_span_context()
    assert below.get_span_context().trace_id == own.trace_id == spans.trace_id_of(request_id)
    carrier = spans.carrier(trace.get_current_span(context))
    assert carrier["traceparent"].endswith("-00")
