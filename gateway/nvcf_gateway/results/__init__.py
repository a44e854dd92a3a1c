"""Stored results: retention, polls, idempotency keys, dead letters."""
