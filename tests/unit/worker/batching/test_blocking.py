"""Batches called from plain handlers, whose threads wait."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nvcf_worker import BadInput, Finished, SyncRequest, batch, continuous_batch
from nvcf_worker.run.threads import handler_thread
from nvcf_worker.testing import TestClient


def test_threads_of_many_requests_fill_one_batch() -> None:
    sizes: list[int] = []

    @batch(max_size=4, max_wait="10s")
    def double(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [2 * item for item in items]

    def handler(request: SyncRequest) -> Any:
        return double.blocking(request.json())

    with TestClient(handler) as client:
        assert [result.json() for result in client.batch([1, 2, 3, 4])] == [2, 4, 6, 8]
    assert sizes == [4]


def test_what_the_function_raises_comes_through() -> None:
    @batch(max_size=1)
    def refuse(items: list[int]) -> list[Any]:
        return [BadInput("not this one") for _ in items]

    def handler(request: SyncRequest) -> Any:
        return refuse.blocking(request.json())

    with TestClient(handler) as client:
        answer = client.post(json=1)
        assert (answer.status, answer.json()["detail"]) == (400, "not this one")


def test_streams_become_plain_iterators() -> None:
    @batch(max_size=1)
    def count(limits: list[int]) -> Iterator[list[Any]]:
        for number in range(max(limits)):
            yield [number if number < limit - 1 else Finished(number) for limit in limits]

    @continuous_batch(max_active=2)
    class Counter:
        def start(self, limit: int) -> dict[str, int]:
            return {"at": 0, "limit": limit}

        def step(self, active: list[dict[str, int]]) -> list[Any]:
            for state in active:
                state["at"] += 1
            return [s["at"] if s["at"] < s["limit"] else Finished(s["at"]) for s in active]

    counter: Any = Counter

    def handler(request: SyncRequest) -> Any:
        limit = request.json()
        return {"batch": list(count.blocking(limit)), "continuous": list(counter.blocking(limit))}

    with TestClient(handler) as client:
        assert client(3) == {"batch": [0, 1, 2], "continuous": [1, 2, 3]}


def test_a_caller_that_leaves_frees_the_thread_and_takes_its_item_out() -> None:
    ended = threading.Event()
    ran: list[int] = []

    @batch(max_size=2, max_wait="60s")
    def never_alone(items: list[int]) -> list[int]:
        ran.extend(items)
        return items

    def handler(request: SyncRequest) -> Any:
        try:
            return never_alone.blocking(request.json())
        finally:
            ended.set()

    with TestClient(handler) as client:
        client.start(json=1).cancel()
        assert ended.wait(10)
        assert [result.json() for result in client.batch([2, 3])] == [2, 3]
    assert sorted(ran) == [2, 3]


def test_a_stream_that_is_garbage_does_not_stop_the_loop() -> None:
    """It may be collected on any thread, the loop's own among them."""
    collected = threading.Event()

    @continuous_batch(max_active=2)
    class Endless:
        def step(self, active: list[int]) -> list[int]:
            return active

    endless: Any = Endless

    def handler(request: SyncRequest) -> Any:
        stream = endless.blocking(request.json())
        loop = handler_thread.get().loop
        holder: list[Any] = [next(stream), stream]
        holder.append(holder)
        del stream, holder
        loop.call_soon_threadsafe(gc.collect)
        loop.call_soon_threadsafe(collected.set)
        return collected.wait(10)

    gc.disable()
    try:
        with TestClient(handler) as client:
            assert client(3) is True
    finally:
        gc.enable()


def test_elsewhere_it_is_refused_with_the_way_out() -> None:
    @batch(max_size=1)
    def same(items: list[int]) -> list[int]:
        return items

    async def in_a_coroutine() -> None:
        same.blocking(1)

    with pytest.raises(RuntimeError, match="await the call"):
        same.blocking(1)
    with pytest.raises(RuntimeError, match="await the call"):
        asyncio.run(in_a_coroutine())
