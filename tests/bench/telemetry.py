"""Cost of full telemetry: echo throughput and CPU with it, as ratios to OTEL_SDK_DISABLED=true in one run.

Two platforms (broker, gateway, worker) take turns, so that whatever else the machine does meets both alike.
The backend is a process that takes OTLP in and throws it away, as one on another machine would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from nvcf_broker.process import free_port
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

FUNCTIONS = Path(__file__).parent.parent / "functions"
BODY = json.dumps({"data": "x" * 1010}).encode()
CALLERS = 32
ROUNDS = int(os.environ.get("ROUNDS", "12"))
SECONDS = float(os.environ.get("SECONDS", "2"))
METERING = bool(os.environ.get("METERING"))
"""Whether metering events are written too. They are not telemetry, and are off by default."""
ONLY = os.environ.get("ONLY", "")
"""`worker` or `gateway`: telemetry of that process only, to find where the cost is."""
TARGET = 0.95


@dataclass
class Side:
    """One platform and its measurements."""

    name: str
    platform: Platform
    version: Version
    processes: dict[str, int]
    rates: list[float] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"gateway": [], "worker": []})

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds of gateway and worker so far."""
        times = {name: psutil.Process(pid).cpu_times() for name, pid in self.processes.items()}
        return {name: each.user + each.system for name, each in times.items()}

    @property
    def costs(self) -> list[float]:
        """Return the CPU milliseconds of both for each request, round by round."""
        return [sum(each) for each in zip(*self.cpu.values(), strict=True)]


@contextlib.asynccontextmanager
async def _sink() -> AsyncIterator[int]:
    """Run a process that responds to every POST with an empty 200. Yields its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.otlp_sink", str(port))
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.asynccontextmanager
async def _side(name: str, variables: Mapping[str, str], *flags: str) -> AsyncIterator[Side]:
    outer = variables if ONLY != "worker" else {"OTEL_SDK_DISABLED": "true"}
    with tempfile.TemporaryDirectory() as folder, _environment(outer):
        async with running_platform(Path(folder), flags=flags) as platform:
            version = await platform.deployed_version()
            if ONLY == "gateway":
                variables = {"OTEL_SDK_DISABLED": "true"}
            environment = {**variables, "NVCF_METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}
            if METERING and "OTEL_SDK_DISABLED" not in variables:
                environment["NVCF_METERING"] = str(Path(folder) / "metering.jsonl")
            worker = await platform.start_worker(
                version, FUNCTIONS / "echo.py", "echo", concurrency=64, environment=environment
            )
            await eventually(lambda: "pulling" in worker.text(), "the worker is up")
            yield Side(name, platform, version, {"gateway": platform.gateway.child.pid, "worker": worker.pid})


async def _round(side: Side, seconds: float) -> tuple[float, dict[str, float]]:
    """Requests per second, and CPU milliseconds of gateway and worker a request."""
    url, headers = side.platform.gateway.url + side.version.pexec, side.platform.authorization()
    count = 0
    before, started = side.cpu_seconds(), time.perf_counter()
    end = started + seconds

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal count
        while time.perf_counter() < end:
            async with session.post(url, data=BODY, headers=headers) as response:
                assert await response.read() == BODY
            count += 1

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(CALLERS):
            group.create_task(caller(session))
    elapsed = time.perf_counter() - started
    used = {name: (spent - before[name]) * 1000 / count for name, spent in side.cpu_seconds().items()}
    return count / elapsed, used


async def run() -> None:
    """Measure both sides alternately. Print the ratios of each pair of rounds, and their median."""
    async with _sink() as port:
        ratio = os.environ.get("OTEL_TRACES_SAMPLER_ARG")
        full = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            **({"OTEL_TRACES_SAMPLER_ARG": ratio} if ratio else {}),
        }
        async with (
            _side("full telemetry", full, *_gateway_flags()) as instrumented,
            _side("OTEL_SDK_DISABLED", {"OTEL_SDK_DISABLED": "true"}) as silent,
        ):
            for side in (instrumented, silent):
                await _round(side, 2.0)
            for number in range(ROUNDS):
                # The first of a pair has the machine as the last one left it: they take turns in that, too.
                for side in (instrumented, silent) if number % 2 else (silent, instrumented):
                    rate, cpu = await _round(side, SECONDS)
                    side.rates.append(rate)
                    for name, spent in cpu.items():
                        side.cpu[name].append(spent)
    _report(instrumented, silent)


def _gateway_flags() -> tuple[str, ...]:
    return ("--metrics", "127.0.0.1:0")


def _report(instrumented: Side, silent: Side) -> None:
    for side in (instrumented, silent):
        print(
            f"{side.name:20} {statistics.median(side.rates):7.0f} req/s   "
            f"CPU ms a request: gateway {statistics.median(side.cpu['gateway']):.3f}, "
            f"worker {statistics.median(side.cpu['worker']):.3f}"
        )
    rates = sorted(one / other for one, other in zip(instrumented.rates, silent.rates, strict=True))
    costs = sorted(other / one for one, other in zip(instrumented.costs, silent.costs, strict=True))
    print(f"throughput ratio {_spread(rates)}   target >= {TARGET}")
    print(f"CPU ratio        {_spread(costs)}   (without / with; what throughput is bounded by)")


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} (of {len(ratios)} pairs: {ratios[0]:.3f} to {ratios[-1]:.3f})"
