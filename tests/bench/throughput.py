"""Requests per second and CPU seconds per 1,000 requests of a 1 KiB JSON echo, process by process."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil

from tests.support.platform.gateways import Platform, Version, running_platform

FUNCTIONS = Path(__file__).parent.parent / "functions"
BODY = json.dumps({"data": "x" * 1010}).encode()
CONCURRENCIES = (1, 16, 64)
SECONDS = 5.0
WARM_UP = 200


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def _load(platform: Platform, version: Version, concurrency: int, seconds: float) -> list[float]:
    url = platform.gateway.url + version.pexec
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def caller(session: aiohttp.ClientSession) -> None:
        while (started := time.perf_counter()) < end:
            async with session.post(url, data=BODY, headers=platform.authorization()) as response:
                body = await response.read()
            assert body == BODY, (response.status, body)
            latencies.append(time.perf_counter() - started)

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(concurrency):
            group.create_task(caller(session))
    return latencies


async def run() -> None:
    """Measure one platform and one worker with 64 slots, each concurrency after a warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_platform(Path(folder)) as platform:
            version = await platform.deployed_version()
            worker = await platform.start_worker(version, FUNCTIONS / "echo.py", "echo", concurrency=64)
            broker = platform.broker.pid
            assert broker is not None
            processes = {"gateway": platform.gateway.child.pid, "worker": worker.pid, "broker": broker}
            await _load(platform, version, 8, 1.0)
            header = "".join(f"{name:>10}" for name in [*processes, "all"])
            print(f"{'callers':>7} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8}  CPU s per 1,000:{header}")
            for concurrency in CONCURRENCIES:
                before = {name: _cpu(pid) for name, pid in processes.items()}
                started = time.perf_counter()
                latencies = await _load(platform, version, concurrency, SECONDS)
                elapsed = time.perf_counter() - started
                count = len(latencies)
                used = {name: (_cpu(pid) - before[name]) * 1000 / count for name, pid in processes.items()}
                p99 = statistics.quantiles(latencies, n=100)[98] * 1000
                shares = "".join(f"{value:>10.3f}" for value in used.values())
                print(
                    f"{concurrency:>7} {count / elapsed:>8.0f} {statistics.median(latencies) * 1000:>8.2f} "
                    f"{p99:>8.2f}  {'':>16}{shares}{sum(used.values()):>10.3f}",
                    flush=True,
                )
