"""Common parts of the benchmarks of batching, isolation and streams."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.waiting import eventually

FUNCTION = Path(__file__).parent.parent / "functions" / "bench_modes.py"


@dataclass
class Mode:
    """A worker of tests/functions/bench_modes.py, alone on its version."""

    platform: Platform
    version: Version
    worker: Child

    def headers(self) -> dict[str, str]:
        """Headers of pass-through calls."""
        return {**self.platform.authorization(), "function-id": self.version.function_id}

    def url(self, path: str) -> str:
        """Return the URL of one of the function's routes."""
        return self.platform.gateway.url + path

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the worker and its children so far."""
        total = 0.0
        for process in [psutil.Process(self.worker.pid), *psutil.Process(self.worker.pid).children()]:
            times = process.cpu_times()
            total += times.user + times.system
        return total


@contextlib.asynccontextmanager
async def modes(*environments: dict[str, str]) -> AsyncIterator[list[Mode]]:
    """Run one platform with a worker for each environment, so that all are measured in one run."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_platform(Path(folder)) as platform:
            found = []
            for environment in environments:
                version = await platform.deployed_version()
                worker = await platform.start_worker(version, FUNCTION, environment=environment)
                found.append(Mode(platform, version, worker))
            for mode in found:
                await eventually(lambda mode=mode: "pulling" in mode.worker.text(), "workers are up")  # type: ignore[misc]
            yield found


@dataclass
class Rate:
    """Requests per second, median and 99th percentile of latency in ms, worker CPU ms a request."""

    per_second: float
    median: float
    p99: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.per_second:6.0f} req/s, p50 {self.median:6.2f} ms, p99 {self.p99:6.2f} ms"


async def rate(mode: Mode, path: str, callers: int, seconds: float = 4.0, warm_up: float = 1.0) -> Rate:
    """Send each request as soon as the last response is there."""
    body = b'{"data":"' + b"x" * 1000 + b'"}'
    latencies: list[float] = []
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async def caller(session: aiohttp.ClientSession) -> None:
        while (started := time.perf_counter()) < end:
            async with session.post(mode.url(path), data=body, headers=mode.headers()) as response:
                await response.read()
                assert response.status == 200, response.status
            if started >= begin:
                latencies.append((time.perf_counter() - started) * 1000)

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(callers):
            group.create_task(caller(session))
        await asyncio.sleep(warm_up)
        before = mode.cpu_seconds()
    used = mode.cpu_seconds() - before
    count = len(latencies)
    return Rate(
        count / seconds,
        statistics.median(latencies),
        statistics.quantiles(latencies, n=100)[98],
        used * 1000 / count,
    )
