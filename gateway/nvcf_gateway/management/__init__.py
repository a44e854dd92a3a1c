"""Management API: functions, deployments, keys, sharing, telemetry endpoints, events."""
