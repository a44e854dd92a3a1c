"""Plain values decoded from OTLP protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """An event of a span. `time` is in nanoseconds since the epoch."""

    name: str
    time: int
    attributes: Attributes


@dataclass(frozen=True)
class Link:
    """A link to another span."""

    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """One finished span; ids in hexadecimal (`parent_id` is empty for a root), times in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    start: int
    end: int
    status: str
    status_message: str
    attributes: Attributes
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    resource: Attributes = field(repr=False)
    scope: str = field(repr=False)
    dropped_attributes: int = 0

    @property
    def seconds(self) -> float:
        """Return its duration."""
        return (self.end - self.start) / 1e9

    @property
    def service(self) -> str:
        """Return `service.name` of its resource."""
        return str(self.resource.get("service.name", ""))

    def links_to(self, other: Span) -> bool:
        """Return whether one of its links points to `other`."""
        return any((link.trace_id, link.span_id) == (other.trace_id, other.span_id) for link in self.links)


@dataclass(frozen=True)
class Exemplar:
    """A single measurement kept with its trace."""

    value: float
    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class Point:
    """One data point: `value` of a sum or gauge; `count`, `sum`, `bounds` and `counts` of a histogram."""

    name: str
    kind: str  # sum, gauge, histogram, exponential_histogram, summary
    unit: str
    description: str
    attributes: Attributes
    time: int
    start: int
    resource: Attributes = field(repr=False)
    scope: str = field(repr=False)
    value: float = 0.0
    count: int = 0
    sum: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()
    monotonic: bool = False
    cumulative: bool = True


@dataclass(frozen=True)
class Log:
    """One log record; ids are empty when it belongs to no span."""

    body: Any
    severity: str
    severity_number: int
    attributes: Attributes
    trace_id: str
    span_id: str
    time: int
    resource: Attributes = field(repr=False)
    scope: str = field(repr=False)

    @property
    def service(self) -> str:
        """Return `service.name` of its resource."""
        return str(self.resource.get("service.name", ""))


def value_of(value: AnyValue) -> Any:
    """Return an attribute's value as a Python value."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return getattr(value, kind)


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Return attributes as a dict. A duplicate key is an error of the sender."""
    found: dict[str, Any] = {}
    for pair in pairs:
        if pair.key in found:
            raise ValueError(f"attribute {pair.key} is there twice")
        found[pair.key] = value_of(pair.value)
    return found


def spans_of(message: ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield all spans of a request."""
    for of_resource in message.resource_spans:
        resource = attributes_of(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _span(span, resource, of_scope.scope.name)


def _span(span: trace_pb2.Span, resource: Attributes, scope: str) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        attributes=attributes_of(span.attributes),
        events=tuple(Event(e.name, e.time_unix_nano, attributes_of(e.attributes)) for e in span.events),
        links=tuple(
            Link(link.trace_id.hex(), link.span_id.hex(), attributes_of(link.attributes))
            for link in span.links
        ),
        resource=resource,
        scope=scope,
        dropped_attributes=span.dropped_attributes_count,
    )


def logs_of(message: ExportLogsServiceRequest) -> Iterator[Log]:
    """Yield all log records of a request."""
    for of_resource in message.resource_logs:
        resource = attributes_of(of_resource.resource.attributes)
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                yield Log(
                    body=value_of(record.body),
                    severity=record.severity_text,
                    severity_number=int(record.severity_number),
                    attributes=attributes_of(record.attributes),
                    trace_id=record.trace_id.hex(),
                    span_id=record.span_id.hex(),
                    time=record.time_unix_nano or record.observed_time_unix_nano,
                    resource=resource,
                    scope=of_scope.scope.name,
                )


def points_of(message: ExportMetricsServiceRequest) -> Iterator[Point]:
    """Yield all data points of a request."""
    for of_resource in message.resource_metrics:
        resource = attributes_of(of_resource.resource.attributes)
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                yield from _points(metric, resource, of_scope.scope.name)


def _points(metric: metrics_pb2.Metric, resource: Attributes, scope: str) -> Iterator[Point]:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    data = getattr(metric, kind)
    temporality = getattr(data, "aggregation_temporality", 2)
    for point in data.data_points:
        yield Point(
            name=metric.name,
            kind=kind,
            unit=metric.unit,
            description=metric.description,
            attributes=attributes_of(point.attributes),
            time=point.time_unix_nano,
            start=point.start_time_unix_nano,
            resource=resource,
            scope=scope,
            monotonic=getattr(data, "is_monotonic", False),
            cumulative=temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE,
            **_measured(point),
        )


def _measured(point: Any) -> dict[str, Any]:
    exemplars = tuple(
        Exemplar(
            _number(each), each.trace_id.hex(), each.span_id.hex(), attributes_of(each.filtered_attributes)
        )
        for each in getattr(point, "exemplars", ())
    )
    if isinstance(point, metrics_pb2.NumberDataPoint):
        return {"value": _number(point), "exemplars": exemplars}
    return {
        "count": point.count,
        "sum": point.sum,
        "bounds": tuple(getattr(point, "explicit_bounds", ())),
        "counts": tuple(getattr(point, "bucket_counts", ())),
        "exemplars": exemplars,
    }


def _number(point: Any) -> float:
    return float(getattr(point, point.WhichOneof("value") or "as_double"))


def matches(attributes: Attributes, wanted: Attributes) -> bool:
    """Return whether all of `wanted` is in `attributes`."""
    return all(key in attributes and attributes[key] == value for key, value in wanted.items())
