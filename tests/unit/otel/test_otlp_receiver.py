"""The receiver that other tests rely on, against OpenTelemetry's own exporters."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import LogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from tests.support.otlp.receiver import Mode, OtlpReceiver

RESOURCE = Resource.create({"service.name": "shop", "service.instance.id": "one"})


@pytest.fixture
def backend() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def span_exporter(backend: OtlpReceiver, protocol: str, timeout: float = 5) -> SpanExporter:
    if protocol == "grpc":
        return GrpcSpans(backend.endpoint(), insecure=True, headers=(("x-key", "k"),), timeout=timeout)
    url = backend.endpoint(protocol) + "/v1/traces"
    return HttpSpans(url, headers={"x-key": "k"}, compression=Compression.Gzip, timeout=timeout)


def metric_exporter(backend: OtlpReceiver, protocol: str) -> MetricExporter:
    if protocol == "grpc":
        return GrpcMetrics(backend.endpoint(), insecure=True)
    return HttpMetrics(backend.endpoint(protocol) + "/v1/metrics")


def log_exporter(backend: OtlpReceiver, protocol: str) -> LogRecordExporter:
    if protocol == "grpc":
        return GrpcLogs(backend.endpoint(), insecure=True)
    return HttpLogs(backend.endpoint(protocol) + "/v1/logs")


def one_span(backend: OtlpReceiver, protocol: str, timeout: float = 5) -> SpanExportResult:
    """Result of exporting a single span."""
    results: list[SpanExportResult] = []
    exporter = span_exporter(backend, protocol, timeout)
    export = exporter.export
    exporter.export = lambda spans: results.append(export(spans)) or results[-1]  # type: ignore
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("only"):
        pass
    provider.shutdown()
    return results[0]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
class TestWhatArrives:
    def test_spans_with_parents_links_events_and_headers(self, backend: OtlpReceiver, protocol: str) -> None:
        provider = TracerProvider(resource=RESOURCE)
        provider.add_span_processor(SimpleSpanProcessor(span_exporter(backend, protocol)))
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("other") as other:
            pass
        link = trace.Link(other.get_span_context(), {"why": "first"})
        with tracer.start_as_current_span("outer", kind=trace.SpanKind.SERVER):
            with tracer.start_as_current_span("inner", links=[link], attributes={"shop.item": 3}) as inner:
                inner.add_event("half way", {"percent": 50})
                inner.set_status(trace.StatusCode.ERROR, "sold out")
        provider.shutdown()

        found = backend.span("inner", shop_item=3)
        parent = backend.parent(found)
        assert parent is not None
        assert (parent.name, parent.kind, parent.service) == ("outer", "SERVER", "shop")
        assert backend.children(parent) == [found]
        assert backend.ancestors(found) == ["outer"]
        assert backend.linked(found) == [backend.span("other")]
        assert found.links[0].attributes == {"why": "first"}
        assert (found.status, found.status_message) == ("ERROR", "sold out")
        assert [(event.name, event.attributes) for event in found.events] == [("half way", {"percent": 50})]
        assert found.seconds >= 0
        assert "  inner [INTERNAL shop] ERROR" in backend.tree(found.trace_id)
        export = backend.exports("traces")[0]
        assert export.headers["x-key"] == "k"
        assert export.encoding == ("identity" if protocol == "grpc" else "gzip")

    def test_metrics_with_their_points(self, backend: OtlpReceiver, protocol: str) -> None:
        reader = PeriodicExportingMetricReader(metric_exporter(backend, protocol), 3_600_000)
        provider = MeterProvider([reader], resource=RESOURCE)
        meter = provider.get_meter("test")
        sold = meter.create_counter("shop.sold", "{item}")
        sold.add(2, {"kind": "pear"})
        sold.add(3, {"kind": "fig"})
        meter.create_histogram("shop.wait", "s", explicit_bucket_boundaries_advisory=[1, 2]).record(1.5)
        provider.force_flush()
        sold.add(5, {"kind": "fig"})
        provider.shutdown()

        assert backend.total("shop.sold") == 10
        assert backend.total("shop.sold", kind="fig", service="shop") == 8
        assert [point.value for point in backend.points("shop.sold", kind="fig")] == [3, 8]
        wait = backend.series("shop.wait")[0]
        assert (wait.unit, wait.count, wait.sum, wait.bounds, wait.counts) == ("s", 1, 1.5, (1, 2), (0, 1, 0))
        assert backend.metric_names() >= {"shop.sold", "shop.wait"}

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_logs_with_their_span(self, backend: OtlpReceiver, protocol: str) -> None:
        provider = LoggerProvider(resource=RESOURCE)
        provider.add_log_record_processor(SimpleLogRecordProcessor(log_exporter(backend, protocol)))
        logger = logging.getLogger(f"tests.otlp.{protocol}")
        logger.propagate = False
        logger.addHandler(LoggingHandler(logger_provider=provider))
        with TracerProvider().get_tracer("test").start_as_current_span("outer") as span:
            logger.warning("only %d left", 2, extra={"shop.item": "fig"})
        provider.shutdown()

        (log,) = backend.logs("only 2 left", shop_item="fig")
        assert log.trace_id == f"{span.get_span_context().trace_id:032x}"
        assert log.severity_number == 13
        assert log.service == "shop"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
class TestMisbehaviour:
    @pytest.mark.parametrize("mode", [Mode.STALL, Mode.RETRYABLE, Mode.REFUSED, Mode.CORRUPT])
    def test_reads_and_fails(self, backend: OtlpReceiver, protocol: str, mode: Mode) -> None:
        backend.mode = mode
        result = one_span(backend, protocol, timeout=1)
        # The HTTP exporter does not look into a 200's body.
        if (mode, protocol) != (Mode.CORRUPT, "http/protobuf"):
            assert result is SpanExportResult.FAILURE
        assert backend.attempts >= 1
        assert backend.spans() == []

    @pytest.mark.parametrize("mode", [Mode.DEAD, Mode.HANG, Mode.NOISE])
    def test_never_reads(self, backend: OtlpReceiver, protocol: str, mode: Mode) -> None:
        backend.mode = mode
        assert one_span(backend, protocol, timeout=1) is SpanExportResult.FAILURE
        assert backend.attempts == 0

    def test_slow_and_partial_are_kept(self, backend: OtlpReceiver, protocol: str) -> None:
        backend.delay = 0.05
        for mode in (Mode.SLOW, Mode.PARTIAL):
            backend.mode = mode
            assert one_span(backend, protocol) is SpanExportResult.SUCCESS
        assert len(backend.spans("only")) == 2

    def test_comes_back_on_its_ports(self, backend: OtlpReceiver, protocol: str) -> None:
        endpoint = backend.endpoint(protocol)
        for mode in (Mode.DEAD, Mode.OK, Mode.NOISE, Mode.OK, Mode.STALL, Mode.OK):
            backend.mode = mode
        assert backend.endpoint(protocol) == endpoint
        assert one_span(backend, protocol) is SpanExportResult.SUCCESS


def test_a_dead_backend_keeps_its_ports() -> None:
    with OtlpReceiver(Mode.DEAD) as backend:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", backend.grpc_port))
        with socket.socket() as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(("127.0.0.1", backend.http_port))


def test_failures_say_what_there_is() -> None:
    with OtlpReceiver() as backend:
        assert one_span(backend, "grpc") is SpanExportResult.SUCCESS
        with pytest.raises(AssertionError, match=r"0 spans 'missing'(?s:.*)only \[INTERNAL shop\]"):
            backend.span("missing")
        with pytest.raises(AssertionError, match=r"not within 0\.1 s: two spans"):
            backend.wait_for(lambda: len(backend.spans()) == 2, "two spans", timeout=0.1)
