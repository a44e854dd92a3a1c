"""Metrics in the formats of Prometheus and OpenMetrics, with exemplars. Imports the SDK.

The SDK's own exporter for Prometheus omits exemplars. Names and labels follow OpenTelemetry's
"Prometheus and OpenMetrics compatibility"; Prometheus' client library writes the text.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricReader,
    MetricsData,
    NumberDataPoint,
    Sum,
)
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.samples import Exemplar

from nvcf_otel.cleaning import clean_text, shown
from nvcf_otel.instrument import Kind, prometheus_name
from nvcf_otel.readers import series_limits

_INVALID = re.compile(r"[^a-zA-Z0-9_]")


class PrometheusReader(MetricReader):
    """Reader that collects when a page is requested, from any thread."""

    def __init__(self) -> None:
        super().__init__(**series_limits())
        self._data: MetricsData | None = None
        self._lock = threading.Lock()

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its media type, as the client accepts it."""
        with self._lock:
            self._data = None
            self.collect()
            collected = _Collected(self._data)
        if "application/openmetrics-text" in accept:
            return generate_openmetrics(collected), OPENMETRICS  # type: ignore[no-untyped-call]
        return generate_latest(collected), CONTENT_TYPE_PLAIN_0_0_4

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        self._data = metrics_data

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Do nothing: no data is held."""


class _Collected:
    """A registry in the form that Prometheus' client library writes out."""

    def __init__(self, data: MetricsData | None) -> None:
        self._data = data

    def collect(self) -> Iterator[Family]:
        families: dict[str, Family] = {}
        for of_resource in self._data.resource_metrics if self._data is not None else ():
            target = Family("target", "Target metadata", "info")
            target.add_sample("target_info", _labels(of_resource.resource.attributes), 1)
            families["target"] = target
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    _add(families, metric)
        yield from families.values()


def _add(families: dict[str, Family], metric: Metric) -> None:
    data = metric.data
    if isinstance(data, Histogram):
        kind, otel_kind = "histogram", Kind.HISTOGRAM
    elif isinstance(data, Sum) and data.is_monotonic:
        kind, otel_kind = "counter", Kind.COUNTER
    elif isinstance(data, Sum | Gauge):
        kind, otel_kind = "gauge", Kind.GAUGE if isinstance(data, Gauge) else Kind.UP_DOWN
    else:
        return
    name = prometheus_name(metric.name, otel_kind, metric.unit or "")
    family = families.get(name)
    if family is None:
        family_name = name.removesuffix("_total") if kind == "counter" else name
        family = families[name] = Family(family_name, metric.description or "", kind)
    for point in data.data_points:
        labels = _labels(point.attributes)
        if isinstance(point, HistogramDataPoint):
            _add_histogram(family, labels, point)
        elif isinstance(point, NumberDataPoint):
            exemplar = _exemplar(point.exemplars) if kind == "counter" else None
            family.add_sample(name, labels, point.value, exemplar=exemplar)


def _add_histogram(family: Family, labels: dict[str, str], point: HistogramDataPoint) -> None:
    bounds = [*point.explicit_bounds, float("inf")]
    exemplars = sorted(point.exemplars, key=lambda each: each.value)
    count, below = 0, float("-inf")
    for bound, in_bucket in zip(bounds, point.bucket_counts, strict=True):
        count += in_bucket
        mine = [each for each in exemplars if below < each.value <= bound]
        le = "+Inf" if bound == float("inf") else repr(float(bound))
        family.add_sample(f"{family.name}_bucket", {**labels, "le": le}, count, exemplar=_exemplar(mine))
        below = bound
    family.add_sample(f"{family.name}_count", labels, point.count)
    family.add_sample(f"{family.name}_sum", labels, point.sum)


def _exemplar(exemplars: Iterable[Any]) -> Exemplar | None:
    latest = max(exemplars, key=lambda each: each.time_unix_nano, default=None)
    if latest is None or not latest.trace_id:
        return None
    ids = {"trace_id": format_trace_id(latest.trace_id), "span_id": format_span_id(latest.span_id)}
    return Exemplar(ids, latest.value, latest.time_unix_nano / 1e9)


def _labels(attributes: Mapping[str, Any] | None) -> dict[str, str]:
    return {label(clean_text(key)): clean_text(_text(value)) for key, value in (attributes or {}).items()}


def label(attribute: str) -> str:
    """Return an attribute's name as a label."""
    name = _INVALID.sub("_", attribute)
    return f"key_{name}" if name[:1].isdigit() else name


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)
