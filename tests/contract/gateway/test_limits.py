"""Bounds that protect the gateway and its functions: queue depth, body size, slow and half-closed callers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from tests.contract.gateway.test_polling import call
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def limited(platform: Platform, **limits: int) -> Version:
    version = await platform.create_version()
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    shown = await platform.call("POST", path, {"deploymentSpecifications": [{}], **limits})
    assert limits.items() <= shown["deployment"].items()
    return version


async def test_queue_depth_of_a_version(platform: Platform) -> None:
    version = await limited(platform, maxQueueDepth=2)
    async with peer_worker(platform, version) as worker:
        calls = [asyncio.create_task(call(platform, "POST", version.pexec, b"")) for _ in range(2)]
        works = [await worker.pull() for _ in calls]
        refused = await call(platform, "POST", version.pexec, b"")
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        await works[0].answer()
        await works[1].answer()
        assert [(await each).status for each in calls] == [200, 200]


async def test_queue_depth_can_change(platform: Platform) -> None:
    version = await limited(platform, maxQueueDepth=1)
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("DELETE", path)
    await platform.call("POST", path, {"deploymentSpecifications": [{}], "maxQueueDepth": 2})
    async with peer_worker(platform, version) as worker:
        calls = [asyncio.create_task(call(platform, "POST", version.pexec, b"")) for _ in range(2)]
        for work in [await worker.pull() for _ in calls]:
            await work.answer()
        assert [(await each).status for each in calls] == [200, 200]


@pytest.mark.parametrize("size", [1001, 200_000])
async def test_announced_body_size(platform: Platform, size: int) -> None:
    version = await limited(platform, maxBodyBytes=1000)
    for path, function_id in ((version.pexec, ""), ("/x", version.function_id)):
        headers = {"function_id": function_id} if function_id else {}
        answer = await call(platform, "POST", path, b"x" * size, gateway=None, **headers)
        assert (answer.status, answer.headers["content-type"]) == (413, "application/problem+json")
    await platform.queue_is_empty(version)


async def test_body_that_grows_too_large(platform: Platform) -> None:
    version = await limited(platform, maxBodyBytes=100_000)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, "POST", version.pexec, endless()))
        work = await worker.pull()
        with contextlib.suppress(Exception):
            await work.get()
        answer = await task
        assert answer.status == 413
    await platform.queue_is_empty(version)


async def test_an_endless_body_without_a_reader_costs_nothing(platform: Platform) -> None:
    """Back-pressure stops the caller; that its connection is reset meanwhile is noticed all the same."""
    version = await platform.deployed_version()
    host, port = platform.gateway.url.removeprefix("http://").split(":")
    async with peer_worker(platform, version) as worker:
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        await worker.client.flush()
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {version.pexec} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {platform.keys['admin']}\r\n"
            f"Content-Length: {2**40}\r\n\r\n".encode()
        )

        async def endless() -> None:
            while True:
                writer.write(b"x" * 100_000)
                await writer.drain()

        sending = asyncio.create_task(endless())
        work = await worker.pull()
        before = platform.gateway.child.resident_mib()
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert platform.gateway.child.resident_mib() - before < 16
        sending.cancel()
        await asyncio.wait({sending})
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()
        assert (await cancels.next_msg(timeout=5)).data.decode() == work.request.requestId
    await platform.queue_is_empty(version)


async def test_slow_heads_and_idle_connections_are_closed(platform: Platform) -> None:
    strict = await platform.start_gateway("--idle-timeout", "1")
    host, port = strict.url.removeprefix("http://").split(":")
    idle = await asyncio.open_connection(host, int(port))
    slow = await asyncio.open_connection(host, int(port))

    async def trickle() -> None:
        for byte in b"POST / HTTP/1.1\r\nX: " + b"y" * 1000:
            slow[1].write(bytes([byte]))
            await slow[1].drain()
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(10):
        assert await idle[0].read() == b""
        with contextlib.suppress(ConnectionError):
            await slow[0].read()
    trickling.cancel()
    await asyncio.wait({trickling})
    for _, writer in (idle, slow):
        writer.close()


async def test_a_half_closed_caller_may_leave_later(platform: Platform) -> None:
    version = await platform.deployed_version()
    host, port = platform.gateway.url.removeprefix("http://").split(":")
    async with peer_worker(platform, version) as worker:
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        await worker.client.flush()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {version.pexec} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {platform.keys['admin']}\r\n"
            "Content-Length: 2\r\n\r\nhi".encode()
        )
        work = await worker.pull()
        writer.write_eof()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        # Its end of the connection is closed already: only what the gateway sends meets nobody.
        writer.close()
        message = await cancels.next_msg(timeout=10)
        assert message.data.decode() == work.request.requestId
    await platform.queue_is_empty(version)


async def test_many_callers_at_once_and_then_none(platform: Platform) -> None:
    """300 callers that all leave: nothing of them stays, in the queue or in memory."""
    version = await platform.deployed_version()
    calls = [asyncio.create_task(call(platform, "POST", version.pexec, b"x" * 50_000)) for _ in range(300)]
    client = await platform.broker_client()
    await client.close()
    await eventually(lambda: all(not each.done() for each in calls), "all wait")
    for each in calls:
        each.cancel()
    await asyncio.wait(calls)
    await platform.queue_is_empty(version)
