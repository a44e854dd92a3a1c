"""Streamed answers: order, immediacy, back-pressure, breaking off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nvcf_worker import Request, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.calls import BrokenResponse
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


async def test_each_item_is_there_before_the_next_is_made(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    made = threading.Semaphore(0)
    made_async = asyncio.Semaphore(0)

    def generator(request: SyncRequest) -> Iterator[str]:
        for number in range(5):
            yield f"{number}\n"
            made.acquire(timeout=10)

    async def async_generator(request: Request) -> AsyncIterator[str]:
        for number in range(5):
            yield f"{number}\n"
            await made_async.acquire()

    for handler, seen in ((generator, made.release), (async_generator, made_async.release)):
        worker = start_worker(handler, instance=handler.__name__)
        await worker.ready()
        call = await gateway.invoke()
        async with asyncio.timeout(10):
            assert (await call.head)[0] == 200
            number = 0
            async for chunk in call.iterate():
                # The generator waits until this item has been seen, so nothing else can be in the chunk.
                assert chunk == b"%d\n" % number
                number += 1
                seen()
        assert number == 5
        await worker.stop()


async def test_a_slow_reader_slows_the_generator(gateway: PeerGateway, start_worker: StartWorker) -> None:
    item = b"x" * 65_536
    count = {"sync": 0, "async": 0}

    def generator(request: SyncRequest) -> Iterator[bytes]:
        while True:
            count["sync"] += 1
            yield item

    async def async_generator(request: Request) -> AsyncIterator[bytes]:
        while True:
            count["async"] += 1
            yield item

    for name, handler in (("sync", generator), ("async", async_generator)):
        worker = start_worker(handler, instance=name)
        await worker.ready()
        call = await gateway.invoke()
        await call.head
        # Nobody reads: buffers fill up and the generator comes to rest.
        last = -1
        while last != count[name]:
            last = count[name]
            await asyncio.sleep(0.5)
        assert count[name] * len(item) < 64 * 1024 * 1024
        parts = call.iterate()
        read = 0
        async with asyncio.timeout(20):
            while count[name] == last:
                read += len(await anext(parts))
        await gateway.cancel(call)
        await eventually(lambda: worker.worker.in_flight == 0, "request ended")  # noqa: B023
        call.chunks = asyncio.Queue()
        await worker.stop()


class Panic(BaseException):
    """As extensions written in Rust raise it."""


@pytest.mark.parametrize("kind", ["sync", "async", "closing"])
async def test_a_stream_that_panics_is_over_for_the_queue(
    gateway: PeerGateway, start_worker: StartWorker, kind: str
) -> None:
    def generator(request: SyncRequest) -> Iterator[str]:
        yield "one"
        raise Panic("index out of bounds")

    async def async_generator(request: Request) -> AsyncIterator[Any]:
        yield "one"
        raise Panic("index out of bounds")

    def at_the_end(request: SyncRequest) -> Iterator[Any]:
        try:
            yield "one"
            yield object()
        finally:
            raise Panic("index out of bounds")

    worker = start_worker({"sync": generator, "async": async_generator, "closing": at_the_end}[kind])
    await worker.ready()
    call = await gateway.invoke()
    with pytest.raises(BrokenResponse):
        await call.answer()
    await eventually(lambda: worker.worker.in_flight == 0, "nothing is in work")


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stream_that_fails_never_looks_complete(
    gateway: PeerGateway, start_worker: StartWorker, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def generator(request: SyncRequest) -> Iterator[str]:
        yield "one"
        yield "two"
        raise RuntimeError("in the middle")

    async def async_generator(request: Request) -> AsyncIterator[Any]:
        yield "one"
        yield object()

    await start_worker(generator if kind == "sync" else async_generator).ready()
    call = await gateway.invoke()
    with pytest.raises(BrokenResponse):
        await call.answer()
    await eventually(lambda: "broke off" in caplog.text, "logged")
    assert ("in the middle" if kind == "sync" else "not JSON serializable") in caplog.text
    # The next request is not affected, and the broken one is not repeated.
    call = await gateway.invoke()
    with pytest.raises(BrokenResponse):
        await call.answer()
    await eventually(lambda: _empty(gateway), "queue empty")


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


async def test_context_of_an_async_generator_stays_in_one_task(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def handler(request: Request) -> AsyncIterator[str]:
        task = asyncio.current_task()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            child = group.create_task(asyncio.sleep(0.05, "done"))
            yield "first "
            assert asyncio.current_task() is task
            yield await child

    await start_worker(handler).ready()
    assert (await (await gateway.invoke()).answer()).body == b"first done"


async def test_a_sync_generator_stays_in_one_thread(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler(request: SyncRequest) -> Iterator[str]:
        thread = threading.get_ident()
        for _ in range(100):
            yield "same " if threading.get_ident() == thread else "other "

    await start_worker(handler).ready()
    assert (await (await gateway.invoke()).answer()).body == b"same " * 100


async def test_a_stream_that_breaks_before_the_gateway_has_seen_it_is_answered_with_an_error(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """A busy gateway never hears of a connection that is closed before it looks."""

    async def handler(request: Request) -> AsyncIterator[str]:
        yield "first"
        raise KeyError("in the middle")

    await start_worker(handler).ready()
    gateway.overlook_posts = 1
    answer = await (await gateway.invoke()).answer()
    assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
    assert b"first" not in answer.body
