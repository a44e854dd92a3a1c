"""Which collectors are reached without the proxies of the environment."""

from __future__ import annotations

import pytest

from nvcf_otel.exporters import is_internal


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://localhost:4317",
        "127.0.0.1:4317",
        "http://[::1]:4318/v1/traces",
        "collector:4317",
        "http://10.1.2.3:4318",
        "http://collector.monitoring.svc:4318",
        "http://collector.monitoring.svc.cluster.local.:4318",
        "http://Collector.Internal:4318",
    ],
)
def test_internal(endpoint: str) -> None:
    assert is_internal(endpoint)


@pytest.mark.parametrize(
    "endpoint", ["https://otlp.example.com/v1/traces", "8.8.8.8:4317", "api.honeycomb.io:443"]
)
def test_outside(endpoint: str) -> None:
    assert not is_internal(endpoint)
