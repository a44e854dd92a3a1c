"""The companion of a task in a pod, as a real process against a server of `nvct.Worker` of our own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest

from nvcf_broker.files import replace_file
from nvcf_broker.process import free_port
from nvcf_proto.pb import nvct_pb2, nvct_pb2_grpc
from tests.support.waiting import eventually

TASK = "00000000-0000-4000-8000-0000000000aa"


class Platform(nvct_pb2_grpc.WorkerServicer):
    """Takes all calls; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = "RUNNING"
        self.beats: list[nvct_pb2.HeartbeatRequest] = []
        self.results: list[nvct_pb2.ResultMetadataRequest] = []
        self.refused = False

    async def Connect(self, request: Any, context: Any) -> nvct_pb2.ConnectResponse:  # noqa: N802
        if self.refused:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the task is CANCELED")
        return nvct_pb2.ConnectResponse(connectedRegion="here")

    async def SendHeartbeat(self, request: Any, context: Any) -> nvct_pb2.TaskResponse:  # noqa: N802
        self.beats.append(request)
        return nvct_pb2.TaskResponse(taskId=request.taskId, executionStatus=self.status)

    async def SendResultMetadata(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        async for request in request_iterator:
            self.results.append(request)
        return nvct_pb2.TaskResponse(taskId=TASK, executionStatus=self.status)

    async def GetArtifacts(self, request: Any, context: Any) -> nvct_pb2.ArtifactsResponse:  # noqa: N802
        return nvct_pb2.ArtifactsResponse()

    async def RefreshToken(self, request: Any, context: Any) -> nvct_pb2.TokenResponse:  # noqa: N802
        return nvct_pb2.TokenResponse(token="token")

    async def RequestSecretCredentials(self, request: Any, context: Any) -> Any:  # noqa: N802
        return nvct_pb2.SecretCredentialsResponse()


@pytest.fixture
async def platform() -> AsyncIterator[tuple[Platform, str]]:
    server, service = grpc.aio.server(), Platform()
    nvct_pb2_grpc.add_WorkerServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


class Companion:
    def __init__(self, process: asyncio.subprocess.Process, port: int, progress: Path) -> None:
        self.process, self.port, self.progress = process, port, progress

    async def healthy(self) -> None:
        async def answers() -> bool:
            assert self.process.returncode is None, "the companion has ended"
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://127.0.0.1:{self.port}/v1/health/live") as answer,
                ):
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(answers, "the companion is healthy")

    def report(self, percent: Any, name: str = "", age: float = 0.0, mode: int = 0o644) -> None:
        at = datetime.now(UTC) - timedelta(seconds=age)
        members = {"percentComplete": percent, "name": name, "lastUpdatedAt": at.isoformat()}
        replace_file(self.progress, json.dumps(members).encode(), mode=mode)

    async def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(60):
            return await self.process.wait()


@asynccontextmanager
async def companion(
    address: str, tmp_path: Path, variables: Mapping[str, str] | None = None
) -> AsyncIterator[Companion]:
    port, results = free_port(), tmp_path / "results"
    results.mkdir()
    environment = {
        **os.environ,
        "NVCT_FQDN_GRPC": f"http://{address}",
        "NVCT_WORKER_TOKEN": "token",
        "NVCT_TASK_ID": TASK,
        "INSTANCE_ID": "0-sr-x-task",
        "NVCT_RESULTS_DIR": str(results),
        "NVCT_PROGRESS_FILE_PATH": str(results / "progress"),
        "NVCT_RESULT_HANDLING_STRATEGY": "NONE",
        "SHARED_CONFIG_DIR": str(tmp_path),
        "HEALTH_PORT": str(port),
        **(variables or {}),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nvcf_worker", "task-companion", env=environment
    )
    try:
        yield Companion(process, port, results / "progress")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_last_report_arrives_though_the_pod_ends_at_once(
    platform: tuple[Platform, str], tmp_path: Path
) -> None:
    service, address = platform
    async with companion(address, tmp_path) as found:
        await found.healthy()
        found.report(40, "first")
        await eventually(lambda: len(service.results) == 1, "the first report")
        found.report(100, "last")
        assert await found.end(signal.SIGTERM) == 143
    # One that was being sent is sent again.
    found_names = [(each.percentComplete, each.resultName) for each in service.results]
    assert list(dict.fromkeys(found_names)) == [(40, "first"), (100, "last")]
    # How the task ended is for its agent to say.
    assert {each.status for each in service.beats} <= {nvct_pb2.RUNNING}


async def test_the_maximum_run_time_ends_the_companion(
    platform: tuple[Platform, str], tmp_path: Path
) -> None:
    service, address = platform
    async with companion(address, tmp_path, {"NVCT_MAX_RUN_TIME_DURATION": "PT1S"}) as found:
        assert await found.end() == 124
    assert service.beats[-1].status == nvct_pb2.EXCEEDED_MAX_RUNTIME_DURATION


@pytest.mark.parametrize(
    ("percent", "age", "text"), [(101, 0.0, "expected 1 to 100"), (5, 600.0, "not updated for 300 s")]
)
async def test_a_broken_rule_ends_the_companion(
    platform: tuple[Platform, str], tmp_path: Path, percent: int, age: float, text: str
) -> None:
    service, address = platform
    async with companion(address, tmp_path) as found:
        await found.healthy()
        found.report(percent, age=age)
        assert await found.end() == 1
    assert service.beats[-1].status == nvct_pb2.ERRORED
    assert text in service.beats[-1].errorMessage


async def test_a_task_that_is_over_ends_the_companion(platform: tuple[Platform, str], tmp_path: Path) -> None:
    service, address = platform
    service.status = "CANCELED"
    async with companion(address, tmp_path) as found:
        assert await found.end() == 143
    assert {each.status for each in service.beats} == {nvct_pb2.RUNNING}


async def test_a_platform_that_refuses_the_task_ends_the_companion(
    platform: tuple[Platform, str], tmp_path: Path
) -> None:
    service, address = platform
    service.refused = True
    async with companion(address, tmp_path) as found:
        assert await found.end() == 1


async def test_a_platform_that_is_away_is_waited_for(tmp_path: Path) -> None:
    async with companion(f"127.0.0.1:{free_port()}", tmp_path) as found:
        await found.healthy()
        assert await found.end(signal.SIGTERM) == 143


async def test_settings_that_lack_the_platform_are_named(tmp_path: Path) -> None:
    async with companion("x", tmp_path, {"NVCT_FQDN_GRPC": ""}) as found:
        assert await found.end() == 2
