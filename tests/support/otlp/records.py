"""The telemetry that a receiver got, and queries for tests. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.otlp.views import Attributes, Log, Point, Span, logs_of, matches, points_of, spans_of
from tests.support.waiting import WAIT

Message = ExportTraceServiceRequest | ExportMetricsServiceRequest | ExportLogsServiceRequest


@dataclass(frozen=True)
class Export:
    """One successful export request."""

    signal: str  # traces, metrics, logs
    protocol: str  # grpc, http
    headers: Mapping[str, str]  # lower-case names
    encoding: str  # identity, gzip
    items: int


class Records:
    """Spans, points and logs in the order of their arrival."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spans: list[Span] = []
        self._points: list[Point] = []
        self._logs: list[Log] = []
        self._exports: list[Export] = []

    def add(self, message: Message, protocol: str, headers: Mapping[str, str], encoding: str) -> None:
        """Decode and store a message."""
        spans: list[Span] = []
        points: list[Point] = []
        logs: list[Log] = []
        if isinstance(message, ExportTraceServiceRequest):
            signal, items = "traces", len(spans := list(spans_of(message)))
        elif isinstance(message, ExportMetricsServiceRequest):
            signal, items = "metrics", len(points := list(points_of(message)))
        else:
            signal, items = "logs", len(logs := list(logs_of(message)))
        with self._changed:
            self._spans += spans
            self._points += points
            self._logs += logs
            self._exports.append(Export(signal, protocol, dict(headers), encoding, items))
            self._changed.notify_all()

    def clear(self) -> None:
        """Remove all records."""
        with self._changed:
            self._spans, self._points, self._logs, self._exports = [], [], [], []

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = WAIT) -> None:
        """Block until `condition()` holds. Coroutines use `tests.support.waiting`."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {timeout:g} s: {what}\n{self.summary()}")
                self._changed.wait(min(left, 0.2))

    def exports(self, signal: str | None = None, protocol: str | None = None) -> list[Export]:
        """Return the export requests that succeeded."""
        with self._changed:
            return [
                each
                for each in self._exports
                if (signal is None or each.signal == signal)
                and (protocol is None or each.protocol == protocol)
            ]

    # Spans

    def spans(
        self,
        name: str | None = None,
        *,
        trace: str | None = None,
        service: str | None = None,
        **attributes: Any,
    ) -> list[Span]:
        """Return spans by name, trace id, service and attributes (`nvcf_request_id` is `nvcf.request.id`)."""
        with self._changed:
            spans = list(self._spans)
        return [
            span
            for span in spans
            if (name is None or span.name == name)
            and (trace is None or span.trace_id == trace)
            and (service is None or span.service == service)
            and _has(span.attributes, attributes)
        ]

    def span(
        self, name: str, *, trace: str | None = None, service: str | None = None, **attributes: Any
    ) -> Span:
        """Return the only such span. Fails with a summary otherwise."""
        found = self.spans(name, trace=trace, service=service, **attributes)
        if len(found) != 1:
            raise AssertionError(f"{len(found)} spans {name!r} instead of one\n{self.summary(trace)}")
        return found[0]

    def parent(self, span: Span) -> Span | None:
        """Return the parent of a span, or None for a root or if it has not arrived."""
        return next(
            (other for other in self.spans(trace=span.trace_id) if other.span_id == span.parent_id), None
        )

    def ancestors(self, span: Span) -> list[str]:
        """Return the names from its parent up to the root."""
        names = []
        above = self.parent(span)
        while above is not None:
            names.append(above.name)
            above = self.parent(above)
        return names

    def children(self, span: Span, name: str | None = None) -> list[Span]:
        """Return its direct children by start time."""
        found = [each for each in self.spans(name, trace=span.trace_id) if each.parent_id == span.span_id]
        return sorted(found, key=lambda each: each.start)

    def linked(self, span: Span) -> list[Span]:
        """Return the linked spans that arrived."""
        return [other for other in self.spans() if span.links_to(other)]

    def tree(self, trace: str) -> str:
        """Return a trace as indented text."""
        spans = self.spans(trace=trace)
        ids = {span.span_id for span in spans}
        lines: list[str] = []

        def show(span: Span, depth: int) -> None:
            orphan = " (parent not here)" if depth == 0 and span.parent_id else ""
            lines.append(f"{'  ' * depth}{span.name} [{span.kind} {span.service}] {span.status}{orphan}")
            for child in self.children(span):
                show(child, depth + 1)

        for span in sorted(spans, key=lambda each: each.start):
            if span.parent_id not in ids:
                show(span, 0)
        return "\n".join(lines)

    # Metrics

    def points(self, name: str, *, service: str | None = None, **attributes: Any) -> list[Point]:
        """Return all received points of a metric, oldest first."""
        with self._changed:
            points = list(self._points)
        return [
            point
            for point in points
            if point.name == name
            and (service is None or point.resource.get("service.name") == service)
            and _has(point.attributes, attributes)
        ]

    def series(self, name: str, *, service: str | None = None, **attributes: Any) -> list[Point]:
        """Return the newest point of each series of a metric (one resource and one set of attributes)."""
        newest: dict[tuple[str, str], Point] = {}
        for point in self.points(name, service=service, **attributes):
            newest[(_key(point.resource), _key(point.attributes))] = point
        return list(newest.values())

    def total(self, name: str, *, service: str | None = None, **attributes: Any) -> float:
        """Return the sum of the newest values of all series. For a histogram these are counts."""
        return sum(
            point.value if point.kind in ("sum", "gauge") else point.count
            for point in self.series(name, service=service, **attributes)
        )

    def metric_names(self) -> set[str]:
        """Return the names of all received metrics."""
        with self._changed:
            return {point.name for point in self._points}

    # Logs

    def logs(
        self,
        containing: str = "",
        *,
        trace: str | None = None,
        service: str | None = None,
        **attributes: Any,
    ) -> list[Log]:
        """Return log records whose body contains a text."""
        with self._changed:
            logs = list(self._logs)
        return [
            log
            for log in logs
            if containing in str(log.body)
            and (trace is None or log.trace_id == trace)
            and (service is None or log.service == service)
            and _has(log.attributes, attributes)
        ]

    def summary(self, trace: str | None = None) -> str:
        """Return a summary for messages of failed tests."""
        traces = dict.fromkeys(span.trace_id for span in self.spans(trace=trace))
        parts = [f"trace {each}\n{self.tree(each)}" for each in list(traces)[-10:]]
        parts.append(f"metrics: {', '.join(sorted(self.metric_names())) or 'none'}")
        parts.append(f"logs: {len(self.logs())}, exports: {len(self.exports())}")
        return "\n".join(parts)


def _has(attributes: Attributes, wanted: Attributes) -> bool:
    if matches(attributes, wanted):
        return True
    dotted = {key.replace(".", "_"): value for key, value in attributes.items()}
    return matches(dotted, {key.replace(".", "_"): value for key, value in wanted.items()})


def _key(attributes: Attributes) -> str:
    return repr(sorted(attributes.items()))
