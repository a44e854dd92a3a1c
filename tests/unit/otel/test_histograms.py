"""Histograms of request paths: counted cheaply, collected by every reader as if the SDK had counted them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint, InMemoryMetricReader
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from nvcf_otel.histograms import OVERFLOW, Histogram, attach
from nvcf_otel.instrument import Instrument, Kind

BOUNDS = (0.01, 0.1, 1.0)
_numbers = itertools.count()


def described(name: str) -> Instrument:
    return Instrument(Kind.HISTOGRAM, name, "s", "How long it takes.", buckets=BOUNDS)


def made(limit: int = 100) -> Histogram:
    return Histogram(described(f"test.{next(_numbers)}"), limit)


def reading(
    histogram: Histogram, temporality: AggregationTemporality = AggregationTemporality.CUMULATIVE
) -> InMemoryMetricReader:
    reader = InMemoryMetricReader(preferred_temporality={SdkHistogram: temporality})
    attach(reader, {histogram.instrument.name: histogram})
    provider = MeterProvider([reader])
    provider.get_meter("test").create_up_down_counter("something").add(1)
    return reader


def points(reader: InMemoryMetricReader, histogram: Histogram) -> list[HistogramDataPoint]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == histogram.instrument.name
        for point in metric.data.data_points
        if isinstance(point, HistogramDataPoint)
    ]


@settings(deadline=None)
@given(st.lists(st.floats(0, 2), max_size=50))
def test_it_counts_as_the_sdk_does(values: list[float]) -> None:
    ours, name = made(), "test.sdk"
    reader = reading(ours)
    theirs = MeterProvider([other := InMemoryMetricReader()]).get_meter("test")
    sdk = theirs.create_histogram(name, explicit_bucket_boundaries_advisory=BOUNDS)
    for value in values:
        ours.series({"a": "b"}).record(value)
        sdk.record(value, {"a": "b"})
    found, expected = points(reader, ours), points(other, Histogram(described(name))) if values else []
    assert [(p.count, list(p.bucket_counts), p.attributes, p.min, p.max) for p in found] == [
        (p.count, list(p.bucket_counts), p.attributes, p.min, p.max) for p in expected
    ]
    assert sum(p.sum for p in found) == pytest.approx(sum(values))


def test_deltas_are_what_came_since_the_last_time() -> None:
    histogram = made()
    reader = reading(histogram, AggregationTemporality.DELTA)
    series = histogram.series({})
    series.record(0.5)
    (first,) = points(reader, histogram)
    assert (first.count, first.sum, list(first.bucket_counts)) == (1, 0.5, [0, 0, 1, 0])
    assert points(reader, histogram) == []
    series.record(5.0)
    series.record(0.05)
    (second,) = points(reader, histogram)
    assert (second.count, list(second.bucket_counts)) == (2, [0, 1, 0, 1])
    assert second.sum == pytest.approx(5.05)
    assert second.start_time_unix_nano >= first.time_unix_nano


def test_beyond_its_limit_all_others_share_one_series() -> None:
    histogram = made(limit=3)
    for number in range(10_000):
        histogram.series({"number": number}).record(0.5)
    found = {tuple(p.attributes or ()): p.count for p in points(reading(histogram), histogram)}
    assert len(histogram.all()) == 4
    assert found[tuple(OVERFLOW)] == 9997


def test_forgotten_series_are_collected_no_more() -> None:
    histogram = made()
    reader = reading(histogram, AggregationTemporality.DELTA)
    for version, outcome in itertools.product(("one", "two"), ("good", "bad")):
        histogram.series({"version": version, "outcome": outcome}).record(0.5)
    assert len(points(reader, histogram)) == 4
    histogram.forget({"version": "one"})
    for outcome in ("good", "bad"):
        histogram.series({"version": "two", "outcome": outcome}).record(0.5)
    assert [p.attributes and p.attributes["version"] for p in points(reader, histogram)] == ["two", "two"]


@pytest.mark.parametrize("sampled", [True, False])
def test_a_sampled_trace_becomes_its_buckets_exemplar(sampled: bool) -> None:
    histogram = made()
    context = SpanContext(7, 9, False, TraceFlags(TraceFlags.SAMPLED if sampled else 0))
    series = histogram.series({})
    series.record(0.5, trace.INVALID_SPAN)
    series.record(0.05, NonRecordingSpan(context))
    (point,) = points(reading(histogram), histogram)
    found = [(each.value, each.trace_id, each.span_id) for each in point.exemplars]
    assert found == ([(0.05, 7, 9)] if sampled else [])
