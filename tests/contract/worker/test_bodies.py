"""Request bodies: inline, and the rest or the whole by GET request-attach."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from nvcf_worker import Request, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway

INLINE = b"i" * 32 * 1024


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def sync_digest(request: SyncRequest) -> str:
    return hashlib.sha256(request.read()).hexdigest()


async def async_digest(request: Request) -> str:
    return hashlib.sha256(await request.read()).hexdigest()


def sync_stream_digest(request: SyncRequest) -> str:
    digest = hashlib.sha256()
    for chunk in request.stream():
        digest.update(chunk)
    return digest.hexdigest()


async def async_stream_digest(request: Request) -> str:
    digest = hashlib.sha256()
    async for chunk in request.stream():
        digest.update(chunk)
    return digest.hexdigest()


HANDLERS = (sync_digest, async_digest, sync_stream_digest, async_stream_digest)


async def test_a_body_larger_than_the_message_carries(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    rest = [bytes([number]) * 100_000 for number in range(30)]
    expected = hashlib.sha256(INLINE + b"".join(rest)).hexdigest().encode()
    for number, handler in enumerate(HANDLERS):
        worker = start_worker(handler, instance=f"instance-{number}")
        await worker.ready()
        call = await gateway.invoke(INLINE, rest=chunks(*rest))
        assert (await call.answer()).body == expected
        assert call.accept == ["application/octet-stream"]
        await worker.stop()


async def test_a_body_without_a_rest_is_read_from_the_message(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    expected = hashlib.sha256(INLINE).hexdigest().encode()
    for number, handler in enumerate(HANDLERS):
        worker = start_worker(handler, instance=f"instance-{number}")
        await worker.ready()
        call = await gateway.invoke(INLINE)
        assert (await call.answer()).body == expected
        assert call.accept == []
        await worker.stop()


async def test_a_handler_that_does_not_read_fetches_nothing(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(lambda request: "not read").ready()
    call = await gateway.invoke(INLINE, rest=chunks(b"never"))
    assert (await call.answer()).body == b"not read"
    assert call.accept == []


async def test_the_body_arrives_while_it_is_sent(gateway: PeerGateway, start_worker: StartWorker) -> None:
    go_on = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b"first"
        await go_on.wait()
        yield b"second"

    async def handler(request: Request) -> AsyncIterator[bytes]:
        async for chunk in request.stream():
            yield chunk

    await start_worker(handler).ready()
    call = await gateway.invoke(b"zero", rest=upload())
    parts = call.iterate()
    got = b""
    async with asyncio.timeout(10):
        while got != b"zerofirst":
            got += await anext(parts)
    go_on.set()
    assert b"".join([part async for part in parts]) == b"second"


async def test_a_request_that_the_message_leaves_out(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler(request: SyncRequest) -> Any:
        return [
            request.method,
            request.path,
            request.query["a"],
            request.headers["x-own"],
            request.read().decode(),
        ]

    await start_worker(handler).ready()
    call = await gateway.invoke(
        full=True, rest=chunks(b"PUT /deep/path?a=1 HTTP/1.1\r\nX-O", b"wn: yes\r\n\r\nbo", b"dy")
    )
    assert (await call.answer()).json() == ["PUT", "/deep/path", "1", "yes", "body"]
    assert call.accept == ["application/octet-stream+h1"]


async def test_a_request_that_cannot_be_fetched_is_a_502(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(lambda request: request.read()).ready()
    for rest in (chunks(b"no request line\r\n\r\n"), chunks(b"GET / HTTP/1.1\r\nhal")):
        call = await gateway.invoke(full=True, rest=rest)
        answer = await call.answer()
        assert answer.status == 502
        assert answer.json()["title"] == "Request Body Unavailable"


async def test_a_body_that_breaks_off_is_a_502(gateway: PeerGateway, start_worker: StartWorker) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionResetError

    for number, handler in enumerate((sync_digest, async_digest)):
        worker = start_worker(handler, instance=f"instance-{number}")
        await worker.ready()
        answer = await (await gateway.invoke(b"", rest=broken())).answer()
        assert answer.status == 502
        await worker.stop()
