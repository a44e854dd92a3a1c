"""Telemetry endpoints: what the SDK sends by itself, and what needs a collector."""

from __future__ import annotations

from typing import Any

from nvcf_otel.byoo import (
    PROVIDERS,
    plan,
)
from nvcf_otel.byoo.plan import collector_environment, direct_environment, is_direct
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    Telemetries,
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySecret,
    TelemetrySettings,
    TelemetryType,
)

LOGS, METRICS, TRACES = TelemetryType.LOGS, TelemetryType.METRICS, TelemetryType.TRACES


def endpoint(
    provider: TelemetryProvider = TelemetryProvider.OTEL_COLLECTOR, **changes: Any
) -> TelemetryEndpoint:
    """A good endpoint of a provider."""
    about = PROVIDERS[provider]
    made = TelemetryEndpoint(
        id=new_id(),
        name="prod",
        nca_id="one",
        endpoint=about.example,
        protocol=TelemetryProtocol.HTTP,
        provider=provider,
        types=tuple(sorted(about.types)),
        created_at=1.0,
        secret=TelemetrySecret("prod-secret"),
    )
    return made.replace(**changes)


class TestPlan:
    def test_finds_only_the_accounts_own_endpoints_for_what_they_take(self) -> None:
        mine, foreign = endpoint(), endpoint(nca_id="two")
        metrics = endpoint(TelemetryProvider.PROMETHEUS)
        there = {each.id: each for each in (mine, foreign, metrics)}
        found = plan(Telemetries(mine.id, metrics.id, foreign.id), there.get, "one")
        assert found.endpoints == {LOGS: mine, METRICS: metrics}
        assert [(each.kind, each.why) for each in found.unknown] == [
            (TRACES, "there is no such telemetry endpoint")
        ]
        wrong = plan(Telemetries(logs=metrics.id), there.get, "one")
        assert wrong.unknown[0].why == "prod does not take LOGS"
        assert plan(None, there.get, "one").endpoints == {}

    def test_the_sdk_does_alone_what_it_can(self) -> None:
        assert is_direct(endpoint())
        assert not is_direct(endpoint(settings=TelemetrySettings(sampled_percent=10.0)))
        assert not is_direct(endpoint(settings=TelemetrySettings(allow_metrics=("a",))))
        assert not is_direct(endpoint(TelemetryProvider.GRAFANA_CLOUD))

    def test_standard_variables_for_the_sdk(self) -> None:
        secrets = {"prod-secret": "tok en=1\n", "prod-secret-k": "v"}
        settings = TelemetrySettings(
            headers={"X-Team": "a,b"}, secret_headers={"x-key": "k"}, private_ca=True
        )
        http = endpoint(endpoint="https://c.example.com/otlp/", settings=settings)
        grpc = endpoint(endpoint="https://c.example.com", protocol=TelemetryProtocol.GRPC)
        environment = direct_environment(
            {LOGS: http, TRACES: grpc}, secrets.__getitem__, lambda name: f"/run/{name}"
        )
        assert environment == {
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://c.example.com/otlp/v1/logs",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x-team=a%2Cb,x-key=v,authorization=Bearer%20tok%20en%3D1",
            "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE": "/run/prod-secret-caFile",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c.example.com:443",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=Bearer%20tok%20en%3D1",
        }

    def test_all_traces_are_made_where_the_account_wants_them(self) -> None:
        wanted = endpoint(settings=TelemetrySettings(sampled_percent=100.0), secret=None)
        assert is_direct(wanted)
        assert direct_environment({TRACES: wanted}, str, str)["OTEL_TRACES_SAMPLER"] == "always_on"
        assert collector_environment({TRACES: wanted}, "h:1")["OTEL_TRACES_SAMPLER"] == "always_on"
        assert "OTEL_TRACES_SAMPLER" not in direct_environment({TRACES: endpoint(secret=None)}, str, str)

    def test_the_sdk_reads_the_headers_as_they_were_meant(self) -> None:
        from opentelemetry.util.re import parse_env_headers

        made = endpoint(settings=TelemetrySettings(auth=TelemetryAuth.BASIC))
        secrets = {"prod-secret-username": "me", "prod-secret-password": "p,w=;ü"}
        environment = direct_environment({LOGS: made}, secrets.__getitem__, str)
        headers = parse_env_headers(environment["OTEL_EXPORTER_OTLP_LOGS_HEADERS"], liberal=True)
        assert headers == {"authorization": "Basic bWU6cCx3PTvDvA=="}

    def test_to_a_collector_everything_is_sent_that_it_may_want_to_keep(self) -> None:
        sampled = endpoint(settings=TelemetrySettings(sampled_percent=1.0))
        assert collector_environment({TRACES: sampled}, "127.0.0.1:14357") == {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:14357",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_TRACES_SAMPLER": "always_on",
        }
