"""Streams that begin anew: nothing lost, doubled or silently cut short."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.errors import HandlerFailed
from nvcf_worker.exchange.response_delivery import REPLAY_LIMIT, ReplaySource
from nvcf_worker.run.executor import AsyncSource


async def items(chunks: list[bytes], error: BaseException | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


async def take(source: ReplaySource, number: int) -> list[bytes]:
    """Up to `number` chunks."""
    found: list[bytes] = []
    while len(found) < number:
        try:
            found.append(await source.__anext__())
        except StopAsyncIteration:
            break
    return found


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=20), st.lists(st.integers(0, 25), max_size=5))
async def test_every_start_gives_everything(chunks: list[bytes], starts: list[int]) -> None:
    source = ReplaySource(AsyncSource(items(chunks)))
    for number in starts:
        assert await take(source, number) == chunks[:number]
        assert source.rewind()
    assert await take(source, 1000) == chunks
    await source.aclose()


async def test_what_was_too_long_cannot_be_repeated() -> None:
    source = ReplaySource(AsyncSource(items([bytes(REPLAY_LIMIT), b"x"])))
    assert len(await take(source, 1)) == 1
    assert source.rewind()
    assert len(await take(source, 2)) == 2
    assert not source.rewind()


@pytest.mark.parametrize("error", [RuntimeError("no"), GeneratorExit()])
async def test_a_handler_that_ended_early_cannot_be_repeated(error: BaseException) -> None:
    """Its stream would look complete the second time."""
    source = ReplaySource(AsyncSource(items([b"a"], error)))
    with pytest.raises((RuntimeError, HandlerFailed)):
        await take(source, 2)
    assert not source.rewind()
