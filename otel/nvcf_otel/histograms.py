"""Histograms for request paths: recording costs a bisect and two additions.

The SDK's own `record` takes about 5 µs, as much as all other telemetry of a request. Here values are counted
in plain integers, and `attach` adds them to what a reader collects, so OTLP and Prometheus see no difference.
Values are recorded on one thread (the event loop) and read on the reader's.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from nvcf_otel.instrument import Instrument

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, MetricReader, MetricsData

AttributeValue = str | int | bool
Attributes = Mapping[str, AttributeValue]

OVERFLOW: dict[str, AttributeValue] = {"otel.metric.overflow": True}
"""Attributes of the series that takes the values beyond a histogram's limit (the specification's name)."""
SERIES_LIMIT = 4000


class Series:
    """Values of one set of attributes."""

    __slots__ = ("_bounds", "attributes", "counts", "exemplars", "highest", "lowest", "started", "total")

    def __init__(self, attributes: Attributes, bounds: tuple[float, ...]) -> None:
        self.attributes = dict(attributes)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.lowest = float("inf")
        self.highest = float("-inf")
        self.started = time.time_ns()
        self.exemplars: dict[int, tuple[float, int, int, int]] = {}
        self._bounds = bounds

    def record(self, value: float, span: trace.Span | None = None) -> None:
        """Count one value. With a sampled span it becomes its bucket's exemplar."""
        index = bisect_left(self._bounds, value)
        self.counts[index] += 1
        self.total += value
        if value < self.lowest:
            self.lowest = value
        if value > self.highest:
            self.highest = value
        if span is not None:
            context = span.get_span_context()
            if context.trace_flags.sampled:
                self.exemplars[index] = (value, time.time_ns(), context.trace_id, context.span_id)


class Histogram:
    """All series of one instrument."""

    def __init__(self, instrument: Instrument, limit: int = SERIES_LIMIT) -> None:
        self.instrument = instrument
        self.bounds = tuple(instrument.buckets or ())
        self._limit = limit
        self._series: dict[tuple[tuple[str, AttributeValue], ...], Series] = {}

    def series(self, attributes: Attributes) -> Series:
        """Return the series of these attributes, always the same: keep it and call its `record`.

        Beyond the limit all other attributes share one series, marked `otel.metric.overflow`.
        """
        key = tuple(sorted(attributes.items()))
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= self._limit and attributes != OVERFLOW:
                return self.series(OVERFLOW)
            found = self._series[key] = Series(attributes, self.bounds)
        return found

    def forget(self, attributes: Attributes) -> None:
        """Drop all series that contain these attributes."""
        wanted = attributes.items()
        for key in list(self._series):
            if wanted <= dict(key).items():
                del self._series[key]

    def all(self) -> list[Series]:
        """Return the present series. May be called from any thread."""
        return list(self._series.values())


HISTOGRAMS: dict[str, Histogram] = {}
"""All histograms of this process by instrument name."""


def histogram(instrument: Instrument) -> Histogram:
    """Return the process' histogram of an instrument, created on first use."""
    found = HISTOGRAMS.get(instrument.name)
    if found is None:
        found = HISTOGRAMS[instrument.name] = Histogram(instrument)
    return found


def alias(instrument: Instrument, of: Instrument) -> None:
    """Export one histogram under another instrument's name too. Its buckets must be the same."""
    same = HISTOGRAMS[instrument.name] = Histogram(instrument)
    same._series = histogram(of)._series


def attach(reader: MetricReader, histograms: Mapping[str, Histogram] = HISTOGRAMS) -> None:
    """Add these histograms to everything that `reader` collects from now on.

    Call it once for each reader. Points are cumulative, or deltas where the reader prefers deltas for
    histograms.
    """
    from opentelemetry.sdk.metrics.export import AggregationTemporality

    # Keyed by private classes of the SDK.
    preferred = {kind.__name__: value for kind, value in reader._instrument_class_temporality.items()}
    points = _Points(delta=preferred["_Histogram"] is AggregationTemporality.DELTA)
    receive = reader._receive_metrics

    def received(metrics_data: MetricsData, timeout_millis: float = 10_000, **more: Any) -> None:
        receive(points.added(metrics_data, histograms), timeout_millis=timeout_millis, **more)

    # The one method that every reader must define, and the only place where collected data can be seen.
    reader._receive_metrics = received  # type: ignore[method-assign]


class _Points:
    """Converts series into the SDK's data points, for one reader."""

    def __init__(self, *, delta: bool) -> None:
        self._delta = delta
        self._last: dict[int, tuple[Series, list[int], float, int]] = {}

    def added(self, data: MetricsData, histograms: Mapping[str, Histogram]) -> MetricsData:
        """Return the data with a metric added for each histogram that has values."""
        from opentelemetry.sdk.metrics import export
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        if not data.resource_metrics:
            return data
        temporality = export.AggregationTemporality(1 if self._delta else 2)
        metrics = []
        now = time.time_ns()
        for each in list(histograms.values()):
            points = [point for series in each.all() if (point := self._point(series, each.bounds, now))]
            if points:
                described = each.instrument
                metrics.append(
                    export.Metric(
                        described.name,
                        described.description,
                        described.unit,
                        export.Histogram(points, temporality),
                    )
                )
        if not metrics:
            return data
        self._forget(histograms)
        # In a scope of its own: of two scopes with the same name the SDK's exporters send only the last.
        ours = export.ScopeMetrics(InstrumentationScope("nvcf_otel.histograms"), metrics, "")
        first, *others = data.resource_metrics
        extended = export.ResourceMetrics(first.resource, [*first.scope_metrics, ours], first.schema_url)
        return export.MetricsData([extended, *others])

    def _point(self, series: Series, bounds: tuple[float, ...], now: int) -> HistogramDataPoint | None:
        from opentelemetry.sdk.metrics.export import HistogramDataPoint

        counts, total, started = list(series.counts), series.total, series.started
        if self._delta:
            nothing = (series, [0] * len(counts), 0.0, started)
            _, before, total_before, since = self._last.get(id(series), nothing)
            self._last[id(series)] = (series, counts, total, now)
            counts = [one - other for one, other in zip(counts, before, strict=True)]
            total, started = total - total_before, since
        count = sum(counts)
        if not count:
            return None
        return HistogramDataPoint(
            attributes=series.attributes,
            start_time_unix_nano=started,
            time_unix_nano=now,
            count=count,
            sum=total,
            bucket_counts=counts,
            explicit_bounds=bounds,
            # Extremes of the whole time say nothing about a part of it.
            min=None if self._delta else series.lowest,  # type: ignore[arg-type] # optional in OTLP
            max=None if self._delta else series.highest,  # type: ignore[arg-type]
            exemplars=_exemplars(series, started if self._delta else 0),
        )

    def _forget(self, histograms: Mapping[str, Histogram]) -> None:
        if self._last:
            alive = {id(series) for each in list(histograms.values()) for series in each.all()}
            self._last = {key: value for key, value in self._last.items() if key in alive}


def _exemplars(series: Series, since: int) -> list[Any]:
    from opentelemetry.sdk.metrics import Exemplar

    return [
        Exemplar({}, value, at, span_id, trace_id)
        for value, at, trace_id, span_id in list(series.exemplars.values())
        if at >= since
    ]
