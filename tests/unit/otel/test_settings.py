"""OpenTelemetry's variables as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_otel.settings import (
    DEFAULT_RATIO,
    Export,
    Protocol,
    QueueSettings,
    SamplerSettings,
    pairs,
    settings_from,
)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_nothing_is_wanted_where_nothing_is_said() -> None:
    settings = settings_from({})
    assert not settings.exports
    assert settings.sampler == SamplerSettings("parentbased_traceidratio", DEFAULT_RATIO)
    assert not settings.problems


def test_one_endpoint_takes_everything() -> None:
    settings = settings_from({ENDPOINT: "http://collector:4317"})
    expected = Export("http://collector:4317", Protocol.GRPC)
    assert (settings.traces, settings.metrics, settings.logs) == (expected, expected, expected)
    assert expected.insecure


def test_over_http_each_kind_has_its_path_unless_it_has_an_endpoint_of_its_own() -> None:
    settings = settings_from(
        {
            ENDPOINT: "https://backend/otlp/",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://logs.example/take",
        }
    )
    assert settings.traces is not None
    assert settings.logs is not None
    assert settings.traces.endpoint == "https://backend/otlp/v1/traces"
    assert settings.logs.endpoint == "https://logs.example/take"
    assert not settings.traces.insecure


@pytest.mark.parametrize(
    ("environ", "protocol", "endpoint"),
    [
        ({ENDPOINT: "http://c:4318"}, Protocol.HTTP, "http://c:4318/v1/traces"),
        ({ENDPOINT: "c:4317"}, Protocol.GRPC, "https://c:4317"),
        (
            {ENDPOINT: "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, Protocol.GRPC, "http://c:4317",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, Protocol.GRPC, "http://localhost:4317"),
    ],
)  # fmt: skip
def test_how_it_is_spoken(environ: dict[str, str], protocol: Protocol, endpoint: str) -> None:
    traces = settings_from(environ).traces
    assert traces is not None
    assert (traces.protocol, traces.endpoint) == (protocol, endpoint)


def test_kinds_can_be_switched_off_and_all_of_it() -> None:
    settings = settings_from({ENDPOINT: "http://c:4317", "OTEL_LOGS_EXPORTER": "none"})
    assert settings.logs is None
    assert settings.traces is not None
    off = settings_from({ENDPOINT: "http://c:4317", "OTEL_SDK_DISABLED": "True"})
    assert off.disabled
    assert not off.exports


def test_what_makes_no_sense_is_told_and_not_followed() -> None:
    settings = settings_from(
        {
            ENDPOINT: "ftp://c",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:4317",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "carrier-pigeon",
            "OTEL_METRICS_EXPORTER": "console",
            "OTEL_TRACES_SAMPLER": "sometimes",
            "OTEL_BSP_MAX_QUEUE_SIZE": "many",
        }
    )
    assert not settings.exports
    assert settings.sampler == SamplerSettings()
    assert settings.spans.size == 2048
    for word in ("ftp://c", "carrier-pigeon", "console", "sometimes", "many"):
        assert any(word in problem for problem in settings.problems), word


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_on"}, SamplerSettings("always_on", 1.0)),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.5"}, SamplerSettings("parentbased_traceidratio", 0.5)),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, SamplerSettings("traceidratio", 1.0)),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"},
            SamplerSettings("traceidratio"),
        ),
    ],
)
def test_samplers(environ: dict[str, str], expected: SamplerSettings) -> None:
    assert settings_from(environ).sampler == expected


def test_headers_times_queues_and_files() -> None:
    settings = settings_from(
        {
            ENDPOINT: "https://c:4317",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20abc%3D%3D,x-team=a",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "500",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
            "OTEL_BSP_MAX_QUEUE_SIZE": "10",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod,team=a%20b",
            "OTEL_SERVICE_NAME": "mine",
        }
    )
    assert settings.traces is not None
    assert settings.logs is not None
    assert settings.traces.headers == {"authorization": "Basic abc==", "x-team": "a"}
    assert (settings.traces.timeout, settings.logs.timeout) == (0.5, 2.5)
    assert settings.traces.gzip
    assert settings.traces.certificate == "/ca.pem"
    assert settings.spans == QueueSettings(10, 10, 0.1)
    assert settings.resource == {"deployment.environment.name": "prod", "team": "a b"}
    assert settings.service_name == "mine"
    assert "Basic" not in repr(settings)


@given(st.text(), st.dictionaries(st.sampled_from([ENDPOINT, "OTEL_TRACES_SAMPLER_ARG"]), st.text()))
def test_no_environment_raises(text: str, environ: dict[str, str]) -> None:
    pairs(text)
    settings_from({**environ, "OTEL_EXPORTER_OTLP_HEADERS": text, "OTEL_BSP_SCHEDULE_DELAY": text})


@pytest.mark.parametrize("text", ["9" * 16, "9" * 5000])
def test_numbers_beyond_what_a_timer_takes_are_not_followed(text: str) -> None:
    found = settings_from({"OTEL_BSP_SCHEDULE_DELAY": text, "OTEL_METRIC_EXPORT_INTERVAL": text})
    assert found.spans.delay == 5.0
    assert found.metric_interval == 60.0
    assert len(found.problems) == 2
