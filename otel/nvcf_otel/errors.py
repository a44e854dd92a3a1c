"""Errors of telemetry. Each message says what to do."""

from __future__ import annotations


class TelemetryError(Exception):
    """Telemetry cannot be set up as configured."""


class MetricsAddressError(TelemetryError):
    """The address for Prometheus is malformed or in use."""


class SdkMissing(TelemetryError):
    """OpenTelemetry's SDK is not installed."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"telemetry is asked for, and {missing} is not installed: pip install 'nvcf-worker[otel]'"
        )
