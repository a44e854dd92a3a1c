"""Limit: places are never overbooked or lost, and turns come in order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_worker.function.adaptive import Adaptive, choose, most
from nvcf_worker.function.limit import Limit
from nvcf_worker.queue.planner import Slots


async def test_turns_come_in_order() -> None:
    limit = Limit(2)
    order: list[int] = []

    async def one(number: int) -> None:
        async with limit.place():
            order.append(number)
            assert limit.in_flight <= 2
            await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(*(one(number) for number in range(20)))
    assert order == list(range(20))
    assert (limit.in_flight, limit.free, limit.waiting) == (0, 2, 0)


async def test_an_adaptive_limit_grows_with_good_latency() -> None:
    limit = Limit(Adaptive(min=1, max=8))

    async def one() -> None:
        async with limit.place():
            await asyncio.sleep(0.001)

    async with asyncio.timeout(30):
        while limit.limit < 4:
            await asyncio.gather(*(one() for _ in range(50)))
    assert limit.in_flight == 0


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["end", "cancel", "fail"])),
        max_size=25,
    ),
)
def test_no_place_is_lost_whoever_is_cancelled_or_fails(size: int, calls: list[tuple[int, int, str]]) -> None:
    async def scenario() -> None:
        limit = Limit(size)

        async def one(turns: int, how: str) -> None:
            async with limit.place():
                assert limit.in_flight <= size
                for _ in range(turns):
                    await asyncio.sleep(0)
                if how == "fail":
                    raise KeyError

        tasks = []
        for before, turns, how in calls:
            tasks.append(asyncio.ensure_future(one(turns, how)))
            for _ in range(before):
                await asyncio.sleep(0)
            if how == "cancel":
                tasks[-1].cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (limit.in_flight, limit.waiting, limit.free) == (0, 0, size)

    asyncio.run(scenario())


def test_a_limit_is_a_number_from_1_on() -> None:
    with pytest.raises(ValueError, match="from 1 on"):
        Limit(0)


@pytest.mark.parametrize(
    ("argument", "variable", "useful", "chosen"),
    [
        (5, "8", 64, 5),
        (Adaptive(), "8", 64, Adaptive()),
        (None, "8", 64, None),
        (None, "1", 64, 64),
        (None, "", 64, 64),
        (None, "", 1, None),
        (None, "1", 1, None),
    ],
)
def test_slots_when_nobody_says(
    argument: int | Adaptive | None, variable: str, useful: int, chosen: int | Adaptive | None
) -> None:
    environ = {"MAX_REQUEST_CONCURRENCY": variable}
    assert choose(argument, environ, useful=useful) == chosen


@pytest.mark.parametrize(("value", "slots"), [(None, 3), (7, 7), (Adaptive(max=9), 9)])
def test_most(value: int | Adaptive | None, slots: int) -> None:
    assert most(value, {"MAX_REQUEST_CONCURRENCY": "3"}) == slots


def test_slots_follow_the_lowest_limit_that_somebody_sets() -> None:
    freed: list[int] = []
    slots = Slots(8, lambda: freed.append(slots.free))
    assert slots.free == 8
    slots.set_limit("latency", 3)
    slots.set_limit("processes", 4)
    assert all(slots.acquire() for _ in range(3))
    assert not slots.acquire()
    slots.set_limit("latency", 2)
    assert slots.free == 0
    assert freed == []
    slots.set_limit("latency", 10)
    assert (slots.free, freed) == (1, [1])
    slots.release()
    assert slots.free == 2
