"""A handler's own limit holds its place for as long as its answer is being made."""

from __future__ import annotations

import asyncio

import pytest

from nvcf_worker.function.limit import Limit
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.run.executor import within

REPLY = Reply(200, [], b"")


class Chunks:
    def __init__(self) -> None:
        self.closed = False

    async def __anext__(self) -> bytes:
        return b"x"

    async def aclose(self) -> None:
        self.closed = True


async def test_a_complete_answer_frees_its_place() -> None:
    limit = Limit(1)

    async def run() -> Outcome:
        assert limit.free == 0
        return REPLY

    assert await within(limit, run) is REPLY
    assert limit.free == 1


async def test_a_failure_frees_its_place() -> None:
    limit = Limit(1)

    async def run() -> Outcome:
        raise KeyError

    with pytest.raises(KeyError):
        await within(limit, run)
    assert limit.free == 1


async def test_a_stream_holds_its_place_until_it_is_closed() -> None:
    limit, chunks = Limit(1), Chunks()

    async def run() -> Outcome:
        return StreamReply(200, [], b"", chunks)

    outcome = await within(limit, run)
    assert isinstance(outcome, StreamReply)
    waiting = asyncio.create_task(within(limit, run))
    await asyncio.sleep(0)
    assert (limit.free, limit.waiting) == (0, 1)
    assert await outcome.source.__anext__() == b"x"
    await outcome.source.aclose()
    await outcome.source.aclose()
    assert chunks.closed
    async with asyncio.timeout(10):
        second = await waiting
    assert isinstance(second, StreamReply)
    assert limit.free == 0
    await second.source.aclose()
    assert limit.free == 1
