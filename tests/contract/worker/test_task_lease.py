"""A worker with a lease ends its task when the platform is silent, or says that its run is over."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from nvcf_proto.pb import nvct_pb2, nvct_pb2_grpc
from tests.support.waiting import WAIT


@dataclass
class Platform(nvct_pb2_grpc.WorkerServicer):
    """It answers Connect, and then every heartbeat with an error."""

    code: grpc.StatusCode
    heartbeats: int = 0

    async def Connect(self, request: Any, context: Any) -> nvct_pb2.ConnectResponse:  # noqa: N802
        return nvct_pb2.ConnectResponse(connectedRegion="local")

    async def SendHeartbeat(self, request: Any, context: Any) -> nvct_pb2.TaskResponse:  # noqa: N802
        self.heartbeats += 1
        await context.abort(self.code, "no answer today")
        raise AssertionError


@asynccontextmanager
async def serving(platform: Platform) -> AsyncIterator[str]:
    server = grpc.aio.server()
    nvct_pb2_grpc.add_WorkerServicer_to_server(platform, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("code", "lease", "words"),
    [
        (grpc.StatusCode.UNAVAILABLE, "2s", "has not answered for 2 s"),
        (grpc.StatusCode.FAILED_PRECONDITION, "600s", "no answer today"),
    ],
)
async def test_a_task_ends_with_its_lease_or_when_its_run_is_over(
    tmp_path: Path, code: grpc.StatusCode, lease: str, words: str
) -> None:
    file = tmp_path / "task.py"
    file.write_text("import time\ntime.sleep(600)\n")
    async with serving(Platform(code)) as address:  # type: ignore[abstract]
        environment = {
            **os.environ,
            "SHARED_CONFIG_DIR": str(tmp_path),
            "NVCT_FQDN_GRPC": address,
            "NVCT_WORKER_TOKEN": "token",
            "NVCT_TASK_ID": "task",
            "NVCT_TASK_NAME": "training",
            "NVCT_LEASE_DURATION": lease,
            "INSTANCE_ID": "0-sr-order-task",
        }
        command = (sys.executable, "-m", "nvcf_worker", "task", str(file))
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(WAIT):
            _, output = await process.communicate()
    assert process.returncode == 143, output.decode()
    assert words in output.decode()
