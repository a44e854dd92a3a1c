"""Caller bodies: inlined, streamed and read again, byte for byte."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.bodies import BodySuperseded, CallerBody


class Source:
    """Parts that arrive one by one; None keeps the reader waiting until `more` is set."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = [part for part in parts if part]
        self.hold = asyncio.Event()
        self.hold.set()

    async def read(self, n: int = -1) -> bytes:
        await self.hold.wait()
        if not self.parts:
            return b""
        part = self.parts.pop(0)
        if 0 <= n < len(part):
            self.parts.insert(0, part[n:])
            part = part[:n]
        return part

    def at_eof(self) -> bool:
        return not self.parts

    def is_eof(self) -> bool:
        return self.hold.is_set() and len(self.parts) <= 1


async def collect(body: CallerBody) -> bytes:
    return b"".join([chunk async for chunk in body.stream()])


@given(
    parts=st.lists(st.binary(max_size=50), max_size=8), limit=st.integers(0, 120), memory=st.integers(0, 100)
)
def test_prefix_and_rest_are_the_body_however_often_read(parts: list[bytes], limit: int, memory: int) -> None:
    async def run() -> None:
        whole = b"".join(parts)
        body = CallerBody(Source(parts), len(whole), spool_memory_bytes=memory)
        await body.read_ahead(limit, patience=5)
        assert body.complete == (body.prefix == whole)
        assert len(body.prefix) == min(limit, len(whole))
        assert body.rest_length == len(whole) - len(body.prefix)
        for _ in range(3):
            assert body.prefix + await collect(body) == whole
        body.close()

    asyncio.run(run())


async def test_a_slow_caller_is_not_waited_for() -> None:
    source = Source([b"a", b"b"])
    source.hold.clear()
    body = CallerBody(source, None, spool_memory_bytes=10)
    await body.read_ahead(100, patience=0.01)
    assert body.prefix == b""
    assert not body.complete
    assert body.rest_length is None
    source.hold.set()
    assert await collect(body) == b"ab"


async def test_a_newer_delivery_ends_the_older_one() -> None:
    body = CallerBody(Source([b"a" * 10, b"b" * 10, b"c" * 10]), 30, spool_memory_bytes=15)
    older = body.stream()
    assert await anext(older) == b"a" * 10
    newer = body.stream()
    assert await anext(newer) == b"a" * 10
    with pytest.raises(BodySuperseded):
        await anext(older)
    assert b"".join([chunk async for chunk in newer]) == b"b" * 10 + b"c" * 10


async def test_a_cancelled_reader_loses_nothing() -> None:
    source = Source([b"a" * 10, b"b" * 10])
    body = CallerBody(source, 20, spool_memory_bytes=0)
    source.hold.clear()
    reading = asyncio.ensure_future(collect(body))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    source.hold.set()
    assert await collect(body) == b"a" * 10 + b"b" * 10


class SmallBudget:
    """Room for a few bytes until `most` is raised."""

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0

    def take(self, account: str, size: int) -> None:
        if self.used + size > self.most:
            raise HttpProblem(503, "no room")
        self.used += size

    def give_back(self, account: str, size: int) -> None:
        self.used -= size


@pytest.mark.parametrize("parts", [[b"a" * 10, b"b" * 10], [b"a" * 10, b"b" * 10, b"c" * 3], [b"a" * 20]])
async def test_a_body_that_lost_a_part_is_never_taken_for_whole(parts: list[bytes]) -> None:
    """The part was read from the caller when there was no room for it; later there is."""
    budget = SmallBudget(10)
    body = CallerBody(Source(parts), None, spool_memory_bytes=100, budget=budget)
    with pytest.raises(HttpProblem):
        await body.receive_all(5, 100)
    budget.most = 100
    assert not body.complete
    for _ in range(2):
        with pytest.raises(HttpProblem):
            await collect(body)
        with pytest.raises(HttpProblem):
            await body.receive_all(5, 100)
    body.close()
    assert budget.used == 0


async def test_what_is_stored_beside_a_reader_is_whole_or_fails() -> None:
    body = CallerBody(Source([b"a" * 70_000, b"b" * 70_000]), None, spool_memory_bytes=200_000)
    assert await body.receive_all(5, 200_000)
    assert body.spooled_bytes == 140_000
    assert b"".join([chunk async for chunk in body.spooled()]) == b"a" * 70_000 + b"b" * 70_000
    cut = body.spooled()
    assert await anext(cut)
    body.close()
    with pytest.raises(OSError, match="closed"):
        await anext(cut)
