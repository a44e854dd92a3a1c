"""Exporters that clean what they send. Imports the SDK; import it only when needed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

from nvcf_otel.cleaning import clean_attributes, clean_text, clean_value

PART_BYTES = 1024 * 1024
"""Texts of one export together: collectors refuse requests above 4 MiB."""


class CleanExporter:
    """Cleans spans and log records in the thread that sends them, and sends them in parts of bounded size."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.shutdown = inner.shutdown

    def export(self, batch: Sequence[Any]) -> Any:
        """Export a batch; the result is that of the last part that failed, else of the last one."""
        result: Any = None
        for part in _parts([_clean(item) for item in batch]):
            outcome = self._inner.export(part)
            if result is None or getattr(result, "name", "") == "SUCCESS":
                result = outcome
        return result


def _parts(items: list[Any]) -> list[list[Any]]:
    parts: list[list[Any]] = [[]]
    size = 0
    for item in items:
        length = _length(item)
        if parts[-1] and size + length > PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += length
    return parts


def _length(item: Any) -> int:
    if isinstance(item, ReadableSpan):
        events = sum(len(str(dict(event.attributes or {}))) for event in item.events)
        return events + len(str(dict(item.attributes or {})))
    record = item.log_record
    return len(str(record.body)) + len(str(dict(record.attributes or {})))


def _clean(item: Any) -> Any:
    return clean_span(item) if isinstance(item, ReadableSpan) else clean_record(item)


def clean_span(span: ReadableSpan) -> ReadableSpan:
    """Return a copy of an ended span that can be sent."""
    return ReadableSpan(
        name=clean_text(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=clean_attributes(span.attributes),
        events=[
            Event(clean_text(event.name), clean_attributes(event.attributes), event.timestamp)
            for event in span.events
        ],
        links=[Link(link.context, clean_attributes(link.attributes)) for link in span.links],
        kind=span.kind,
        status=_status(span.status),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=clean_scope(span.instrumentation_scope),
    )


def _status(status: Status) -> Status:
    text = status.description
    return Status(status.status_code, clean_text(text)) if text else status


def clean_record(item: ReadableLogRecord) -> ReadableLogRecord:
    """Return a copy of a log record that can be sent."""
    record = copy.copy(item.log_record)
    record.body = clean_value(record.body)
    record.attributes = clean_attributes(record.attributes)
    if record.severity_text:
        record.severity_text = clean_text(record.severity_text)
    if record.event_name:
        record.event_name = clean_text(record.event_name)
    return ReadableLogRecord(
        log_record=record,
        resource=item.resource,
        instrumentation_scope=clean_scope(item.instrumentation_scope),
        limits=item.limits,
    )


def clean_scope(scope: Any) -> Any:
    """Return an instrumentation scope that can be sent; a logger's name is one."""
    if scope is None or (clean_text(scope.name) == scope.name and not scope.attributes):
        return scope
    attributes = clean_attributes(scope.attributes)
    return InstrumentationScope(clean_text(scope.name), scope.version, scope.schema_url, attributes)


def clean_metrics(data: MetricsData) -> MetricsData:
    """Return metrics whose attributes can be sent. For use after a failure: few metrics need it."""
    return MetricsData(
        [
            dataclasses.replace(
                of_resource,
                scope_metrics=[
                    dataclasses.replace(
                        of_scope,
                        scope=clean_scope(of_scope.scope),
                        metrics=[_metric(metric) for metric in of_scope.metrics],
                    )
                    for of_scope in of_resource.scope_metrics
                ],
            )
            for of_resource in data.resource_metrics
        ]
    )


def _metric(metric: Any) -> Any:
    points = [
        dataclasses.replace(
            point,
            attributes=clean_attributes(point.attributes),
            exemplars=[
                dataclasses.replace(each, filtered_attributes=clean_attributes(each.filtered_attributes))
                for each in point.exemplars
            ],
        )
        for point in metric.data.data_points
    ]
    return dataclasses.replace(
        metric,
        name=clean_text(metric.name),
        description=clean_text(metric.description or ""),
        unit=clean_text(metric.unit or ""),
        data=dataclasses.replace(metric.data, data_points=points),
    )
