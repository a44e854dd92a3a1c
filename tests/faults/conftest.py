"""Fixtures of the contract tests: a platform; or a broker, a peer gateway and worker processes."""

from __future__ import annotations

from tests.contract.conftest import platform
from tests.contract.worker.conftest import broker, gateway, start_process, start_worker

__all__ = ["broker", "gateway", "platform", "start_process", "start_worker"]
