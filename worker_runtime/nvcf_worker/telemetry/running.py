"""Telemetry while a worker runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.telemetry.setup import SHUTDOWN_SECONDS, worker_telemetry
from nvcf_worker.telemetry.worker import NoTelemetry, WorkerTelemetry

_current: WorkerTelemetry | NoTelemetry = NoTelemetry()


def current() -> WorkerTelemetry | NoTelemetry:
    """That of the worker which runs in this process."""
    return _current


@contextlib.asynccontextmanager
async def telling(config: WorkerConfig, address: str | None) -> AsyncIterator[WorkerTelemetry | NoTelemetry]:
    """Set telemetry up, and send at the end what is still queued."""
    global _current  # there is one worker a process
    telemetry = _current = worker_telemetry(config, address)
    try:
        yield telemetry
    finally:
        _current = NoTelemetry()
        if isinstance(telemetry, WorkerTelemetry):
            await asyncio.to_thread(telemetry.shutdown, SHUTDOWN_SECONDS)
