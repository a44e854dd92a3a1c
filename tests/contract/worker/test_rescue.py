"""Requests whose gateway is gone: another one takes the answer ([ext])."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nvcf_broker.process import free_port
from nvcf_worker import Request, SyncRequest
from nvcf_worker.exchange import fetch, waiters
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


def echo(request: SyncRequest) -> bytes:
    return request.read()


async def stream(request: Request) -> AsyncIterator[bytes]:
    yield await request.read()
    yield b" streamed"


def dead() -> str:
    """An address where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("stop_inline", [True, False])
async def test_a_complete_answer_finds_another_door(
    gateway: PeerGateway, start_worker: StartWorker, stop_inline: bool
) -> None:
    await start_worker(echo).ready()
    if stop_inline:
        await gateway.stop_inline()
    url, gateway.http_url = gateway.http_url, dead()
    gateway.rescue = "silent"
    await gateway.invoke(b"precious", reply_max_bytes=262_144 if stop_inline else None)
    await asyncio.sleep(0)
    gateway.http_url, gateway.rescue = url, "door"
    await eventually(lambda: bool(gateway.rescued), "a fallback gateway was looked for")
    assert (await gateway.rescued[-1].answer()).body == b"precious"
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_a_stream_that_has_not_begun_finds_another_door(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    gateway.rescue = "door"
    await start_worker(stream).ready()
    url, gateway.http_url = gateway.http_url, dead()
    await gateway.invoke(b"precious", reply_max_bytes=None)
    gateway.http_url = url
    await eventually(lambda: bool(gateway.rescued), "a fallback gateway was looked for")
    assert (await gateway.rescued[-1].answer()).body == b"precious streamed"


async def test_a_body_is_fetched_from_another_gateway(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def rest() -> AsyncIterator[bytes]:
        yield b" and the rest"

    gateway.rescue = "door"
    await start_worker(echo).ready()
    url, gateway.http_url = gateway.http_url, dead()
    call = await gateway.invoke(b"beginning", rest=rest(), reply_max_bytes=None)
    gateway.http_url = url
    gateway.lost.append(call)
    await eventually(lambda: bool(gateway.rescued), "a fallback gateway was looked for")
    assert (await gateway.rescued[-1].answer()).body == b"beginning and the rest"
    assert gateway.rescued[-1].attempts == ["1"]


async def test_a_body_that_is_gone_is_said_to_be(gateway: PeerGateway, start_worker: StartWorker) -> None:
    async def rest() -> AsyncIterator[bytes]:
        yield b"never"

    gateway.rescue = "door"
    await start_worker(echo).ready()
    url, gateway.http_url = gateway.http_url, dead()
    await gateway.invoke(b"beginning", rest=rest(), reply_max_bytes=None)
    gateway.http_url = url
    await eventually(lambda: bool(gateway.rescued), "a fallback gateway was looked for")
    assert (await gateway.rescued[-1].answer()).status == 502


async def test_nobody_wants_it(gateway: PeerGateway, start_worker: StartWorker) -> None:
    gateway.rescue = "gone"
    await start_worker(echo).ready()
    url, gateway.http_url = gateway.http_url, dead()
    await gateway.invoke(b"x", reply_max_bytes=None)
    gateway.http_url = url
    await eventually(lambda: _empty(gateway), "abandoned and acknowledged")


async def test_a_restarted_gateway_that_forgot_the_request_takes_its_answer(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """401 from the old address; whoever repeats the call by its key still gets the answer."""
    gateway.rescue = "door"
    await start_worker(echo).ready()
    await gateway.invoke(b"again", reply_max_bytes=None, forget=True)
    await eventually(lambda: bool(gateway.rescued), "a fallback gateway was looked for")
    assert (await gateway.rescued[-1].answer()).body == b"again"
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_without_any_gateway_the_request_is_left_to_be_delivered_again(
    gateway: PeerGateway, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "FALLBACK_SECONDS", 0.5)
    monkeypatch.setattr(fetch, "FALLBACK_SECONDS", 0.5)
    worker = start_worker(echo)
    await worker.ready()
    url, gateway.http_url = gateway.http_url, dead()
    await gateway.invoke(b"x", reply_max_bytes=None)
    await eventually(lambda: worker.worker.in_flight == 1, "taken")
    await eventually(lambda: worker.worker.in_flight == 0, "given up")
    gateway.http_url = url
    state = await gateway.consumer()
    assert (await gateway.queued(), state["num_ack_pending"]) == (1, 1)


async def test_the_delivery_attempt_is_told_when_the_body_is_fetched(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def rest() -> AsyncIterator[bytes]:
        yield b"!"

    await start_worker(echo).ready()
    call = await gateway.invoke(b"x", rest=rest())
    assert (await call.answer()).body == b"x!"
    assert call.attempts == ["1"]


@pytest.mark.parametrize(("size", "runs"), [(6, 1), (600_000, 2)])
async def test_a_stream_lost_in_the_middle_goes_on_elsewhere_if_somebody_may_want_it(
    gateway: PeerGateway, start_worker: StartWorker, size: int, runs: int
) -> None:
    """From its beginning, which is kept for a while; made again when it is too long for that."""
    attempts: list[int] = []
    gate = asyncio.Event()

    async def handler(request: Request) -> AsyncIterator[bytes]:
        attempts.append(request.attempt)
        yield b"first "
        yield b"x" * size
        await gate.wait()
        yield b" last"

    gateway.rescue = "door"
    await start_worker(handler).ready()
    call = await gateway.invoke(headers={"Idempotency-Key": "k"})
    received = 0
    while received < size + 6:
        chunk = await call.chunks.get()
        assert isinstance(chunk, bytes)
        received += len(chunk)
    gateway.drop_posts()
    gate.set()
    await eventually(lambda: bool(gateway.rescued), "a fallback gateway was looked for")
    assert (await gateway.rescued[-1].answer()).body == b"first " + b"x" * size + b" last"
    await eventually(lambda: _empty(gateway), "acknowledged")
    assert len(attempts) == runs


async def test_a_stream_lost_in_the_middle_ends_when_nobody_can_want_it(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    ended = asyncio.Event()

    async def handler(request: Request) -> AsyncIterator[bytes]:
        yield b"first"
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await start_worker(handler).ready()
    call = await gateway.invoke()
    assert await call.chunks.get() == b"first"
    gateway.drop_posts()
    await asyncio.wait_for(ended.wait(), 10)
    await eventually(lambda: _empty(gateway), "acknowledged")
