"""Bodies and responses by request-attach (protocol.md, section 3), against a hand-driven peer worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from nvcf_proto.ids import new_id
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform
from tests.support.platform.pexec import pulled

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_large_body_is_fetched_by_attach(platform: Platform) -> None:
    version = await platform.deployed_version()
    data = bytes(range(256)) * 4096
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec, data=data)
        prefix = work.request.requestBody
        assert 0 < len(prefix) <= 32 * 1024
        assert data.startswith(prefix)
        assert work.connection.HasField("requestAuthorizationToken")
        status, kind, rest = await work.get()
        assert (status, kind) == (200, "application/octet-stream")
        assert prefix + rest == data
        assert (await work.get())[0] == 401, "the token is used"
        await work.answer()
        assert (await task).status == 200


async def test_second_delivery_gets_the_body_again(platform: Platform) -> None:
    version = await platform.deployed_version()
    data = b"0123456789abcdef" * 60_000
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec, data=data)
        first = await work.get(attempt=1)
        assert (await work.get(attempt=1))[0] == 401
        assert await work.get(attempt=2) == first
        assert work.request.requestBody + first[2] == data
        await work.answer()
        assert (await task).status == 200


async def test_chunked_upload_is_streamed(platform: Platform) -> None:
    version = await platform.deployed_version()
    proceed = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b"a" * 40_000
        await proceed.wait()
        yield b"b" * 40_000

    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec, data=upload())
        assert work.headers.get("content-length") is None
        body = asyncio.create_task(work.get())
        proceed.set()
        assert work.request.requestBody + (await body)[2] == b"a" * 40_000 + b"b" * 40_000
        await work.answer()
        assert (await task).status == 200


async def test_full_request_by_attach(platform: Platform) -> None:
    version = await platform.deployed_version(inferenceUrl="/full")
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(
            platform, worker, version.pexec, nvcf_feature_enable_only_stream_full_request="true", X_One="1"
        )
        assert work.request.requestMethod == ""
        assert work.request.requestPath == ""
        assert not work.request.requestHeaders
        assert not work.request.HasField("requestBody")
        status, kind, whole = await work.get(accept="application/octet-stream+h1")
        head, _, body = whole.partition(b"\r\n\r\n")
        assert (status, kind, body) == (200, "application/octet-stream+h1", b"hello")
        assert head.startswith(b"POST /full HTTP/1.1\r\n")
        assert b"X-One: 1" in head
        await work.answer()
        assert (await task).status == 200


async def test_worker_that_leaves_before_the_head_can_be_replaced(platform: Platform) -> None:
    version = await platform.deployed_version()
    began = asyncio.Event()

    async def broken() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX-Half"
        began.set()
        await asyncio.Event().wait()

    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec)
        posting = asyncio.create_task(work.post(broken()))
        await began.wait()
        posting.cancel()
        await asyncio.wait({posting})
        assert (await work.answer(b"second"))[0] == 200
        assert (await task).body == b"second"


async def test_worker_that_leaves_in_the_body_breaks_the_answer(platform: Platform) -> None:
    version = await platform.deployed_version()
    began = asyncio.Event()

    async def broken() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\nhalf"
        began.set()
        await asyncio.Event().wait()

    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec)
        posting = asyncio.create_task(work.post(broken()))
        await began.wait()
        posting.cancel()
        with pytest.raises(aiohttp.ClientError):
            await task
        assert (await work.post(b"HTTP/1.1 200 OK\r\n\r\n"))[0] == 401
    await platform.queue_is_empty(version)


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 65 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 420_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    ],
)
async def test_malformed_head_is_400_and_the_token_stays_good(platform: Platform, head: bytes) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec)
        status, problem = await work.post(head)
        assert status == 400, problem
        assert (await work.answer(b"fine"))[0] == 200
        assert (await task).body == b"fine"


@pytest.mark.parametrize("body", [b"short", b"much too long for it"])
async def test_body_that_belies_its_length_breaks_the_answer(platform: Platform, body: bytes) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec)
        assert (await work.post(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + body))[0] == 400
        with pytest.raises(aiohttp.ClientError):
            await task


async def test_attach_needs_a_genuine_token(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec, data=b"x" * 50_000)
        head = b"HTTP/1.1 200 OK\r\n\r\n"
        for token in (new_id(), "not-a-token", work.connection.requestAuthorizationToken):
            assert (await work.post(head, token=token))[0] == 401
        for token in (new_id(), work.connection.responseAuthorizationToken):
            assert (await work.get(token=token))[0] == 401
        url = work.connection.targetURI + "/v2/nvcf/worker/request-attach"
        async with platform.session.post(url, data=head) as response:
            assert response.status == 401
        assert (await work.post(head, content_type="text/plain"))[0] == 415
        await work.answer()
        assert (await task).status == 200
