"""Telemetry of requests: metrics of all, spans of those whose trace is sampled."""
