"""A cancel broadcast reaches handlers of every kind and frees the slot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nvcf_worker import Request, RequestCancelled, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


class Probe:
    """Handlers that run until they are cancelled."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.stopped_at = 0.0
        self.how = ""
        self.thread = 0
        self.close_thread = 0

    def stopped(self, how: str) -> None:
        self.how, self.stopped_at = how, time.monotonic()

    async def coroutine(self, request: Request) -> Any:
        if await request.read() == b"next":
            return "next"
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.stopped("cancelled")
            raise

    async def async_generator(self, request: Request) -> AsyncIterator[Any]:
        if await request.read() == b"next":
            yield "next"
            return
        try:
            while True:
                yield b"tick"
                self.started.set()
                await asyncio.sleep(0.01)
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped("closed")
            raise

    async def quiet_async_generator(self, request: Request) -> AsyncIterator[Any]:
        if await request.read() == b"next":
            yield "next"
            return
        yield b"tick"
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.stopped("closed")
            raise

    def generator(self, request: SyncRequest) -> Iterator[Any]:
        if request.read() == b"next":
            yield "next"
            return
        self.thread = threading.get_ident()
        try:
            while True:
                yield b"tick"
                self.started.set()
                time.sleep(0.01)
        except GeneratorExit:
            self.close_thread = threading.get_ident()
            self.stopped("closed")
            raise

    def plain(self, request: SyncRequest) -> Any:
        if request.read() == b"next":
            return "next"
        self.started.set()
        if request.cancelled.wait(60):
            self.stopped("flag")
        return "nobody reads this"


KINDS = {
    "coroutine": "cancelled",
    "async_generator": "closed",
    "quiet_async_generator": "closed",
    "generator": "closed",
    "plain": "flag",
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_request_stops_within_a_second(
    gateway: PeerGateway, start_worker: StartWorker, kind: str
) -> None:
    probe = Probe()
    await start_worker(getattr(probe, kind), concurrency=1).ready()
    call = await gateway.invoke(b"wait")
    drain = asyncio.create_task(_discard(call))
    await eventually(probe.started.is_set, "handler started")
    following = await gateway.invoke(b"next")
    cancelled_at = time.monotonic()
    await gateway.cancel(call)
    assert (await following.answer()).body == b"next"
    assert probe.how == KINDS[kind]
    assert probe.stopped_at - cancelled_at < 1.0
    assert time.monotonic() - cancelled_at < 1.5
    assert probe.close_thread == probe.thread
    drain.cancel()
    await eventually(lambda: _empty(gateway), "the abandoned request is acknowledged")


async def _discard(call: Any) -> None:
    async for _ in call.iterate():
        pass


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


async def test_a_cancel_ends_a_blocking_read(gateway: PeerGateway, start_worker: StartWorker) -> None:
    ended = threading.Event()
    reading = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        reading.set()
        yield b"a"
        await asyncio.sleep(60)

    def handler(request: SyncRequest) -> Any:
        try:
            return request.read()
        except RequestCancelled:
            ended.set()
            raise

    await start_worker(handler).ready()
    call = await gateway.invoke(b"", rest=endless())
    await eventually(reading.is_set, "download started")
    await gateway.cancel(call)
    await eventually(ended.is_set, "read ended", timeout=20)


async def test_foreign_and_garbled_cancels_are_ignored(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(lambda request: "fine").ready()
    for text in (b"", b"\xff\xfe", b"00000000-0000-0000-0000-000000000000", b"x" * 1000):
        await gateway.connection.publish(f"nvcf.cancel.{gateway.version_id}", text)
    assert (await (await gateway.invoke()).answer()).body == b"fine"


async def test_a_caller_that_leaves_during_a_stream_stops_the_handler(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """The gateway closes the attach connection without any broadcast."""
    probe = Probe()
    await start_worker(probe.quiet_async_generator, concurrency=1).ready()
    call = await gateway.invoke(b"wait")
    await call.head
    await eventually(probe.started.is_set, "handler started")
    gateway.drop_posts()
    await eventually(lambda: probe.how == "closed", "handler stopped", timeout=20)
    assert (await (await gateway.invoke(b"next")).answer()).body == b"next"
