"""Batch functions that are generators: one stream for each item."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nvcf_worker.errors import BadInput
from nvcf_worker.run.batching.decorator import batch
from nvcf_worker.run.batching.settings import Finished


async def gather(function: Any, items: list[Any]) -> list[Any]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*(function(item) for item in items), return_exceptions=True)


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    async with asyncio.timeout(20):
        return [output async for output in stream]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_steps_of_a_generator_become_one_stream_an_item(kind: str) -> None:
    closed = threading.Event()

    def plain(items: list[int]) -> Iterator[list[Any]]:
        try:
            for step in range(5):
                yield [
                    Finished(f"{item}!") if step == item else None if step == 0 else f"{item}.{step}"
                    for item in items
                ]
        finally:
            closed.set()

    async def asynchronous(items: list[int]) -> AsyncIterator[list[Any]]:
        for step in plain(items):
            yield step

    function = batch(max_wait=0)(plain if kind == "plain" else asynchronous)
    streams = await gather(function, [2, 0, 9])
    assert await asyncio.gather(*map(collect, streams)) == [
        ["2.1", "2!"],
        ["0!"],
        ["9.1", "9.2", "9.3", "9.4"],
    ]
    assert closed.wait(10)


async def test_one_item_of_a_step_can_fail_alone_and_all_when_the_generator_does() -> None:
    @batch(max_wait=0)
    async def steps(items: list[int]) -> AsyncIterator[list[Any]]:
        yield [BadInput("first") if item == 0 else item for item in items]
        yield [BadInput("later") if item == 1 else item for item in items]
        raise KeyError("all")

    first, second, third = await gather(steps, [0, 1, 2])
    assert isinstance(first, BadInput)
    assert await anext(second) == 1
    with pytest.raises(BadInput, match="later"):
        await anext(second)
    assert [await anext(third), await anext(third)] == [2, 2]
    with pytest.raises(KeyError):
        await anext(third)


async def test_a_generator_that_fails_before_its_first_step_is_tried_item_by_item() -> None:
    @batch(max_wait=0)
    def steps(items: list[int]) -> Iterator[list[int]]:
        if 0 in items:
            raise ValueError("zero")
        yield items

    bad, good = await gather(steps, [0, 1])
    assert isinstance(bad, ValueError)
    assert await collect(good) == [1]


@pytest.mark.parametrize("how", ["aclose", "forgotten"])
async def test_a_generator_stops_when_every_reader_has_left(how: str) -> None:
    closed = asyncio.Event()

    @batch(max_wait=0, buffer=4)
    async def endless(items: list[int]) -> AsyncIterator[list[int]]:
        try:
            while True:
                yield items
        finally:
            closed.set()

    streams = await gather(endless, [1, 2])
    assert await anext(streams[0]) == 1
    if how == "aclose":
        for stream in streams:
            await stream.aclose()
    del streams
    stream = None
    gc.collect()
    async with asyncio.timeout(10):
        await closed.wait()


async def test_a_slow_reader_slows_the_generator() -> None:
    made = 0

    @batch(max_wait=0, buffer=4)
    async def counting(items: list[int]) -> AsyncIterator[list[int]]:
        nonlocal made
        while made < 100:
            made += 1
            yield [made] * len(items)

    stream = await counting(0)
    last = -1
    while made != last:
        last = made
        await asyncio.sleep(0.02)
    assert made <= 6
    assert await collect(stream) == list(range(1, 101))


async def test_a_list_of_iterators_gives_each_item_its_own() -> None:
    @batch(max_wait=0)
    def streams(items: list[int]) -> list[Iterator[int]]:
        return [iter(range(item)) for item in items]

    two, three = await gather(streams, [2, 3])
    assert (list(two), list(three)) == ([0, 1], [0, 1, 2])
