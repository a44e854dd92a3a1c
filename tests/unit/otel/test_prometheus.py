"""The page for Prometheus, read by Prometheus' own parsers."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from nvcf_otel import worker_instruments as instruments
from nvcf_otel.endpoint import MetricsServer, parse_address
from nvcf_otel.errors import MetricsAddressError
from nvcf_otel.histograms import Histogram, attach
from nvcf_otel.prometheus import PrometheusReader, label

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7
OPEN = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def reader() -> PrometheusReader:
    reader = PrometheusReader()
    histogram = Histogram(instruments.HANDLER_DURATION)
    attach(reader, {"h": histogram})
    provider = MeterProvider([reader], Resource({"service.name": 'a"b\n'}), shutdown_on_exit=False)
    meter = provider.get_meter("test")
    instruments.STREAM_ITEMS.create(meter, lambda _: [Observation(3, {"nvcf.function.id": "f"})])
    instruments.WORKER_SLOTS.create(meter, lambda _: [Observation(8)])
    instruments.PROCESS_MEMORY_USAGE.create(meter, lambda _: [Observation(4096)])
    span = NonRecordingSpan(SpanContext(TRACE, SPAN, False, TraceFlags(1)))
    series = histogram.series({"nvcf.outcome": "fulfilled"})
    series.record(0.02, span)
    series.record(9000.0)
    return reader


def test_names_kinds_and_values(reader: PrometheusReader) -> None:
    body, media_type = reader.page()
    assert media_type.startswith("text/plain")
    families = {family.name: family for family in plain(body.decode())}
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert families["nvcf_stream_items"].type == "counter"
    assert samples["nvcf_stream_items_total", None] == 3
    assert samples["nvcf_worker_slots", None] == 8
    assert samples["process_memory_usage_bytes", None] == 4096
    assert samples["nvcf_handler_duration_seconds_bucket", "0.01"] == 0
    assert samples["nvcf_handler_duration_seconds_bucket", "0.025"] == 1
    assert samples["nvcf_handler_duration_seconds_bucket", "3600.0"] == 1
    assert samples["nvcf_handler_duration_seconds_bucket", "+Inf"] == 2
    assert samples["nvcf_handler_duration_seconds_count", None] == 2
    assert samples["nvcf_handler_duration_seconds_sum", None] == 9000.02
    assert families["target_info"].samples[0].labels["service_name"] == 'a"b\n'


def test_open_metrics_have_exemplars(reader: PrometheusReader) -> None:
    body, media_type = reader.page(OPEN)
    assert media_type.startswith("application/openmetrics-text")
    exemplars = [
        sample.exemplar
        for family in open_metrics(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert [(each.value, each.labels["trace_id"], each.labels["span_id"]) for each in exemplars] == [
        (0.02, trace.format_trace_id(TRACE), trace.format_span_id(SPAN))
    ]


def test_labels_are_what_prometheus_takes() -> None:
    assert label("nvcf.function.id") == "nvcf_function_id"
    assert label("9-lives") == "key_9_lives"


@pytest.fixture
def server(reader: PrometheusReader) -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1:0", reader.page)
    yield server
    server.close()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_page_is_served_and_nothing_else(server: MetricsServer) -> None:
    status, body = get(server.port, "/metrics")
    assert status == 200
    assert b"nvcf_worker_slots 8.0" in body
    assert get(server.port, "/secret")[0] == 404


def test_listening_asks_no_name_server(monkeypatch: pytest.MonkeyPatch, reader: PrometheusReader) -> None:
    def resolved(*_: object) -> str:
        raise AssertionError("without a network this takes as long as the resolver is patient")

    monkeypatch.setattr(socket, "getfqdn", resolved)
    MetricsServer("127.0.0.1:0", reader.page).close()


def test_an_address_that_is_taken_is_told(server: MetricsServer) -> None:
    with pytest.raises(MetricsAddressError, match="give a free HOST:PORT"):
        MetricsServer(f"127.0.0.1:{server.port}", lambda _: (b"", ""))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":9090", ("", 9090)), ("[::1]:1", ("::1", 1))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "9090", "host:", "host:x", "host:70000"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(MetricsAddressError):
        parse_address(text)
