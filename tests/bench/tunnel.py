"""Sessions against a direct connection, as ratios in one run: throughput, small calls, WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
from websockets.asyncio.client import ClientConnection, connect

from tests.support.http.session_callers import Channel, grpc_channel, routing
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import child_process

FUNCTIONS = Path(__file__).parent.parent / "functions"
MIB = 1024 * 1024
MESSAGES = 192
CALLS = 600
ROUNDS = 3


async def _download(channel: Channel) -> float:
    """Return the MiB per second of one server stream."""
    started = time.perf_counter()
    size = 0
    async for part in channel.down("Count", b"%d %d" % (MESSAGES, MIB)):
        size += len(part)
    assert size == MESSAGES * MIB
    return MESSAGES / (time.perf_counter() - started)


async def _upload(channel: Channel) -> float:
    """Return the MiB per second of one client stream."""
    started = time.perf_counter()
    block = bytes(MIB)
    assert await channel.up("Total", [block] * MESSAGES) == str(MESSAGES * MIB).encode()
    return MESSAGES / (time.perf_counter() - started)


async def _calls(channel: Channel) -> float:
    """Return the small unary calls per second, 32 at once."""
    started = time.perf_counter()

    async def caller() -> None:
        for _ in range(CALLS // 32):
            await channel.call("Echo", b"x" * 100)

    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(caller())
    return (CALLS // 32 * 32) / (time.perf_counter() - started)


async def _latency(channel: Channel) -> float:
    """Return the small calls per second, one after the other (the inverse of their median time)."""
    times = []
    for _ in range(200):
        started = time.perf_counter()
        await channel.call("Echo", b"x" * 100)
        times.append(time.perf_counter() - started)
    return 1 / statistics.median(times)


async def _websocket(connection: ClientConnection) -> float:
    """Return the MiB per second echoed in messages of 1 MiB, one after the other."""
    block = bytes(MIB)
    started = time.perf_counter()
    for _ in range(64):
        await connection.send(block)
        assert len(await connection.recv()) == MIB
    return 64 / (time.perf_counter() - started)


GRPC = {
    "gRPC download, MiB/s": _download,
    "gRPC upload, MiB/s": _upload,
    "gRPC calls/s, 32 at once": _calls,
    "gRPC calls/s, one by one": _latency,
}


def _tell(name: str, direct: list[float], tunnel: list[float]) -> None:
    near, far = statistics.median(direct), statistics.median(tunnel)
    print(f"{name:<28} direct {near:>8.0f}  tunnel {far:>8.0f}  ratio {far / near:.2f}", flush=True)


async def _grpc(platform: Platform, version: Version, port: int) -> None:
    async with (
        grpc_channel(platform.gateway, routing(platform, version)) as far,
        grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)]
        ) as plain,
    ):
        near = Channel(plain, ())
        for channel in (near, far):
            await channel.call("Echo", b"warm")
        for name, measure in GRPC.items():
            direct, tunnel = [], []
            for _ in range(ROUNDS):
                direct.append(await measure(near))
                tunnel.append(await measure(far))
            _tell(name, direct, tunnel)


@contextlib.asynccontextmanager
async def _function(platform: Platform, module: str) -> AsyncIterator[tuple[Version, int]]:
    command = [sys.executable, "-m", f"tests.functions.{module}", "0"]
    async with child_process(command, log=platform.directory / f"{module}.log") as function:
        port = int(await function.first_line())
        version = await platform.deployed_version()
        worker = await platform.start_worker(
            version, FUNCTIONS / "echo.py", "echo", environment={"INFERENCE_PORT": str(port)}
        )
        yield version, port
        worker.kill()


async def run() -> None:
    """Measure one platform whose function, worker, gateway and caller are separate processes."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_platform(Path(folder), flags=("--sessions", "127.0.0.1:0")) as platform:
            async with _function(platform, "grpc_service") as (version, port):
                await _grpc(platform, version, port)
            async with _function(platform, "websocket_service") as (version, port):
                headers = dict(routing(platform, version))
                async with (
                    connect(f"ws://127.0.0.1:{port}/", max_size=None, compression=None) as near,
                    connect(
                        f"ws://{platform.gateway.sessions}/",
                        max_size=None,
                        compression=None,
                        additional_headers=headers,
                    ) as far,
                ):
                    direct, tunnel = [], []
                    for _ in range(ROUNDS):
                        direct.append(await _websocket(near))
                        tunnel.append(await _websocket(far))
                    _tell("WebSocket echo, MiB/s", direct, tunnel)
