"""`@continuous_batch`: requests join and leave a running loop of steps."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_worker.errors import BadInput, HandlerError
from nvcf_worker.function.handlers import Kind, classify
from nvcf_worker.run.batching.continuous_decorator import ContinuousBatch, continuous_batch
from nvcf_worker.run.batching.settings import Finished


class Counter:
    """Counts each item down to 0; notes what happens."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.finished: list[int] = []
        self.threads: set[int] = set()
        self.set_up = 0

    def setup(self) -> None:
        self.set_up += 1

    def start(self, item: int) -> list[int]:
        if item < 0:
            raise BadInput("negative")
        return [item, item]

    def step(self, active: list[list[int]]) -> list[Any]:
        self.threads.add(threading.get_ident())
        self.steps.append([state[0] for state in active])
        return [self.one(state) for state in active]

    def one(self, state: list[int]) -> Any:
        state[1] -= 1
        return state[1] if state[1] > 0 else Finished(0)

    def finish(self, state: list[int]) -> None:
        self.finished.append(state[0])


class AsyncCounter(Counter):
    async def start(self, item: int) -> list[int]:  # type: ignore[override]
        return super().start(item)

    async def step(self, active: list[list[int]]) -> list[Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().step(active)


async def collect(handler: ContinuousBatch, item: Any) -> list[Any]:
    async with asyncio.timeout(20):
        return [output async for output in await handler(item)]


async def finished(model: Counter, count: int) -> None:
    async with asyncio.timeout(20):
        while len(model.finished) < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", [Counter, AsyncCounter])
async def test_each_gets_its_own_outputs_and_never_more_than_max_active_step(kind: type[Counter]) -> None:
    model = kind()
    handler = continuous_batch(max_active=3)(model)
    results = await asyncio.gather(*(collect(handler, number) for number in range(1, 9)))
    assert results == [list(range(number - 1, -1, -1)) for number in range(1, 9)]
    assert max(map(len, model.steps)) == 3
    await finished(model, 8)
    assert sorted(model.finished) == list(range(1, 9))
    assert model.set_up == 1
    assert len(model.threads) == 1
    assert (threading.get_ident() in model.threads) == (kind is AsyncCounter)


async def test_a_new_request_joins_at_the_next_step_and_overtakes_nobody_s_end() -> None:
    model = AsyncCounter()
    handler = continuous_batch(max_active=4)(model)
    long = await handler(1000)
    await anext(long)
    assert await collect(handler, 2) == [1, 0]
    assert [1000, 2] in model.steps
    await long.aclose()  # type: ignore[attr-defined]


async def test_what_fails_alone_leaves_the_others_running() -> None:
    class Fragile(Counter):
        def one(self, state: list[int]) -> Any:
            return BadInput("thirteen") if state[0] == 13 else super().one(state)

    handler = continuous_batch()(Fragile())
    results = await asyncio.gather(*(collect(handler, item) for item in (3, -1, 13)), return_exceptions=True)
    assert results[0] == [2, 1, 0]
    assert isinstance(results[1], BadInput)
    assert isinstance(results[2], BadInput)


async def test_a_step_that_fails_ends_those_in_it_and_the_next_ones_are_served() -> None:
    class Breaking(Counter):
        def step(self, active: list[list[int]]) -> list[Any]:
            if any(state[0] == 13 for state in active):
                raise RuntimeError("broken")
            return super().step(active)

    handler = continuous_batch()(Breaking())
    with pytest.raises(RuntimeError, match="broken"):
        await collect(handler, 13)
    assert await collect(handler, 2) == [1, 0]


@pytest.mark.parametrize("how", ["aclose", "forgotten"])
async def test_a_reader_that_leaves_frees_its_place(how: str) -> None:
    model = Counter()
    handler = continuous_batch(max_active=1)(model)
    stream: AsyncIterator[Any] | None = await handler(10**9)
    assert stream is not None
    await anext(stream)
    if how == "aclose":
        await stream.aclose()  # type: ignore[attr-defined]
    else:
        stream = None
        gc.collect()
    assert await collect(handler, 1) == [0]
    await finished(model, 2)
    assert model.finished == [10**9, 1]


async def test_a_slow_reader_sits_steps_out_and_holds_nobody_up() -> None:
    model = AsyncCounter()
    handler = continuous_batch(max_active=2, buffer=4)(model)
    slow = await handler(100)
    assert await collect(handler, 50) == list(range(49, -1, -1))
    assert sum(100 in step for step in model.steps) == 4
    assert [output async for output in slow] == list(range(99, -1, -1))


async def test_a_budget_of_costs() -> None:
    model = AsyncCounter()
    handler = continuous_batch(max_active=8, size=float, max_cost=10)(model)
    await asyncio.gather(*(collect(handler, number) for number in (6, 4, 3, 20, 2)))
    assert all(len(step) == 1 or sum(step) <= 10 for step in model.steps)
    assert [6, 4] in model.steps


async def test_a_class_without_start_and_finish() -> None:
    class Echo:
        def step(self, active: list[str]) -> list[Any]:
            return [Finished(text) for text in active]

    handler = continuous_batch()(Echo)
    assert await collect(handler, "a") == ["a"]
    assert handler.__name__ == "Echo"
    assert classify(handler).kind is Kind.ASYNC
    await handler.teardown()


async def test_setup_that_fails_is_told_and_tried_again() -> None:
    class Late(Counter):
        def setup(self) -> None:
            super().setup()
            if self.set_up == 1:
                raise OSError("no model yet")

    handler = continuous_batch()(Late())
    with pytest.raises(OSError, match="no model"):
        await collect(handler, 1)
    assert await collect(handler, 1) == [0]


@pytest.mark.parametrize("arguments", [{"max_active": 0}, {"buffer": 0}, {"size": len}, {"max_active": len}])
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(HandlerError):
        continuous_batch(**arguments)
    with pytest.raises(HandlerError, match="step"):
        continuous_batch()(object)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=20),
    st.integers(1, 4),
)
def test_every_reader_gets_its_whole_stream_whoever_leaves(
    calls: list[tuple[int, int, int]], max_active: int
) -> None:
    """(item, turns before it, outputs after which it leaves; 0 = it stays)."""

    async def scenario() -> None:
        model = AsyncCounter()
        handler = continuous_batch(max_active=max_active, buffer=3)(model)

        async def reader(item: int, leave_after: int) -> list[int]:
            stream, got = await handler(item), []
            async for output in stream:
                got.append(output)
                if len(got) == leave_after:
                    await stream.aclose()  # type: ignore[attr-defined]
                    break
            return got

        tasks = []
        for item, turns, leave_after in calls:
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks.append(asyncio.ensure_future(reader(item, leave_after)))
        async with asyncio.timeout(20):
            await asyncio.wait(tasks)
        await finished(model, sum(item >= 0 for item, *_ in calls))
        for (item, _, leave_after), task in zip(calls, tasks, strict=True):
            if item < 0:
                assert isinstance(task.exception(), BadInput)
                continue
            whole = [0] if item <= 1 else list(range(item - 1, -1, -1))
            assert task.result() == (whole[:leave_after] if leave_after else whole)
        assert all(len(step) <= max_active for step in model.steps)

    asyncio.run(scenario())
