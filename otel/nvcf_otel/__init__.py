"""Telemetry of all processes: logs, metrics, traces, and the configuration of collectors and dashboards."""
