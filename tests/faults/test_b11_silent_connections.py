"""B11: connections that say nothing, and gRPC calls without a token, take no descriptors from others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from tests.support.peers.worker import peer_worker
from tests.support.platform import gateways
from tests.support.platform.gateways import Platform, running_platform
from tests.support.platform.processes import python

pytestmark = pytest.mark.asyncio(loop_scope="module")
DESCRIPTORS = 700


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and a gateway with few descriptors."""
    directory: Path = tmp_path_factory.mktemp("silent")
    few = f'ulimit -n {DESCRIPTORS}; exec "$@"'
    patch = pytest.MonkeyPatch()
    patch.setattr(gateways, "python", lambda *words: ["bash", "-c", few, "gateway", *python(*words)])
    try:
        async with running_platform(directory, flags=("--sessions", "127.0.0.1:0")) as running:
            yield running
    finally:
        patch.undo()


async def opened(address: str, count: int, first: bytes) -> list[asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    writers = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(first)
            writers.append(writer)
    return writers


@pytest.mark.parametrize(
    "first", [b"", b"GET /health HTTP/1.1\r\nHost: a\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"]
)
async def test_b11_idle_http_connections_make_room(platform: Platform, first: bytes) -> None:
    """Silent ones, half a head, and kept-alive ones; a caller in the middle of its call stays."""
    version = await platform.deployed_version()
    http, url = platform.gateway.url.removeprefix("http://"), platform.gateway.url
    async with peer_worker(platform, version) as worker:

        async def call() -> int:
            async with platform.session.post(
                url + version.pexec, data=b"x", headers=platform.authorization()
            ) as response:
                return response.status

        task = asyncio.create_task(call())
        work = await worker.pull()
        held = await opened(http, DESCRIPTORS * 2, first)
        for _ in range(20):
            async with platform.session.get(url + "/health") as response:
                assert response.status == 200
        await work.answer()
        assert await task == 200
    for writer in held:
        writer.transport.abort()


async def test_b11_silent_session_connections_make_room(platform: Platform) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    for first in (b"", preface):
        held = await opened(platform.gateway.sessions, DESCRIPTORS * 2, first)
        for _ in range(5):
            _, writer = await asyncio.open_connection(*platform.gateway.sessions.rsplit(":", 1))
            writer.close()
        async with grpc.aio.insecure_channel(platform.gateway.sessions) as channel:
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/x/y")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(b"", timeout=30)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, "it was served"
        for writer in held:
            writer.transport.abort()


async def test_b11_a_head_must_come_in_time(platform: Platform) -> None:
    host, _, port = platform.gateway.url.removeprefix("http://").rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
    silent[1][1].write(b"GET / HT")
    began = time.monotonic()
    for reader, _ in silent:
        assert await asyncio.wait_for(reader.read(), 60) == b""
    assert time.monotonic() - began < 60, "the idle time of kept connections is 330 s"


@pytest.mark.parametrize("token", ["", "Bearer x", "Bearer nvcf-000000000000-" + "a" * 43, "Bearer a.b.c"])
async def test_b11_grpc_calls_without_a_token_end_at_once(platform: Platform, token: str) -> None:
    """No message is sent: only the metadata can refuse them."""
    metadata = (("authorization", token),) if token else ()
    async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
        for name in ("RefreshAssetDownloadCredentials", "ConnectOnce", "StreamArtifacts", "nothing"):
            method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
                f"/nvcf.Worker/{name}"
            )
            calls = [method(metadata=metadata, timeout=40) for _ in range(50)]
            for call in calls:
                assert await asyncio.wait_for(call.code(), 20) is grpc.StatusCode.UNAUTHENTICATED
