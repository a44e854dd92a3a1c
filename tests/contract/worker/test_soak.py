"""Many requests of all kinds at once, some cancelled, some failing: nothing leaks, nothing is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nvcf_worker import Request, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.calls import BrokenResponse, Call
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually

SLOTS = 8


def sync_kind(request: SyncRequest) -> Any:
    if request.path == "/fail":
        raise RuntimeError("on purpose")
    if request.path == "/stream":
        return _items()
    time.sleep(0.005)
    return request.read()


def _items() -> Iterator[bytes]:
    for _ in range(20):
        time.sleep(0.001)
        yield b"item"


async def async_kind(request: Request) -> Any:
    if request.path == "/fail":
        raise RuntimeError("on purpose")
    if request.path == "/stream":
        return _async_items()
    await asyncio.sleep(0.005)
    return await request.read()


async def _async_items() -> AsyncIterator[bytes]:
    for _ in range(20):
        await asyncio.sleep(0.001)
        yield b"item"


async def _caller(gateway: PeerGateway, number: int, dice: random.Random) -> str:
    path = dice.choice(["/echo", "/echo", "/stream", "/fail"])
    call = await gateway.invoke(b"%d" % number, path=path, reply_max_bytes=dice.choice([None, 65_536]))
    if dice.random() < 0.3:
        return await _leave(gateway, call, dice.uniform(0, 0.05))
    answer = await call.answer()
    if path == "/fail":
        assert answer.status == 500
    else:
        assert answer.body == (b"%d" % number if path == "/echo" else b"item" * 20)
    return "answered"


async def _leave(gateway: PeerGateway, call: Call, after: float) -> str:
    reading = asyncio.create_task(call.answer())
    await asyncio.wait([reading], timeout=after)
    await gateway.cancel(call)
    call.chunks = asyncio.Queue()  # whatever still comes is taken and thrown away
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return "left"


async def test_nothing_leaks_and_nothing_is_lost(gateway: PeerGateway, start_worker: StartWorker) -> None:
    dice = random.Random(7)
    # Asked for a request whose caller has left, a gateway says that nobody wants it.
    gateway.rescue = "gone"
    workers = [
        start_worker(handler, instance=handler.__name__, concurrency=SLOTS)
        for handler in (sync_kind, async_kind)
    ]
    for worker in workers:
        await worker.ready()
    outcomes: list[str] = []
    for round_ in range(4):
        callers = (_caller(gateway, 100 * round_ + number, dice) for number in range(100))
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert not [result for result in results if isinstance(result, BaseException)], results
        outcomes += [str(result) for result in results]
    assert outcomes.count("answered") > 200

    async def empty() -> bool:
        return await gateway.queued() == 0

    # Callers that left may have left requests behind that no worker has pulled yet.
    await eventually(empty, "nothing is queued")
    await eventually(lambda: all(worker.worker.in_flight == 0 for worker in workers), "all settled")
    assert [worker.worker.free_slots for worker in workers] == [SLOTS, SLOTS]
    info = await gateway.consumer()
    assert info["num_ack_pending"] == 0
    assert info["num_redelivered"] == 0


async def test_a_broken_stream_among_others_costs_only_itself(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def handler(request: Request) -> AsyncIterator[bytes]:
        for number in range(10):
            if request.path == "/broken" and number == 5:
                raise RuntimeError("on purpose")
            yield b"item"
            await asyncio.sleep(0.001)

    worker = start_worker(handler, concurrency=SLOTS)
    await worker.ready()
    paths = ["/broken" if number % 3 == 0 else "/whole" for number in range(60)]
    calls = [await gateway.invoke(path=path) for path in paths]
    results = await asyncio.gather(*(call.answer() for call in calls), return_exceptions=True)
    for path, result in zip(paths, results, strict=True):
        if path == "/broken":
            assert isinstance(result, BrokenResponse)
        else:
            assert not isinstance(result, BaseException)
            assert result.body == b"item" * 10
    await eventually(lambda: worker.worker.in_flight == 0, "all settled")
    assert worker.worker.free_slots == SLOTS
