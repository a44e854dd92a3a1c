"""A waiting request takes one response, by the first token used, and loses none at the end of its time."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.exchange.bodies import empty_body
from nvcf_gateway.exchange.pending import Outcome, Pending, PendingRequests
from nvcf_gateway.exchange.sinks import CollectSink, Sink
from nvcf_proto.h1 import RequestHead, ResponseHead

HEAD = ResponseHead(200)


def made() -> Pending:
    return Pending("q", "v", CollectSink(100), empty_body(), RequestHead("POST", "/"), request_token="r")


class Store:
    """Stands for the result store."""

    def __init__(self) -> None:
        self.made = CollectSink(100)

    def sink(self) -> Sink:
        return self.made

    async def save(self, head: ResponseHead, body: bytes) -> bool:
        return True


async def test_the_first_token_wins() -> None:
    pending = made()
    assert pending.take_inline(HEAD, b"a")
    assert not pending.take_inline(HEAD, b"b")
    assert not pending.begin_stream(asyncio.current_task())
    assert await pending.outcome is Outcome.INLINE
    assert pending.inline == (HEAD, b"a")
    other = made()
    assert other.begin_stream(asyncio.current_task())
    assert not other.take_inline(HEAD, b"b")
    other.finish_stream()
    other.break_stream()
    assert await other.outcome is Outcome.STREAMED


async def test_the_end_of_the_poll_time_hands_over_in_one_step() -> None:
    pending = made()
    caller = pending.outcome
    store = pending.storage = Store()
    pending.set_deadline(asyncio.get_running_loop().time())
    assert await caller is Outcome.TIME_OVER
    assert pending.open
    assert pending.detached
    assert pending.sink is store.made
    assert pending.inline_storage is store
    assert pending.begin_stream(asyncio.current_task())


async def test_a_stream_that_has_begun_is_not_bound_by_the_poll_time() -> None:
    pending = made()
    pending.storage = Store()
    pending.longest = asyncio.get_running_loop().time() + 0.05
    pending.set_deadline(asyncio.get_running_loop().time() + 0.01)
    assert pending.begin_stream(asyncio.current_task())
    assert await pending.outcome is Outcome.CUT_OFF
    assert not pending.detached
    assert asyncio.get_running_loop().time() >= pending.longest - 0.001


async def test_without_a_store_no_response_is_taken_after_the_deadline() -> None:
    pending = made()
    pending.set_deadline(asyncio.get_running_loop().time())
    assert await pending.outcome is Outcome.TIME_OVER
    assert not pending.take_inline(HEAD, b"late")


@given(st.lists(st.none() | st.integers(1, 6), max_size=12))
def test_the_body_is_handed_out_once_for_each_delivery(attempts: list[int | None]) -> None:
    async def run() -> None:
        pending = made()
        highest = 0
        for attempt in attempts:
            number = attempt or 1
            assert pending.take_body(attempt) == (number > highest)
            highest = max(highest, number)

    asyncio.run(run())


async def test_tokens_are_void_once_a_request_is_forgotten() -> None:
    registry = PendingRequests()
    pending = made()
    registry.retain(pending, 3600)
    assert registry.by_response_token(pending.response_token) is pending
    assert registry.by_inline_token(pending.inline_token) is pending
    assert registry.by_request_token("r") is pending
    assert registry.detached("q") is pending
    assert registry.by_response_token(pending.inline_token) is None
    registry.remove(pending)
    registry.remove(pending)
    assert len(registry) == 0
    for found in (
        registry.by_response_token(pending.response_token),
        registry.by_inline_token(pending.inline_token),
        registry.by_request_token("r"),
        registry.detached("q"),
    ):
        assert found is None


async def test_a_request_that_is_forgotten_takes_no_memory_until_its_time_is_over() -> None:
    registry = PendingRequests()
    pending = made()
    registry.retain(pending, 3600)
    held = weakref.ref(pending.sink)
    registry.remove(pending)
    del pending
    gc.collect()
    assert held() is None


async def test_the_observer_learns_when_the_time_is_over() -> None:
    registry = PendingRequests()
    pending = made()
    observed: list[bool] = []
    pending.on_response = observed.append
    registry.retain(pending, 0.0)
    async with asyncio.timeout(10):
        while len(registry):
            await asyncio.sleep(0)
    assert observed == [False]


@pytest.mark.parametrize(("by_id", "status", "open_"), [(True, 200, 0), (True, 202, 1), (False, 202, 0)])
async def test_after_a_202_only_the_tokens_of_the_request_itself_stay_valid(
    by_id: bool, status: int, open_: int
) -> None:
    registry = PendingRequests()
    pending = made()
    registry.retain(pending, 3600) if by_id else registry.add(pending)
    assert registry.stored(pending, status) == bool(open_)
    assert len(registry) == open_


@pytest.mark.parametrize("times", [2, 5])
async def test_tokens_are_never_the_same(times: int) -> None:
    tokens = {
        token for _ in range(times) for each in [made()] for token in (each.response_token, each.inline_token)
    }
    assert len(tokens) == 2 * times


async def test_a_stream_that_the_caller_left_is_taken_to_its_end() -> None:
    pending = made()
    pending.storage = Store()
    caller = pending.sink
    assert pending.begin_stream(asyncio.current_task())
    pending.outcome.cancel()
    pending.detach()
    assert pending.sink is caller, "which stores what the caller does not take"
    pending.break_stream()
    assert pending.open, "nobody has seen any of it"
    assert pending.begin_stream(asyncio.current_task())
    pending.finish_stream()
    assert not pending.open


async def test_a_caller_that_is_leaving_takes_nothing() -> None:
    """Its task decides in a moment what becomes of the call."""
    pending = made()
    pending.outcome.cancel()
    assert not pending.take_inline(HEAD, b"")
    assert not pending.begin_stream(asyncio.current_task())
    pending.storage = Store()
    pending.detach()
    assert pending.begin_stream(asyncio.current_task())


async def test_a_response_that_is_in_the_store_already_ends_the_wait() -> None:
    pending = made()
    pending.storage = Store()
    pending.set_deadline(asyncio.get_running_loop().time() + 3600)
    pending.give_way()
    assert await pending.outcome is Outcome.TIME_OVER
    assert pending.detached
