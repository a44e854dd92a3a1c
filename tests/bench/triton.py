"""Models of 1 and 10 ms with dynamic batching: through queue and gateway, and called directly by gRPC."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from tests.bench.throughput import _cpu
from tests.support.platform.gateways import running_platform
from tests.support.platform.processes import Child
from tests.support.waiting import eventually
from tests.triton.server import running_server

FUNCTION = Path(__file__).parent.parent / "functions" / "triton_model.py"
MODELS = {"wait1": 0.001, "wait10": 0.01}
CALLERS = (1, 16, 64)
SECONDS = 4.0
ROUNDS = 3
WARM_UP = 1.0

_CONFIG = """
backend: "python"
max_batch_size: 16
dynamic_batching {}
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
_MODEL = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(%r)
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)]) for x in inputs]
"""

Call = Callable[[], Awaitable[None]]


async def load(call: Call, callers: int, seconds: float) -> list[float]:
    """Return the latencies of calls that follow each other at once, without those of the warm-up."""
    latencies: list[float] = []
    begin = time.perf_counter() + WARM_UP
    end = begin + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await call()
            if started >= begin:
                latencies.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return latencies


def direct(client: InferenceServerClient, model: str) -> Call:
    """Return a call of the server itself, with its own client."""

    async def call() -> None:
        given = InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
        result = await client.infer(model, [given])
        assert result.as_numpy("y")[0, 3] == 8

    return call


def through(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> Call:
    """Return a call of the function."""

    async def call() -> None:
        async with session.post(url, json={"x": [1, 2, 3, 4]}, headers=headers) as response:
            body = await response.json()
        assert body == {"y": [2, 4, 6, 8]}, body

    return call


async def _up(worker: Child) -> None:
    await eventually(lambda: "pulling" in worker.text(), "the worker is up", story=worker.text)


def _models(folder: Path) -> Path:
    for name, seconds in MODELS.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(_CONFIG)
        (folder / name / "1/model.py").write_text(_MODEL % seconds)
    return folder


async def run() -> None:
    """Measure both ways in turn, so that other load of the machine meets both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = _models(folder / "models")
        async with (
            running_server(folder / "triton.log", repository=repository, models=tuple(MODELS)) as server,
            running_platform(folder) as platform,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            client = InferenceServerClient(server.grpc)
            print(
                f"{'model':>7} {'callers':>7} {'direct/s':>9} {'ours/s':>8} {'ratio':>6} "
                f"{'direct p50':>11} {'ours p50':>9} {'added ms':>9} {'worker CPU ms':>14}"
            )
            for model in MODELS:
                version = await platform.deployed_version()
                environment = {"TRITON_URL": f"grpc://{server.grpc}", "TRITON_MODEL": model}
                worker = await platform.start_worker(version, FUNCTION, environment=environment)
                await _up(worker)
                url, headers = platform.gateway.url + version.pexec, platform.authorization()
                ways = {"direct": direct(client, model), "ours": through(session, url, headers)}
                for callers in CALLERS:
                    found: dict[str, list[float]] = {way: [] for way in ways}
                    cpu = 0.0
                    for _ in range(ROUNDS):
                        for way, call in ways.items():
                            before = _cpu(worker.pid)
                            found[way] += await load(call, callers, SECONDS / ROUNDS)
                            cpu += _cpu(worker.pid) - before if way == "ours" else 0.0
                    _print(model, callers, found, cpu)
            await client.close()


def _print(model: str, callers: int, found: dict[str, list[float]], cpu: float) -> None:
    rates = {way: len(latencies) / SECONDS for way, latencies in found.items()}
    medians = {way: statistics.median(latencies) * 1000 for way, latencies in found.items()}
    added = medians["ours"] - medians["direct"]
    # The CPU time includes the warm-ups.
    share = SECONDS / (SECONDS + ROUNDS * WARM_UP)
    print(
        f"{model:>7} {callers:>7} {rates['direct']:>9.0f} {rates['ours']:>8.0f} "
        f"{rates['ours'] / rates['direct']:>6.2f} {medians['direct']:>11.2f} {medians['ours']:>9.2f} "
        f"{added:>9.2f} {cpu * share * 1000 / len(found['ours']):>14.2f}",
        flush=True,
    )
