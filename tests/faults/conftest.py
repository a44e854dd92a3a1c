"""Fixtures of the worker's contract tests: a real broker, a peer gateway, workers as processes."""

from __future__ import annotations

from tests.contract.worker.conftest import broker, gateway, start_process, start_worker

__all__ = ["broker", "gateway", "start_process", "start_worker"]
