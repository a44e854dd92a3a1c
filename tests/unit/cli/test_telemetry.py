"""`nvcf telemetry`: what users write, without a platform."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.processes import Addresses, ClusterPlan, agent_spec
from nvcf_cli.local.state import Installation
from nvcf_cli.main import run
from nvcf_cli.telemetry import chosen, creation, find_endpoint, missing_files, pairs, reference, render, word
from nvcf_otel.byoo import Placement
from nvcf_proto.ids import new_id
from nvcf_proto.models import TelemetryProtocol, TelemetryProvider

TEMPO = {
    "telemetryId": new_id(),
    "name": "tempo",
    "ncaId": "one",
    "endpoint": "http://tempo:4317",
    "protocol": "GRPC",
    "provider": "OTEL_COLLECTOR",
    "types": ["LOGS", "METRICS", "TRACES"],
    "createdAt": "2030-01-01T00:00:00Z",
}
PROMETHEUS = {
    **TEMPO,
    "telemetryId": new_id(),
    "name": "prom",
    "endpoint": "https://prom/api/v1/write",
    "protocol": "HTTP",
    "provider": "PROMETHEUS",
    "types": ["METRICS"],
    "secret": {"name": "prom"},
}


def test_words_are_taken_as_people_write_them() -> None:
    assert word(TelemetryProvider, "--provider", "grafana-cloud") is TelemetryProvider.GRAFANA_CLOUD
    assert word(TelemetryProtocol, "--protocol", "gRPC") is TelemetryProtocol.GRPC
    with pytest.raises(UsageError, match="--provider grafana: expected one of otel-collector, prometheus"):
        word(TelemetryProvider, "--provider", "grafana")


def test_pairs() -> None:
    assert pairs("--header", ["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(UsageError, match="--header a: NAME=VALUE expected"):
        pairs("--header", ["a"])


def test_an_endpoint_takes_all_its_provider_does_unless_told() -> None:
    nothing: dict[str, object] = {
        "auth": None,
        "headers": {},
        "privateCa": False,
        "allowMetrics": None,
        "sampledPercent": 0.0,
    }
    body = creation(
        "prom",
        provider=TelemetryProvider.PROMETHEUS,
        endpoint="https://prom",
        protocol=None,
        types=(),
        secret="prom",
        configuration=nothing,
    )
    assert body == {
        "name": "prom",
        "endpoint": "https://prom",
        "provider": "PROMETHEUS",
        "protocol": "HTTP",
        "types": ["METRICS"],
        "secret": {"name": "prom"},
        "configuration": {"sampledPercent": 0.0},
    }
    with pytest.raises(UsageError, match="letters, digits"):
        creation(
            "a/b",
            provider=TelemetryProvider.PROMETHEUS,
            endpoint="x",
            protocol=None,
            types=(),
            secret=None,
            configuration={},
        )


def test_each_kind_goes_to_the_first_that_takes_it() -> None:
    found = chosen([TEMPO, PROMETHEUS], ["prom", "tempo"])
    assert reference(found) == {
        "metricsTelemetryId": PROMETHEUS["telemetryId"],
        "logsTelemetryId": TEMPO["telemetryId"],
        "tracesTelemetryId": TEMPO["telemetryId"],
    }
    with pytest.raises(CliError, match="prom takes metrics, which go to another one already"):
        chosen([TEMPO, PROMETHEUS], ["tempo", "prom"])
    with pytest.raises(CliError, match="no telemetry endpoint loki; there are: prom, tempo"):
        chosen([TEMPO, PROMETHEUS], ["loki"])
    with pytest.raises(CliError, match="make one with nvcf telemetry add"):
        find_endpoint([], "loki")


def test_renders_what_was_chosen() -> None:
    text = render(chosen([TEMPO, PROMETHEUS], ["prom", "tempo"]), Placement(secrets="/s"))
    pipelines = yaml.safe_load(text)["service"]["pipelines"]
    assert pipelines["metrics"]["exporters"] == ["prometheusremotewrite/PROMETHEUS-prom-metrics"]
    assert pipelines["logs"]["exporters"] == ["otlp/OTEL_COLLECTOR-tempo-logs"]
    with pytest.raises(UsageError, match="at least one"):
        render({}, Placement())


def test_says_which_secret_files_are_missing(tmp_path: Path) -> None:
    assert missing_files(PROMETHEUS, None) == ["one/prom-clientCert", "one/prom-clientKey"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "prom-clientCert").write_text("x")
    assert missing_files(PROMETHEUS, tmp_path) == ["one/prom-clientKey"]
    assert missing_files(TEMPO, tmp_path) == []


def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["telemetry", "add", "x", "--endpoint", "http://x", "--type", "profiles"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --type profiles: expected one of logs, metrics, traces")


def test_agents_are_told_of_the_collector_and_of_the_secrets(tmp_path: Path) -> None:
    program = tmp_path / "otelcol"
    plan = ClusterPlan(collector=program)
    with pytest.raises(UsageError, match="there is no such program"):
        plan.check()
    program.touch(0o700)
    plan.check()
    command = agent_spec(
        Installation(tmp_path), Addresses("h:1", "h:2", "nats://h", None, None), plan, "local", "id", "info"
    ).command
    assert command[command.index("--collector") + 1] == str(program)
    assert command[command.index("--telemetry-secrets") + 1] == str(tmp_path / "telemetry-secrets")
