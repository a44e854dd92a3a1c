"""NVIDIA's worker in a session: CONNECT as Go writes it, reconnect, purge; and two regions.

See protocol.md, section 7.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from tests.contract.gateway.test_nvcf_worker import call, echo
from tests.functions.grpc_service import start_service
from tests.support.http.session_callers import grpc_channel, routing
from tests.support.peers.nvcf_attach import Reply, Seen
from tests.support.peers.nvcf_session import SessionHalf
from tests.support.peers.nvcf_worker import nvcf_worker
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, eventually, messages_in, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLAGS = ("--wide-inbox", "--sessions", "127.0.0.1:0", "--region", "here", "--regions", "here,there")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """One gateway with a sessions port that knows of two regions."""
    directory: Path = tmp_path_factory.mktemp("nvcf-sessions")
    async with running_platform(directory, flags=FLAGS) as running:
        yield running


@contextlib.asynccontextmanager
async def serving(platform: Platform) -> AsyncIterator[tuple[Version, SessionHalf]]:
    """A worker of one slot in front of a real gRPC server."""
    version = await platform.deployed_version()
    _, server, port = await start_service()
    try:
        async with nvcf_worker(platform, version, echo) as worker:
            yield version, SessionHalf(worker, port)
            assert worker.errors == []
    finally:
        await server.stop(0)


async def records(platform: Platform) -> int:
    client = await platform.broker_client()
    try:
        return await messages_in(client, "stateful_session_lookup_here")
    finally:
        await client.close()


async def test_a_session_from_its_request_to_its_purge(platform: Platform) -> None:
    async with serving(platform) as (version, half):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            assert await channel.call("Echo", b"one") == b"one"
            parts = [part async for part in channel.down("Count", b"20 50000")]
            assert len(parts) == 20
        assert (half.dialled, half.registrations) == ([200], 2), "published again, it takes its own place"
        # The caller left in order: the worker is told, ends the record and is free again.
        await eventually(lambda: len(half.purges) == 1, "the worker has ended its record")
        assert half.purges[0].get("success") is True
        await eventually(lambda: half.worker.slots == 1, "its slot is free")
        assert await records(platform) == 0
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            assert await channel.call("Echo", b"two") == b"two"


async def test_a_broken_tunnel_is_connected_again(platform: Platform) -> None:
    async with serving(platform) as (version, half):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await channel.call("Echo", b"1")
            half.cut()
            answer = b""
            while answer != b"2":
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await channel.call("Echo", b"2")
        assert half.dialled == [200, 200]


async def test_its_regions(platform: Platform) -> None:
    """The other region's queue is missing until the worker asks for it; with one slot it gives work back."""
    running, most = 0, 0

    async def one_at_a_time(seen: Seen) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Reply(200, {}, seen.headers["nvcf-invocation-region"].encode())

    other = await platform.start_gateway("--wide-inbox", "--region", "there", "--regions", "here,there")
    version = await platform.deployed_version()
    async with nvcf_worker(platform, version, one_at_a_time) as worker:
        assert (worker.regions, worker.provisioned) == (["here", "there"], ["there"])

        async def through(url: str) -> bytes:
            async with platform.session.post(
                url + version.pexec, headers=platform.authorization()
            ) as response:
                assert response.status == 200
                return await response.read()

        urls = [platform.gateway.url, other.url] * 20
        answers = await asyncio.gather(*(through(url) for url in urls))
        assert answers == [b"here", b"there"] * 20
        assert (most, worker.failures, worker.errors) == (1, [], [])
        assert (await call(platform, version.pexec))[0].status == 200


async def test_a_request_returned_again_and_again_is_served_in_the_end(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, version.pexec))
        for _ in range(12):
            await (await worker.pull()).message.nak()
        await (await worker.pull()).answer(b"after all")
        response, body = await task
        assert (response.status, body) == (200, b"after all")
