"""Errors of telemetry; a message says the way out."""

from __future__ import annotations


class TelemetryError(Exception):
    """Telemetry cannot be set up as asked for."""


class MetricsAddressError(TelemetryError):
    """The address for Prometheus is malformed or taken."""


class SdkMissing(TelemetryError):
    """OpenTelemetry's SDK is not installed."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"telemetry is asked for, and {missing} is not installed: pip install 'nvcf-worker[otel]'"
        )
