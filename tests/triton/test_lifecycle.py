"""`nvcf-worker triton`: from the start of its server to its end, behind a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from yarl import URL

from nvcf_broker.process import RestartPolicy, free_port
from nvcf_worker.errors import ServerEnded
from nvcf_worker.run.sidecar import restarting
from nvcf_worker.run.tritonserver.server import TritonServer
from nvcf_worker.run.tritonserver.settings import choices, started
from tests.support.otlp.receiver import OtlpReceiver
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.waiting import eventually
from tests.triton.functions import serving, start_triton
from tests.triton.server import SHARED_MEMORY, START, copied_models, running_server, with_tritonserver
from tests.triton.test_functions import value

X = {"inputs": [{"name": "X", "shape": [1, 1], "datatype": "FP32", "data": [1.5]}]}


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path) as platform:
        yield platform


async def call(
    platform: Platform, version: Version, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    """Call by pexec, or a path of the function by pass-through: GET, or POST with a body."""
    own = {**platform.authorization(), **headers}
    if path != version.pexec:
        own["function-id"] = version.function_id
    method = "GET" if body is None else "POST"
    url = URL(platform.gateway.url + path, encoded=True)
    async with platform.session.request(method, url, json=body, headers=own) as answer:
        text = await answer.text()
        try:
            return answer.status, json.loads(text or "null")
        except ValueError:
            return answer.status, text


def tritonserver_of(worker: Child) -> psutil.Process:
    """The server that a worker has started."""
    [found] = psutil.Process(worker.pid).children()
    return found


def exit_reason(shared: Path) -> dict[str, Any]:
    return dict(json.loads((shared / "nvcf-worker-exit.json").read_bytes()))


async def test_the_server_dies_under_load(platform: Platform) -> None:
    """Each of 100 requests gets its answer; the worker lives, and nothing is left behind at its end."""
    version = await platform.deployed_version()
    worker = await start_triton(platform, version, models=["batched"])
    await serving(worker)
    path = "/v2/models/batched/infer"

    async def one() -> tuple[int, Any]:
        return await call(platform, version, path, X)

    calls = [asyncio.create_task(one()) for _ in range(50)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    calls += [asyncio.create_task(one()) for _ in range(50)]
    first = tritonserver_of(worker)
    prefix = next(each.split("=")[-1] for each in first.cmdline() if "nvcf-triton-" in each)
    first.kill()
    answers = await asyncio.gather(*calls)
    assert Counter(status for status, _ in answers) == {200: 100}
    assert all(answer["outputs"][0]["data"] == [1.5] for _, answer in answers)
    assert worker.running
    assert "killed by SIGKILL; it is started again" in worker.text()
    worker.kill(signal.SIGTERM)
    assert await worker.wait() == 0
    assert not list(SHARED_MEMORY.glob(f"{prefix}*"))


async def test_a_model_that_cannot_be_loaded_ends_the_instance(platform: Platform, tmp_path: Path) -> None:
    version = await platform.deployed_version()
    worker = await start_triton(
        platform, version, models=["broken", "add_sub"], environment={"SHARED_CONFIG_DIR": str(tmp_path)}
    )
    assert await worker.wait(START) == 4
    reason = exit_reason(tmp_path)
    assert reason["category"] == "not-ready"
    assert "'broken'" in reason["text"]
    assert "the file of weights is missing" in reason["text"]


async def test_a_server_that_does_not_start_ends_the_instance(platform: Platform, tmp_path: Path) -> None:
    version = await platform.deployed_version()
    environment = {"SHARED_CONFIG_DIR": str(tmp_path)}
    worker = await start_triton(platform, version, "--", "--cache-config=none", environment=environment)
    assert await worker.wait(START) == 5
    assert "tritonserver ended by itself: exit code 1\n" in exit_reason(tmp_path)["text"]


async def test_callers_reach_models_and_no_controls(platform: Platform) -> None:
    version = await platform.deployed_version(inferenceUrl="/v2/models/batched/infer")
    worker = await start_triton(platform, version, "--time-limit", "60", models=["batched", "hang"])
    await serving(worker)
    assert await call(platform, version, "/v2/models/batched/ready") == (200, None)
    assert (await call(platform, version, "/v2/models/batched"))[1]["name"] == "batched"
    status, answer = await call(platform, version, version.pexec, X)
    assert status == 200, answer
    assert (status, answer["outputs"][0]["data"]) == (200, [1.5])
    for path in (
        "/v2/repository/models/batched/unload",
        "/v2/%72epository//index",
        "/v2/repository/%2e%2e/index",
        "/v2/systemsharedmemory/region/a/register",
        "/v2/systemsharedmemory/region/%2e%2e%2f%2e%2e%2f%2e%2e/register",
        "/v2/logging",
    ):
        status, answer = await call(platform, version, path, {})
        assert status == 403, path
        assert answer["error"].startswith("Callers may not")
    # A model that hangs meets the request's limit, and the next request is served.
    seconds = {"inputs": [{"name": "SECONDS", "shape": [1], "datatype": "FP32", "data": [30]}]}
    limit = {"NVCF-MAX-EXECUTION-SECONDS": "1"}
    status, _ = await call(platform, version, "/v2/models/hang/infer", seconds, **limit)
    assert status == 504
    assert (await call(platform, version, "/v2/models/batched/infer", X))[0] == 200


async def test_versions_configurations_and_control(platform: Platform, tmp_path: Path) -> None:
    repository = copied_models(tmp_path / "models", "add_sub", "batched")
    os.rename(repository / "add_sub/1", repository / "add_sub/2")
    copied_models(tmp_path / "more", "add_sub")
    os.rename(tmp_path / "more/add_sub/1", repository / "add_sub/1")
    config = {
        "backend": "python",
        "max_batch_size": 2,
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [
            {"name": "Y", "data_type": "TYPE_FP32", "dims": [1]},
            {"name": "SIZE", "data_type": "TYPE_INT32", "dims": [1]},
        ],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
    }
    (tmp_path / "batched.json").write_text(json.dumps(config))
    version = await platform.deployed_version()
    worker = await start_triton(
        platform,
        version,
        "--allow-model-control",
        f"--model-config=batched={tmp_path / 'batched.json'}",
        repository=repository,
        models=["add_sub:1", "batched"],
    )
    await serving(worker)
    assert (await call(platform, version, "/v2/models/add_sub"))[1]["versions"] == ["1"]
    assert (await call(platform, version, "/v2/models/batched/config"))[1]["max_batch_size"] == 2
    assert (await call(platform, version, "/v2/repository/models/add_sub/unload", {}))[0] == 200
    assert (await call(platform, version, "/v2/models/add_sub/ready"))[0] == 400


async def test_a_server_of_somebody_else(platform: Platform, tmp_path: Path) -> None:
    """Its models are loaded, and unloaded at the end; one that was there stays."""
    version = await platform.deployed_version()
    async with running_server(tmp_path / "tritonserver.log", models=["add_sub"]) as server:
        worker = await start_triton(
            platform,
            version,
            f"--url=http://{server.http}",
            f"--grpc-port={server.grpc_port}",
            repository=None,
            models=["add_sub", "batched"],
        )
        await serving(worker)
        assert (await call(platform, version, "/v2/models/batched/infer", X))[0] == 200
        worker.kill(signal.SIGTERM)
        assert await worker.wait() == 0

        async def state(model: str) -> int:
            async with platform.session.get(f"http://{server.http}/v2/models/{model}/ready") as answer:
                return answer.status

        assert (await state("add_sub"), await state("batched")) == (200, 400)


async def test_a_server_of_somebody_else_starts_anew(platform: Platform, tmp_path: Path) -> None:
    """Nobody calls meanwhile, so no connection breaks; its models are loaded again all the same."""
    version = await platform.deployed_version()
    async with running_server(tmp_path / "tritonserver.log") as server:
        worker = await start_triton(
            platform, version, f"--url=http://{server.http}", repository=None, models=["batched"]
        )
        await serving(worker)
        assert (await call(platform, version, "/v2/models/batched/infer", X))[0] == 200
        server.child.process.kill()
        await server.child.wait()
        async with running_server(tmp_path / "again.log", ports=server.ports):

            async def answered() -> bool:
                return (await call(platform, version, "/v2/models/batched/infer", X))[0] == 200

            async def ready() -> bool:
                async with platform.session.get(f"http://{server.http}/v2/models/batched/ready") as answer:
                    return answer.status == 200

            await eventually(ready, "the model is loaded again", START, story=worker.text)
            await eventually(answered, "it answers", START, story=worker.text)
            assert worker.running


async def test_slots_follow_tritons_queue(platform: Platform) -> None:
    """Requests that wait in Triton make the slots fewer; its statistics are metrics of the worker."""
    version = await platform.deployed_version()
    port = free_port()
    environment = {"NVCF_METRICS_ADDRESS": f"127.0.0.1:{port}"}
    worker = await start_triton(platform, version, models=["hang"], environment=environment)
    await serving(worker)

    async def metric(name: str) -> float:
        async with platform.session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            return value(await answer.text(), name)

    assert await metric("nvcf_worker_slots") == 64
    seconds = {"inputs": [{"name": "SECONDS", "shape": [1], "datatype": "FP32", "data": [0.05]}]}
    calls = [
        asyncio.create_task(call(platform, version, "/v2/models/hang/infer", seconds)) for _ in range(64)
    ]

    async def fewer() -> bool:
        return await metric("nvcf_worker_slots") < 64

    await eventually(fewer, "the worker takes fewer", story=worker.text)
    assert Counter([status for status, _ in await asyncio.gather(*calls)]) == {200: 64}

    async def counted() -> bool:
        return await metric("nv_inference_count_total") == 64

    await eventually(counted, "they are counted", story=worker.text)


async def test_time_in_tritons_queue_and_in_the_model_are_spans_of_the_request(platform: Platform) -> None:
    """Statistics are sums over all requests; Triton's trace mode tells the times of each one."""
    version = await platform.deployed_version()
    sampled, other = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
    seconds = {"inputs": [{"name": "SECONDS", "shape": [1, 1], "datatype": "FP32", "data": [0.2]}]}
    path = "/v2/models/patient/infer"
    with OtlpReceiver() as backend:
        worker = await start_triton(platform, version, models=["patient"], environment=backend.environment())
        await serving(worker)

        async def traced(trace: str, flags: str) -> int:
            parent = f"00-{trace}-00f067aa0ba902b7-{flags}"
            return (await call(platform, version, path, seconds, traceparent=parent))[0]

        assert await traced(other, "00") == 200
        assert set(await asyncio.gather(traced(sampled, "01"), traced(sampled, "01"))) == {200}

        def recorded() -> bool:
            return len(backend.spans("triton compute", trace=sampled)) == 2

        await eventually(recorded, "both executions are recorded", story=worker.text)
        handlers = {each.span_id for each in backend.spans("handler", trace=sampled)}
        for name in ("triton queue", "triton compute"):
            assert {each.parent_id for each in backend.spans(name, trace=sampled)} == handlers
        # The model takes one request at a time, so one waited while the other ran.
        assert max(each.seconds for each in backend.spans("triton queue", trace=sampled)) > 0.05
        assert min(each.seconds for each in backend.spans("triton compute", trace=sampled)) >= 0.2
        assert not backend.spans("triton compute", trace=other)


class Admission:
    """Stands for a worker: notes whether it takes requests."""

    def __init__(self) -> None:
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


async def test_a_server_that_ends_again_and_again_ends_the_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", with_tritonserver()["PATH"])
    monkeypatch.setattr(restarting, "RESTARTS", RestartPolicy(0.01, 1.0, 0.01, stable_after=3600.0))
    repository = copied_models(tmp_path / "models", "add_sub")
    settings = started([str(repository)], choices(["add_sub"], []), [], control=False)
    server, admission = TritonServer(settings, START, allow_model_control=False), Admission()
    ends: list[ServerEnded] = []
    ended = server._ended

    async def noted(code: int) -> ServerEnded:
        ends.append(await ended(code))
        return ends[-1]

    monkeypatch.setattr(server, "_ended", noted)
    try:
        await server.start()
        watching = asyncio.create_task(server.watch(admission))
        shutil.rmtree(repository)
        assert server._process is not None
        server._process.kill()
        with pytest.raises(ServerEnded):
            await asyncio.wait_for(watching, START)
    finally:
        await server.stop()
    assert admission.paused
    assert "killed by SIGKILL" in str(ends[0])
    assert len(ends) == 1 + restarting.MOST_RESTARTS
