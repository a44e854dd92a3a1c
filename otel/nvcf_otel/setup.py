"""Set up OpenTelemetry's SDK for a process: exporters, Prometheus, logs, process metrics.

The SDK is imported only when it is needed, so that a process without telemetry pays nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nvcf_otel.errors import SdkMissing, TelemetryError
from nvcf_otel.settings import Export, Settings, settings_from

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk.resources import Resource

    from nvcf_otel.delivery import Delivery, Drops
    from nvcf_otel.endpoint import MetricsServer
    from nvcf_otel.prometheus import PrometheusReader

log = logging.getLogger("nvcf_otel")

SHUTDOWN_SECONDS = 5.0
SCOPE = "nvcf_otel"


class Telemetry:
    """The telemetry that was set up. `enabled` is False when there is none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.enabled = False
        self.log_handler: logging.Handler | None = None
        """The handler that sends the process' log records to the backend, if there is one."""
        self._closers: list[Callable[[float], None]] = []
        self._server: MetricsServer | None = None
        self._reader: PrometheusReader | None = None

    @property
    def metrics_port(self) -> int | None:
        """Return the port of the metrics, if they are served."""
        return None if self._server is None else self._server.port

    @property
    def has_page(self) -> bool:
        """Return whether `page` has metrics."""
        return self._reader is not None

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics for Prometheus and their media type. Blocks. Raises TelemetryError when off."""
        if self._reader is None:
            raise TelemetryError("metrics for Prometheus are not switched on")
        return self._reader.page(accept)

    def shutdown(self, seconds: float = SHUTDOWN_SECONDS) -> None:
        """Send the queued items within `seconds`, and stop. Blocks; a second call does nothing."""
        closers, self._closers = self._closers, []
        if self.log_handler is not None:
            logging.getLogger().removeHandler(self.log_handler)
        deadline = time.monotonic() + seconds
        # At the same time: a backend that hangs must not use up the time of the others.
        threads = [threading.Thread(target=close, args=(seconds,), daemon=True) for close in closers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.05, deadline + 0.5 - time.monotonic()))
        if self._server is not None:
            self._server.close()
            self._server = None


def start_telemetry(
    component: str,
    *,
    instance_id: str,
    attributes: Mapping[str, str] = {},
    environ: Mapping[str, str] = os.environ,
    metrics_address: str | None = None,
    page: bool = False,
    metric_attributes: Mapping[str, str] = {},
    process_metrics: bool = True,
) -> Telemetry:
    """Set up what `environ` (OpenTelemetry's variables) asks for, and the global providers with it.

    attributes: of the resource, beside those that every process has; empty ones are left out.
    metrics_address: HOST:PORT where Prometheus finds `/metrics`.
    page: whether `Telemetry.page` returns metrics, for another server.
    metric_attributes: of the metrics of the process itself and its GPUs.
    process_metrics: whether there are metrics of the process itself.

    Without the SDK installed, and for settings that make no sense, only a warning is logged. Raises
    MetricsAddressError when it cannot listen at `metrics_address`.
    """
    settings = settings_from(environ)
    telemetry = Telemetry(settings)
    if settings.disabled or not (settings.exports or metrics_address or page):
        return telemetry
    for problem in settings.problems:
        log.warning("%s; it is not followed", problem)
    try:
        _Setup(telemetry, component, instance_id, attributes, environ).run(
            metrics_address, page, metric_attributes if process_metrics else None
        )
    except SdkMissing as error:
        log.warning("%s", error)
        return Telemetry(settings)
    telemetry.enabled = True
    return telemetry


class _Setup:
    """The steps of `start_telemetry`. Used once."""

    def __init__(
        self,
        telemetry: Telemetry,
        component: str,
        instance_id: str,
        attributes: Mapping[str, str],
        environ: Mapping[str, str],
    ) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
        except ImportError as error:
            raise SdkMissing("opentelemetry-sdk") from error
        from nvcf_otel.delivery import Drops
        from nvcf_otel.resource import resource_attributes

        self._telemetry = telemetry
        self._settings = telemetry.settings
        self._environ = environ
        self._resource: Resource = Resource(
            resource_attributes(component, instance_id, attributes, telemetry.settings)
        )
        self._drops: Drops = Drops()

    def run(
        self, metrics_address: str | None, page: bool, metric_attributes: Mapping[str, str] | None
    ) -> None:
        """Set everything up. Raises SdkMissing, MetricsAddressError."""
        from nvcf_otel.endpoint import MetricsServer

        if metrics_address or page:
            self._telemetry._reader = self._prometheus()
            if metrics_address:
                self._telemetry._server = MetricsServer(metrics_address, self._telemetry.page)
        self._metrics(metric_attributes)
        if self._settings.traces is not None:
            self._traces(self._settings.traces)
        if self._settings.logs is not None:
            self._logs(self._settings.logs)

    def _prometheus(self) -> PrometheusReader:
        try:
            from nvcf_otel.prometheus import PrometheusReader
        except ImportError as error:
            raise SdkMissing("prometheus-client") from error
        return PrometheusReader()

    def _metrics(self, metric_attributes: Mapping[str, str] | None) -> None:
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider

        from nvcf_otel import histograms
        from nvcf_otel.pipeline import ForkableMeterProvider

        readers: list[Any] = []
        if self._telemetry._reader is not None:
            readers.append(self._telemetry._reader)
        if self._settings.metrics is not None:
            readers.append(self._metric_reader(self._settings.metrics))
        if not readers:
            return
        for reader in readers:
            histograms.attach(reader)
        provider = ForkableMeterProvider(readers, self._resource, shutdown_on_exit=False)
        if isinstance(metrics.get_meter_provider(), MeterProvider):
            log.info("the function has set up metrics itself; the platform's own are exported beside them")
        else:
            metrics.set_meter_provider(provider)
        self._process_metrics(provider, metric_attributes)
        self._telemetry._closers.append(lambda seconds: provider.shutdown(timeout_millis=seconds * 1000))

    def _metric_reader(self, export: Export) -> Any:
        from nvcf_otel.pipeline import CountedExporter, periodic_reader

        make, reports = self._exporter("metrics", export)
        counted = CountedExporter(make(), self._drops, reports)
        settings = self._settings
        return periodic_reader(counted, settings.metric_interval, settings.metric_timeout)

    def _process_metrics(self, provider: Any, attributes: Mapping[str, str] | None) -> None:
        from opentelemetry.metrics import Observation

        from nvcf_otel import gpu, instruments, names
        from nvcf_otel.process import observe_process

        if attributes is None:
            return
        meter = provider.get_meter(SCOPE)

        def dropped(_: CallbackOptions) -> Iterable[Observation]:
            counts = {"traces": 0, "metrics": 0, "logs": 0} | self._drops.all()
            return [
                Observation(count, {**attributes, names.SIGNAL: signal}) for signal, count in counts.items()
            ]

        instruments.TELEMETRY_DROPPED.create(meter, dropped)
        observe_process(meter, attributes)
        gpus = gpu.opened(self._environ, attributes)
        if gpus is not None:
            gpus.observe(meter)
            self._telemetry._closers.append(lambda _: gpus.close())

    def _traces(self, export: Export) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        from nvcf_otel import spans
        from nvcf_otel.pipeline import ForkableTracerProvider, PlannedIds, SpanQueue, sampler

        if isinstance(trace.get_tracer_provider(), TracerProvider):
            log.info("the function has set up tracing itself; the platform's spans go its way")
            return
        delivery = self._delivery("traces", export)
        provider = ForkableTracerProvider(
            sampler=sampler(self._settings.sampler),
            resource=self._resource,
            shutdown_on_exit=False,
            id_generator=PlannedIds(),
        )
        by_ratio = self._settings.sampler.name.endswith("traceidratio")
        spans.decide_roots(self._settings.sampler.ratio if by_ratio else None)
        provider.add_span_processor(SpanQueue(delivery))
        trace.set_tracer_provider(provider)

    def _logs(self, export: Export) -> None:
        from opentelemetry import _logs
        from opentelemetry.sdk._logs import LoggerProvider

        from nvcf_otel.bridge import Bridge
        from nvcf_otel.pipeline import ForkableLoggerProvider, LogQueue
        from nvcf_otel.redaction import of_environment

        provider = ForkableLoggerProvider(self._resource, shutdown_on_exit=False)
        provider.add_log_record_processor(LogQueue(self._delivery("logs", export)))
        if not isinstance(_logs.get_logger_provider(), LoggerProvider):
            _logs.set_logger_provider(provider)
        handler = self._telemetry.log_handler = Bridge(provider, of_environment(self._environ))
        logging.getLogger().addHandler(handler)

    def _delivery(self, signal: str, export: Export) -> Delivery[Any]:
        from nvcf_otel.clean_exporters import CleanExporter
        from nvcf_otel.delivery import Delivery

        make, reports = self._exporter(signal, export)
        queue = self._settings.spans if signal == "traces" else self._settings.log_records
        delivery: Delivery[Any] = Delivery(signal, lambda: CleanExporter(make()), queue, self._drops, reports)
        self._telemetry._closers.append(delivery.close)
        return delivery

    def _exporter(self, signal: str, export: Export) -> tuple[Callable[[], Any], Any]:
        from nvcf_otel.delivery import Reports
        from nvcf_otel.exporters import available, maker, quieten

        if not available(export.protocol):
            raise SdkMissing(f"OpenTelemetry's exporter for {export.protocol.value}")
        reports = Reports(signal, export.endpoint)
        undo = quieten(signal, export, reports)
        self._telemetry._closers.append(lambda _: undo())
        return maker(signal, export), reports
