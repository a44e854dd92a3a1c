"""Secrets of functions, telemetry endpoints and registries: sealed, stored, and handed to instances."""
