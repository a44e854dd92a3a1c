"""Rendered configurations in a real OpenTelemetry Collector: what it takes, and what arrives behind it."""

from __future__ import annotations

import http.server
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from nvcf_otel.byoo import check_endpoint
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySecret,
    TelemetrySettings,
    TelemetryType,
)
from tests.collector.conftest import ROOT, Collector, Start
from tests.support.otlp.receiver import Mode, OtlpReceiver

EXAMPLES = sorted((ROOT / "otel" / "examples").glob("*.yaml"))
# Modules that they need are not in the registries.
NOT_BUILT = ("splunk_hec", "datadog")
ALL = tuple(TelemetryType)
# The tail sampler decides ten seconds after a trace began.
DECISION_SECONDS = 30.0


@pytest.fixture
def backend() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def to(backend: OtlpReceiver, protocol: TelemetryProtocol, **changes: Any) -> TelemetryEndpoint:
    """A generic endpoint that is the test's own backend."""
    grpc = protocol is TelemetryProtocol.GRPC
    made = TelemetryEndpoint(
        id=new_id(),
        name="backend",
        nca_id="one",
        endpoint=backend.endpoint("grpc" if grpc else "http/protobuf"),
        protocol=protocol,
        provider=TelemetryProvider.OTEL_COLLECTOR,
        types=ALL,
        created_at=0.0,
        **changes,
    )
    check_endpoint(made)
    return made


def send_spans(collector: Collector, *names: str, failing: bool = False) -> None:
    """One trace a name, of one span, which says that it belongs to another function."""
    resource = Resource.create({"service.name": "function", "nvcf.function.id": "forged"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(collector.address, insecure=True)))
    for name in names:
        with provider.get_tracer("test").start_as_current_span(name) as span:
            if failing:
                span.set_status(trace.StatusCode.ERROR, "failed")
    assert provider.force_flush(10_000)
    provider.shutdown()


def send_counts(collector: Collector, **counts: int) -> None:
    """Counters."""
    exporter = OTLPMetricExporter(collector.address, insecure=True)
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, 3_600_000)])
    for name, count in counts.items():
        provider.get_meter("test").create_counter(name.replace("__", ".")).add(count)
    provider.shutdown()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_takes_each_example(program: Path, path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    exporters = yaml.safe_load(text)["exporters"]
    if any(name.startswith(NOT_BUILT) for name in exporters):
        pytest.skip(
            "an exporter of this one cannot be built out of the registries; its fields are checked elsewhere"
        )
    for name in set(re.findall(r"/etc/byoo-otel-collector/secrets/([\w-]+)", text)):
        (tmp_path / name).write_text("a-secret")
    file = tmp_path / "collector.yaml"
    file.write_text(text.replace("/etc/byoo-otel-collector/secrets", str(tmp_path)))
    result = subprocess.run(
        [str(program), "validate", "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("protocol", TelemetryProtocol)
def test_spans_and_metrics_arrive_with_what_was_added(
    collect: Start, backend: OtlpReceiver, protocol: TelemetryProtocol
) -> None:
    settings = TelemetrySettings(headers={"X-Team": "one, two"})
    collector = collect(dict.fromkeys(ALL, to(backend, protocol, settings=settings)))
    send_spans(collector, "work")
    send_counts(collector, app__sold=3)
    backend.wait_for(lambda: backend.spans("work") and backend.points("app.sold"), "both arrived")
    span = backend.span("work")
    assert span.service == "function"
    # What the sender says about itself does not count.
    assert span.resource["nvcf.function.id"] == "f"
    assert span.resource["nvcf.odd"] == "costs $5 ${env:HOME} $$"
    assert backend.total("app.sold") == 3
    assert {export.headers["x-team"] for export in backend.exports()} == {"one, two"}


@pytest.mark.parametrize(
    ("auth", "secrets", "header"),
    [
        (TelemetryAuth.BEARER, {"key": "tok$en${env:HOME}\n"}, "Bearer tok$en${env:HOME}"),
        (
            TelemetryAuth.BASIC,
            {"key-username": "user-one\n", "key-password": "1234$5${env:HOME}$$\n"},
            "Basic dXNlci1vbmU6MTIzNCQ1JHtlbnY6SE9NRX0kJA==",
        ),
        (TelemetryAuth.NONE, {"key-apiKey": "01230123$5${env:HOME}$$: x\n"}, None),
    ],
)
def test_secrets_come_out_of_their_files(
    collect: Start, backend: OtlpReceiver, auth: TelemetryAuth, secrets: dict[str, str], header: str | None
) -> None:
    vendor = {"x-api-key": "apiKey"} if auth is TelemetryAuth.NONE else {}
    settings = TelemetrySettings(auth=auth, secret_headers=vendor)
    made = to(backend, TelemetryProtocol.HTTP, settings=settings, secret=TelemetrySecret("key"))
    collector = collect({TelemetryType.TRACES: made}, secrets)
    send_spans(collector, "work")
    backend.wait_for(lambda: backend.spans("work"), "the span arrived")
    (export,) = backend.exports("traces")
    assert export.headers.get("authorization") == header
    assert export.headers.get("x-api-key") == ("01230123$5${env:HOME}$$: x" if vendor else None)
    assert not any(value.strip() in collector.file.read_text() for value in secrets.values())


def test_errors_are_kept_when_nothing_else_is(collect: Start, backend: OtlpReceiver) -> None:
    made = to(backend, TelemetryProtocol.GRPC, settings=TelemetrySettings(sampled_percent=0.0))
    collector = collect({TelemetryType.TRACES: made})
    send_spans(collector, "good", "better")
    send_spans(collector, "bad", failing=True)
    backend.wait_for(lambda: backend.spans("bad"), "the error was kept", DECISION_SECONDS)
    assert {span.name for span in backend.spans()} == {"bad"}


def test_only_listed_metrics_pass(collect: Start, backend: OtlpReceiver) -> None:
    settings = TelemetrySettings(allow_metrics=(r"app\.[a-z]+", r"other\.\d"))
    collector = collect({TelemetryType.METRICS: to(backend, TelemetryProtocol.GRPC, settings=settings)})
    send_counts(collector, app__sold=1, app__sold2=1, other__7=1, otherx7=1, nvcf__queue__depth=1, secret=1)
    backend.wait_for(lambda: backend.points("app.sold"), "the listed metric arrived")
    assert backend.metric_names() == {"app.sold", "other.7", "nvcf.queue.depth"}


def test_scraped_endpoints_give_the_platforms_metrics(collect: Start, backend: OtlpReceiver) -> None:
    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (
                b"# TYPE nvcf_request_total counter\nnvcf_request_total 7\n# TYPE foreign gauge\nforeign 1\n"
            )
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scrape = (f"127.0.0.1:{server.server_port}",)
        collect({TelemetryType.METRICS: to(backend, TelemetryProtocol.GRPC)}, scrape=scrape)
        backend.wait_for(lambda: backend.points("nvcf_request_total"), "it was scraped")
        server.shutdown()
    assert backend.total("nvcf_request_total") == 7
    assert backend.metric_names() == {"nvcf_request_total"}


def test_what_a_dead_backend_missed_survives_the_death_of_the_collector(
    collect: Start, backend: OtlpReceiver
) -> None:
    collector = collect({TelemetryType.TRACES: to(backend, TelemetryProtocol.HTTP)})
    backend.mode = Mode.RETRYABLE
    send_spans(collector, "early")
    backend.wait_for(lambda: backend.attempts > 0, "it was tried")
    collector.kill()
    backend.mode = Mode.OK
    collector.start()
    backend.wait_for(lambda: backend.spans("early"), "it was sent after all", 60)


@pytest.mark.parametrize("mode", [Mode.DEAD, Mode.CORRUPT, Mode.RETRYABLE])
def test_everything_arrives_when_the_backend_is_well_again(
    collect: Start, backend: OtlpReceiver, mode: Mode
) -> None:
    backend.mode = mode
    collector = collect({TelemetryType.TRACES: to(backend, TelemetryProtocol.GRPC)})
    send_spans(collector, "early")
    if mode is not Mode.DEAD:
        backend.wait_for(lambda: backend.attempts > 0, "it was tried")
    backend.mode = Mode.OK
    send_spans(collector, "late")
    backend.wait_for(lambda: backend.spans("late"), "what came later arrived", 60)
    if mode is not Mode.CORRUPT:
        backend.wait_for(lambda: backend.spans("early"), "what came before arrived", 60)
