"""Carry spans, log records and metrics to exporters. Imports the SDK; import it only when needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import sampling as samplers
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from nvcf_otel import spans
from nvcf_otel.clean_exporters import clean_metrics
from nvcf_otel.delivery import Delivery, Drops, Reports
from nvcf_otel.readers import series_limits
from nvcf_otel.settings import SamplerSettings


def sampler(settings: SamplerSettings) -> samplers.Sampler:
    """Return the SDK's sampler of that name."""
    name = settings.name
    roots: dict[str, Callable[[], samplers.Sampler]] = {
        "always_on": lambda: samplers.ALWAYS_ON,
        "always_off": lambda: samplers.ALWAYS_OFF,
        "traceidratio": lambda: samplers.TraceIdRatioBased(settings.ratio),
    }
    root = roots[name.removeprefix("parentbased_")]()
    return samplers.ParentBased(root) if name.startswith("parentbased_") else root


class PlannedIds(RandomIdGenerator):
    """Id generator that uses the trace ids planned by `spans.root`, and random ids otherwise."""

    def generate_trace_id(self) -> int:
        """Return one trace id."""
        trace_id, spans.planned.trace_id = spans.planned.trace_id, None
        return super().generate_trace_id() if trace_id is None else trace_id


class SpanQueue(SpanProcessor):
    """Span processor that puts sampled spans into a queue when they end."""

    def __init__(self, delivery: Delivery[ReadableSpan]) -> None:
        self._delivery = delivery

    def on_end(self, span: ReadableSpan) -> None:
        """Queue an ended span."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._delivery.put(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until all queued items are sent or dropped."""
        return self._delivery.flush(timeout_millis / 1000)


class LogQueue(LogRecordProcessor):
    """Log record processor that puts records into a queue."""

    def __init__(self, delivery: Delivery[ReadableLogRecord]) -> None:
        self._delivery = delivery

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Queue a record."""
        self._delivery.put(
            ReadableLogRecord(
                log_record=log_record.log_record,
                resource=log_record.resource or Resource.get_empty(),
                instrumentation_scope=log_record.instrumentation_scope,
                limits=log_record.limits,
            )
        )

    def shutdown(self) -> None:
        """Do nothing: the owner of the queue closes it."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until all queued items are sent or dropped."""
        return self._delivery.flush(timeout_millis / 1000)


class CountedExporter(MetricExporter):
    """Exporter that counts failed exports. A forked child sends nothing: the metrics are its parent's."""

    def __init__(self, inner: Any, drops: Drops, reports: Reports) -> None:
        super().__init__(inner._preferred_temporality, inner._preferred_aggregation)
        self._inner = inner
        self._drops = drops
        self._reports = reports
        self._process = os.getpid()
        self._closed = False

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Export one collection."""
        if os.getpid() != self._process:
            return MetricExportResult.SUCCESS
        result = MetricExportResult.FAILURE
        try:
            try:
                result = self._inner.export(metrics_data, timeout_millis=timeout_millis)
            except (ValueError, TypeError):
                # Raised before anything is sent, for a text or number that OTLP cannot carry.
                result = self._inner.export(clean_metrics(metrics_data), timeout_millis=timeout_millis)
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the process goes on
            self._reports.reason = f"{type(error).__name__}: {error}"
        if result is MetricExportResult.SUCCESS:
            self._reports.succeeded()
        else:
            self._drops.add("metrics", _points(metrics_data))
            if not self._closed:
                self._reports.failed()
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Do nothing: no data is held."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Stop, and interrupt an export in progress."""
        if not self._closed and os.getpid() == self._process:
            self._closed = True
            self._inner.shutdown()


def periodic_reader(
    exporter: MetricExporter, interval: float, timeout: float
) -> PeriodicExportingMetricReader:
    """Return a reader that collects every `interval` seconds."""
    return PeriodicExportingMetricReader(
        exporter,
        export_interval_millis=interval * 1000,
        export_timeout_millis=timeout * 1000,
        **series_limits(),
    )


def _points(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for of_resource in data.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
    )


# The SDK's own providers detect the process' attributes again in every forked child, with a thread pool,
# right after the fork. If a lock of `concurrent.futures` was held at the fork, a child that is about to exec
# (`subprocess` with a `preexec_fn`, by which services bind their children's life to their own) hangs for
# ever. These providers only replace the locks.
class ForkableMeterProvider(MeterProvider):
    """In a forked child metrics keep the parent's process id. They are not sent from there."""

    def _handle_fork(self) -> None:
        self._lock = threading.Lock()
        self._meter_lock = threading.Lock()
        type(self)._all_metric_readers_lock = threading.Lock()


class ForkableTracerProvider(TracerProvider):
    """In a forked child spans keep the parent's process id."""

    def _handle_fork(self) -> None:
        self._tracers_lock = threading.Lock()


class ForkableLoggerProvider(LoggerProvider):
    """In a forked child log records keep the parent's process id."""

    def _handle_fork(self) -> None:
        self._logger_cache_lock = threading.Lock()
        self._active_loggers_lock = threading.Lock()
