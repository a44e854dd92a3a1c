"""The telemetry backend crashes, hangs, is slow or sends garbage under load: no request changes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.support.otlp.receiver import Mode, OtlpReceiver
from tests.support.platform.gateways import Platform, Version, eventually, running_platform
from tests.support.platform.processes import Child

ECHO = Path(__file__).parents[1] / "functions" / "echo.py"
CALLERS = 8
# The number of responses during each kind of failure.
ANSWERS = 60
BROKEN = [mode for mode in Mode if mode not in (Mode.OK, Mode.PARTIAL)]
PROTOCOLS = ("grpc", "http/protobuf")
# Small queues, so that they overflow within a test.
QUEUES = {
    "OTEL_TRACES_SAMPLER": "always_on",
    "OTEL_BSP_MAX_QUEUE_SIZE": "64",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32",
    "OTEL_BLRP_MAX_QUEUE_SIZE": "64",
}
# The time to exit, including the last export to a backend that does not respond.
END_SECONDS = 30.0


@pytest.fixture
def backend() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(delay=0.5, retry_after=1.0) as receiver:
        yield receiver


@dataclass
class Load:
    """Callers that never stop. `outcomes` has each status and whether the body was right."""

    url: str
    headers: dict[str, str]
    session: aiohttp.ClientSession
    count: int = 0
    outcomes: set[tuple[int, bool, frozenset[str]]] = field(default_factory=set)
    slowest: float = 0.0

    async def call(self, number: int) -> None:
        """Make one request after the other."""
        while True:
            body = f"{number}-{self.count}".encode()
            began = time.monotonic()
            async with self.session.post(self.url, data=body, headers=self.headers) as response:
                answer = await response.read()
                names = frozenset(name.lower() for name in response.headers)
                self.outcomes.add((response.status, answer == body, names))
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.count += 1


@contextlib.asynccontextmanager
async def load(platform: Platform, version: Version) -> AsyncIterator[Load]:
    """Run callers of a version for the length of a context. Raises the error of a caller."""
    made = Load(platform.gateway.url + version.pexec, platform.authorization(), platform.session)
    tasks = [asyncio.create_task(made.call(number)) for number in range(CALLERS)]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [each for each in ended if not isinstance(each, asyncio.CancelledError)]
    assert failed == []


async def answers(made: Load, count: int = ANSWERS) -> None:
    """Wait for `count` more responses."""
    wanted = made.count + count
    await eventually(lambda: made.count >= wanted, f"{count} more answers", 60)


@contextlib.asynccontextmanager
async def watched_platform(
    directory: Path, backend: OtlpReceiver, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Platform, Version, Child]]:
    """A gateway and a worker that send all their telemetry to `backend`."""
    variables = {**backend.environment(protocol), **QUEUES}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with running_platform(directory) as platform:
        version = await platform.deployed_version()
        worker = await platform.start_worker(
            version, ECHO, "echo", concurrency=CALLERS, environment=dict(variables)
        )
        yield platform, version, worker


async def met(backend: OtlpReceiver, mode: Mode) -> None:
    """Wait until somebody has seen how the backend behaves now."""
    attempts, connections = backend.attempts, backend.connections
    if mode in (Mode.HANG, Mode.NOISE):
        await eventually(lambda: backend.connections > connections + 1, f"two connections in {mode}", 60)
    elif mode is not Mode.DEAD:
        await eventually(lambda: backend.attempts > attempts + 1, f"two requests in {mode}", 60)


def who_dropped(backend: OtlpReceiver) -> set[str]:
    """Return the services that report dropped spans."""
    points = backend.series("nvcf.telemetry.dropped", nvcf_signal="traces")
    return {str(point.resource["service.name"]) for point in points if point.value > 0}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_no_request_changes_whatever_the_backend_does(
    tmp_path: Path, backend: OtlpReceiver, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched_platform(tmp_path, backend, protocol, monkeypatch) as (platform, version, worker):
        async with load(platform, version) as made:
            await answers(made)
            await eventually(lambda: bool(backend.spans("process")), "the worker's spans arrive", 30)
            as_always = made.outcomes.copy()
            assert {(status, right) for status, right, _ in as_always} == {(200, True)}
            for mode in BROKEN:
                backend.mode = mode
                await met(backend, mode)
                await answers(made, 500)
                assert made.outcomes == as_always, mode
            backend.mode = Mode.OK
            backend.clear()
            await answers(made)
            await eventually(lambda: bool(backend.spans("process")), "spans arrive again", 60)
            await eventually(lambda: len(who_dropped(backend)) == 2, "both report dropped spans")
        assert made.outcomes == as_always
        assert worker.running
        assert platform.gateway.child.running


@pytest.mark.parametrize("mode", [Mode.DEAD, Mode.HANG, Mode.STALL])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_exit_does_not_wait_for_a_backend_that_does_not_respond(
    tmp_path: Path, backend: OtlpReceiver, protocol: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched_platform(tmp_path, backend, protocol, monkeypatch) as (platform, version, worker):
        async with load(platform, version) as made:
            await answers(made, 20)
            backend.mode = mode
            await answers(made, 20)
        children = (worker, platform.gateway.child)
        for child in children:
            child.kill(signal.SIGTERM)
        for child in children:
            assert await child.wait(END_SECONDS) in (0, -signal.SIGTERM), child.text()[-2000:]


async def test_an_unreachable_backend_is_logged_once(
    tmp_path: Path, backend: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.mode = Mode.DEAD
    async with watched_platform(tmp_path, backend, "grpc", monkeypatch) as (platform, version, worker):
        async with load(platform, version) as made:
            await answers(made)
            await eventually(lambda: "are dropped" in worker.text(), "the worker says it", 30)
            await answers(made)
        lines = [line for line in worker.text().splitlines() if "cannot be sent" in line]
        kinds = [
            kind for kind in ("traces", "metrics", "logs") if any(f"{kind} cannot" in line for line in lines)
        ]
        assert kinds
        assert all(sum(f"{kind} cannot" in line for line in lines) == 1 for kind in kinds), lines
