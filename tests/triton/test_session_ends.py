"""A gRPC session whose tritonserver dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from tests.support.platform.gateways import running_platform
from tests.support.waiting import eventually
from tests.triton.functions import serving, start_triton
from tests.triton.server import START
from tests.triton.test_clients import Headers, numbers

LONG = 120.0


async def test_the_stream_ends_with_an_error_and_the_same_client_goes_on(tmp_path: Path) -> None:
    async with running_platform(tmp_path, flags=("--sessions", "127.0.0.1:0")) as platform:
        version = await platform.deployed_version()
        worker = await start_triton(platform, version, models=["repeat"], concurrency=8)
        await serving(worker)
        headers = {
            "authorization": platform.authorization()["Authorization"],
            "function-id": version.function_id,
        }
        async with grpc_aio.InferenceServerClient(platform.gateway.sessions) as client:
            client.register_plugin(Headers(headers))

            async def stream(count: int, delay: float) -> AsyncIterator[Any]:
                async def requests() -> AsyncIterator[dict[str, Any]]:
                    yield {"model_name": "repeat", "inputs": numbers(count, delay)}
                    await asyncio.sleep(LONG)

                async for result, error in client.stream_infer(requests()):
                    if error is not None:
                        raise error
                    yield int(result.as_numpy("OUT")[0])

            broken: grpc.aio.AioRpcError | None = None
            try:
                async with asyncio.timeout(LONG):
                    async for number in stream(1000, 0.05):
                        if number == 2:
                            [server] = psutil.Process(worker.pid).children()
                            server.kill()
            except grpc.aio.AioRpcError as error:
                broken = error
            assert broken is not None, "a stream that has lost its server must not end as if it were complete"
            assert broken.code() is grpc.StatusCode.UNAVAILABLE

            async def again() -> bool:
                try:
                    async with asyncio.timeout(LONG):
                        return bool(await anext(aiter(stream(1, 0.0))) == 0)
                except (grpc.aio.AioRpcError, InferenceServerException):
                    return False

            await eventually(again, "the next stream of the same client is served", START, story=worker.text)
            assert worker.running
