"""Telemetry endpoints: what is taken, what the SDK does alone, what a collector is told."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nvcf_otel.byoo import (
    PROVIDERS,
    Placement,
    check_endpoint,
    collector_configuration,
    collector_text,
    secret_files,
)
from nvcf_otel.byoo.collector import yaml_text
from nvcf_otel.byoo.processors import PLATFORM_METRICS
from nvcf_otel.byoo.providers import as_referenced, referenced_files
from nvcf_otel.instruments import ALL
from nvcf_proto.errors import InvalidRecord
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
from tests.unit.otel.collector_fields import problems

ROOT = Path(__file__).parents[3]
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


def rendered(made: TelemetryEndpoint, placement: Placement | None = None) -> dict[str, Any]:
    """The configuration that sends all the endpoint takes to it, read back from its text."""
    text = collector_text(dict.fromkeys(made.types, made), placement or Placement())
    return dict(yaml.safe_load(text))


def exporters(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return dict(configuration["exporters"])


class TestChecks:
    @pytest.mark.parametrize("provider", TelemetryProvider)
    def test_each_providers_example_is_good(self, provider: TelemetryProvider) -> None:
        check_endpoint(endpoint(provider))

    @pytest.mark.parametrize(
        ("changes", "field", "text"),
        [
            ({"endpoint": "collector:4318"}, "endpoint", "expected an address such as https://"),
            ({"endpoint": "ftp://collector"}, "endpoint", "expected an address"),
            ({"endpoint": "https://collector:99999"}, "endpoint", "expected an address"),
            ({"endpoint": "https://user:pw@collector"}, "endpoint", "belong into the secret"),
            ({"endpoint": "https://collector/?api-key=1"}, "endpoint", "no query"),
            ({"endpoint": "https://c/otlp", "protocol": TelemetryProtocol.GRPC}, "endpoint", "has no path"),
            ({"endpoint": "http://c:4317", "protocol": TelemetryProtocol.GRPC}, "endpoint", "use https"),
            ({"provider": TelemetryProvider.PROMETHEUS, "types": (LOGS,)}, "types[0]", "takes METRICS only"),
            (
                {"provider": TelemetryProvider.DATADOG, "protocol": TelemetryProtocol.GRPC},
                "protocol",
                "over HTTP only",
            ),
            (
                {"provider": TelemetryProvider.DATADOG, "endpoint": "https://dd"},
                "endpoint",
                "such as datadoghq",
            ),
            ({"provider": TelemetryProvider.GRAFANA_CLOUD, "secret": None}, "secret", "instanceId, apiKey"),
            (
                {"secret": None, "settings": TelemetrySettings(auth=TelemetryAuth.BASIC)},
                "secret",
                "username, password",
            ),
            (
                {
                    "provider": TelemetryProvider.DYNATRACE,
                    "settings": TelemetrySettings(auth=TelemetryAuth.BASIC),
                },
                "configuration.auth",
                "has its own way",
            ),
            (
                {"provider": TelemetryProvider.AZURE_MONITOR, "settings": TelemetrySettings(private_ca=True)},
                "configuration",
                "takes neither headers",
            ),
        ],
    )
    def test_says_which_field_and_what_instead(self, changes: dict[str, Any], field: str, text: str) -> None:
        with pytest.raises(InvalidRecord) as caught:
            check_endpoint(endpoint(**changes))
        assert caught.value.field == field
        assert text in caught.value.reason

    def test_names_the_files_of_a_secret_as_the_peer_does(self) -> None:
        wanted = {
            TelemetryProvider.SPLUNK: ("prod-secret",),
            TelemetryProvider.GRAFANA_CLOUD: ("prod-secret-instanceId", "prod-secret-apiKey"),
            TelemetryProvider.PROMETHEUS: ("prod-secret-clientCert", "prod-secret-clientKey"),
            TelemetryProvider.AZURE_MONITOR: (
                "prod-secret-instrumentationKey",
                "prod-secret-applicationId",
                "prod-secret-liveEndpoint",
            ),
        }
        assert {provider: secret_files(endpoint(provider)) for provider in wanted} == wanted
        assert secret_files(endpoint(secret=None)) == ()

    @pytest.mark.parametrize("provider", TelemetryProvider)
    def test_knows_which_files_the_collector_reads_as_references(self, provider: TelemetryProvider) -> None:
        made = endpoint(provider)
        if provider not in (TelemetryProvider.DATADOG, TelemetryProvider.AZURE_MONITOR):
            made = made.replace(settings=TelemetrySettings(secret_headers={"x-key": "k"}))
        text = collector_text(dict.fromkeys(made.types, made), Placement(secrets="/s"))
        assert set(re.findall(r"\$\{file:/s/([\w-]+)\}", text)) == referenced_files(made)
        assert as_referenced("a$b${env:HOME}$$\n") == "a$$b$${env:HOME}$$$$"


class TestRecords:
    @pytest.mark.parametrize("provider", TelemetryProvider)
    def test_come_back_as_they_were(self, provider: TelemetryProvider) -> None:
        settings = TelemetrySettings(
            headers={"x-team": "one"}, secret_headers={"x-key": "k"}, allow_metrics=("a.*",), slow_seconds=2.0
        )
        made = endpoint(provider, settings=settings)
        assert TelemetryEndpoint.from_json(made.to_json()) == made
        chosen = Telemetries(logs=made.id, traces=made.id)
        assert Telemetries.from_json(chosen.to_json()) == chosen
        assert chosen.by_type() == {LOGS: made.id, TRACES: made.id}

    @pytest.mark.parametrize(
        ("member", "value", "text"),
        [
            ("secret", {"name": "a", "value": {"token": "t"}}, "secret.value: unknown field; known are name"),
            ("secret", {"name": "../etc"}, "secret.name: does not match"),
            ("types", [], "types: name at least one"),
            ("types", ["PROFILES"], "types[0]: expected one of LOGS"),
            ("endpoint", "https://${env:HOME}", "endpoint: does not match"),
            ("configuration", {"allowMetrics": ["(a"]}, "allowMetrics[0]: no regular expression"),
            ("configuration", {"allowMetrics": ["(?=a)a"]}, "allowMetrics[0]: only what RE2 knows"),
            ("configuration", {"allowMetrics": ["a", "a{2000}"]}, "allowMetrics[1]: only what RE2 knows"),
            ("configuration", {"allowMetrics": [r"a\Z"]}, "allowMetrics[0]: only what RE2 knows"),
            ("configuration", {"headers": {"x y": "1"}}, "configuration.headers: 'x y' is no header name"),
            ("configuration", {"headers": {"x": "${env:A}"}}, "configuration.headers.x: does not match"),
            ("configuration", {"sampledPercent": 101}, "sampledPercent: expected 0 to 100"),
            ("configuration", {"colour": "red"}, "configuration.colour: unknown field"),
        ],
    )
    def test_refuse_what_cannot_be_meant(self, member: str, value: Any, text: str) -> None:
        body = {**endpoint().to_dict(), member: value}
        with pytest.raises(InvalidRecord, match=re.escape(text)):
            TelemetryEndpoint.from_dict(body)


class TestExamples:
    def test_are_what_is_rendered(self) -> None:
        path = ROOT / "scripts" / "generate_collector_examples.py"
        spec = importlib.util.spec_from_file_location("generate_collector_examples", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        folder = ROOT / "otel" / "examples"
        stored = {path.name: path.read_text() for path in folder.glob("*.yaml")}
        assert dict(module.examples()) == stored, "run scripts/generate_collector_examples.py"

    @pytest.mark.parametrize(
        "path", sorted((ROOT / "otel" / "examples").glob("*.yaml")), ids=lambda p: p.name
    )
    def test_hold_only_what_the_collector_takes(self, path: Path) -> None:
        assert problems(yaml.safe_load(path.read_text())) == []


class TestCollector:
    @pytest.mark.parametrize("provider", TelemetryProvider)
    def test_no_secret_is_in_the_text_and_each_is_read_from_its_file(
        self, provider: TelemetryProvider
    ) -> None:
        made = endpoint(provider)
        text = collector_text(dict.fromkeys(made.types, made), Placement(secrets="/run/secrets"))
        for name in secret_files(made):
            assert f"/run/secrets/{name}" in text
        assert problems(yaml.safe_load(text)) == []

    @pytest.mark.parametrize("provider", TelemetryProvider)
    def test_failed_exports_are_tried_again_from_a_queue(self, provider: TelemetryProvider) -> None:
        for name, exporter in exporters(rendered(endpoint(provider))).items():
            if name.startswith("prometheusremotewrite/"):
                assert exporter["remote_write_queue"]["enabled"]
            else:
                assert exporter["sending_queue"]["storage"] == "file_storage", name
            if not name.startswith("azuremonitor/"):
                assert exporter["retry_on_failure"]["enabled"], name

    def test_the_memory_limiter_is_first_and_the_batch_last(self) -> None:
        made = endpoint(settings=TelemetrySettings(sampled_percent=10.0))
        configuration = rendered(made, Placement(resource={"nvcf.cluster": "one"}))
        for pipeline in configuration["service"]["pipelines"].values():
            assert pipeline["processors"][0] == "memory_limiter"
            assert pipeline["processors"][-1] == "batch"

    def test_errors_and_slow_traces_are_always_kept(self) -> None:
        made = endpoint(settings=TelemetrySettings(sampled_percent=10.0, slow_seconds=0.25))
        policies = rendered(made)["processors"]["tail_sampling"]["policies"]
        assert [policy["type"] for policy in policies] == ["status_code", "latency", "probabilistic"]
        assert policies[1]["latency"] == {"threshold_ms": 250}
        assert policies[2]["probabilistic"] == {"sampling_percentage": 10.0}
        only = endpoint(settings=TelemetrySettings(sampled_percent=0.0))
        assert len(rendered(only)["processors"]["tail_sampling"]["policies"]) == 2
        assert "tail_sampling" not in rendered(endpoint())["processors"]

    def test_grpc_addresses_are_host_and_port(self) -> None:
        grpc = TelemetryProtocol.GRPC
        wanted = {
            ("https://c.example.com", "s"): ("c.example.com:443", None),
            ("https://c.example.com:4317", "s"): ("c.example.com:4317", None),
            ("http://c", None): ("c:4317", {"insecure": True}),
        }
        for (address, secret), (host, tls) in wanted.items():
            made = endpoint(
                endpoint=address, secret=TelemetrySecret(secret) if secret else None, protocol=grpc
            )
            exporter = exporters(rendered(made))["otlp/OTEL_COLLECTOR-prod-logs"]
            assert (exporter["endpoint"], exporter.get("tls")) == (host, tls)

    def test_a_vendor_can_be_described_by_configuration(self) -> None:
        settings = TelemetrySettings(
            auth=TelemetryAuth.MTLS,
            headers={"x-team": "one"},
            secret_headers={"collector-id": "collectorId"},
            private_ca=True,
        )
        exporter = exporters(rendered(endpoint(settings=settings)))["otlphttp/OTEL_COLLECTOR-prod-logs"]
        base = "/etc/byoo-otel-collector/secrets/prod-secret"
        assert exporter["headers"] == {"x-team": "one", "collector-id": f"${{file:{base}-collectorId}}"}
        assert exporter["tls"] == {
            "cert_file": f"{base}-clientCert",
            "key_file": f"{base}-clientKey",
            "ca_file": f"{base}-caFile",
        }

    def test_nothing_to_send_is_no_configuration(self) -> None:
        with pytest.raises(ValueError, match="nothing to send"):
            collector_configuration({}, Placement())

    @given(
        st.dictionaries(
            st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
            st.text(max_size=50),
            max_size=5,
        )
    )
    def test_resource_attributes_are_values_whatever_is_in_them(self, attributes: dict[str, str]) -> None:
        made = endpoint()
        actions = rendered(made, Placement(resource=attributes))["processors"].get(
            "resource", {"attributes": []}
        )
        # The collector reads "$$" as "$".
        found = {each["key"]: each["value"].replace("$$", "$") for each in actions["attributes"]}
        assert found == attributes
        assert all("${" not in each["value"].replace("$$", "") for each in actions["attributes"])

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_the_text_says_what_was_meant(self, value: Any) -> None:
        assert yaml.safe_load(yaml_text(value)) == value


class TestAllowList:
    def expressions(self, *allowed: str) -> list[str]:
        made = endpoint(settings=TelemetrySettings(allow_metrics=allowed))
        conditions = rendered(made)["processors"]["filter/metrics"]["metrics"]["metric"]
        return [str(condition) for condition in conditions]

    def test_without_one_only_the_scrapes_own_metrics_are_dropped(self) -> None:
        assert self.expressions() == ['IsMatch(name, "^(up|scrape_[a-z_]+)$$")']

    def test_with_one_the_platforms_and_the_listed_ones_pass(self) -> None:
        condition = self.expressions(r"app_[0-9]+", r"a\.b")[1]
        quoted = re.fullmatch(r'not IsMatch\(name, "(.*)"\)', condition)
        assert quoted is not None
        expression = quoted[1].replace("\\\\", "\\").replace("$$", "$")
        for name in (
            "app_12",
            "a.b",
            "nvcf.queue.depth",
            "nvcf_request_total",
            "http.server.request.duration",
        ):
            assert re.match(expression, name), name
        for name in ("app_x", "axb", "secret_metric", "xnvcf.queue.depth"):
            assert not re.match(expression, name), name

    def test_every_metric_of_the_platform_passes(self) -> None:
        for instrument in ALL:
            for name in (instrument.name, instrument.prometheus_name):
                assert re.fullmatch(PLATFORM_METRICS, name), name
