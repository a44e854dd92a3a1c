"""Telemetry of a worker: metrics, spans of sampled requests, metering events."""
