"""`@batch`: results, failures, cancellation and streams of single items."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_worker.errors import BadInput, BatchError, Fatal, HandlerError, HandlerFailed, RetryLater
from nvcf_worker.function.handlers import Kind, classify
from nvcf_worker.process import logs
from nvcf_worker.run.batching.decorator import batch
from nvcf_worker.run.batching.settings import suggested_concurrency


async def gather(function: Any, items: list[Any]) -> list[Any]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*(function(item) for item in items), return_exceptions=True)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_calls_go_through_together_and_results_come_back_in_order(kind: str) -> None:
    sizes: list[int] = []

    @batch(max_size=4, max_wait="20ms")
    def plain(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [item * 2 for item in items]

    @batch(max_size=4, max_wait=0.02)
    async def coroutine(items: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return plain.__wrapped__(items)  # type: ignore[attr-defined, no-any-return]

    function = plain if kind == "plain" else coroutine
    assert await gather(function, list(range(10))) == [number * 2 for number in range(10)]
    assert sizes == [4, 4, 2]


async def test_plain_functions_stay_on_one_thread_that_is_not_the_loop_s() -> None:
    @batch(max_size=2, max_wait=0)
    def where(items: list[int]) -> list[int]:
        return [threading.get_ident()] * len(items)

    idents = {ident for _ in range(5) for ident in await gather(where, [1, 2, 3])}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


async def test_an_item_whose_result_is_an_exception_fails_alone() -> None:
    @batch()
    async def halves(items: list[int]) -> list[Any]:
        return [item // 2 if item % 2 == 0 else BadInput(f"{item} is odd") for item in items]

    results = await gather(halves, [2, 3, 4])
    assert results[0] == 1
    assert isinstance(results[1], BadInput)
    assert results[2] == 2


class Panic(BaseException):
    """As extensions written in Rust raise it."""


async def test_a_batch_that_panics_leaves_nobody_waiting() -> None:
    @batch(max_wait=0)
    def inverse(items: list[int]) -> list[float]:
        if 0 in items:
            raise Panic("attempt to divide by zero")
        return [1 / item for item in items]

    async with asyncio.timeout(10):
        results = await gather(inverse, [1, 0, 4])
    assert results[::2] == [1.0, 0.25]
    assert isinstance(results[1], HandlerFailed)
    assert isinstance(results[1].__cause__, Panic)


async def test_a_batch_that_raises_is_tried_again_item_by_item() -> None:
    calls: list[list[int]] = []

    @batch(max_wait=0)
    def inverse(items: list[int]) -> list[float]:
        calls.append(items)
        return [1 / item for item in items]

    results = await gather(inverse, [1, 0, 4])
    assert results[::2] == [1.0, 0.25]
    assert isinstance(results[1], ZeroDivisionError)
    assert calls == [[1, 0, 4], [1], [0], [4]]


@pytest.mark.parametrize("error", [RetryLater(), Fatal("the GPU is gone")])
async def test_what_holds_for_the_instance_is_not_tried_item_by_item(error: Exception) -> None:
    calls = 0

    @batch(max_wait=0)
    def fails(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise error

    assert await gather(fails, [1, 2]) == [error, error]
    assert calls == 1


async def test_without_isolation_all_fail_together_and_nothing_is_called_twice() -> None:
    calls = 0

    @batch(max_wait=0, isolate=False)
    def fails(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise KeyError("x")

    assert [type(result) for result in await gather(fails, [1, 2])] == [KeyError, KeyError]
    assert calls == 1


@pytest.mark.parametrize("result", [[1], "ab", {1: 2, 3: 4}, None, 7])
async def test_a_result_of_another_form_is_told_in_words(result: Any) -> None:
    @batch(max_wait=0)
    async def wrong(items: list[int]) -> Any:
        return result

    results = await gather(wrong, [1, 2])
    assert [type(one) for one in results] == [BatchError, BatchError]
    assert "batch of 2" in str(results[0])


@pytest.mark.parametrize("raised", [StopIteration, StopAsyncIteration, asyncio.CancelledError, SystemExit])
async def test_what_a_caller_could_take_for_its_own_end_is_wrapped(raised: type) -> None:
    @batch(max_wait=0)
    def odd(items: list[int]) -> list[int]:
        raise raised

    (result,) = await gather(odd, [1])
    assert isinstance(result, BatchError | HandlerFailed)


async def test_buckets_and_budget() -> None:
    seen: list[list[str]] = []

    @batch(max_size=8, max_wait="10ms", bucket=len, size=len, max_cost=6)
    async def lengths(items: list[str]) -> list[int]:
        seen.append(items)
        return [len(item) for item in items]

    assert await gather(lengths, ["aa", "b", "cc", "dd", "ee", "f"]) == [2, 1, 2, 2, 2, 1]
    assert sorted(map(len, seen)) == [1, 2, 3]
    assert all(len({len(item) for item in items}) == 1 for items in seen)
    assert all(sum(map(len, items)) <= 6 for items in seen)


async def test_a_cancelled_item_leaves_the_waiting_batch() -> None:
    seen: list[list[int]] = []

    @batch(max_size=3, max_wait=60)
    async def echo(items: list[int]) -> list[int]:
        seen.append(items)
        return items

    gone = asyncio.ensure_future(echo(0))
    first = asyncio.ensure_future(echo(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    assert await gather(echo, [2, 3]) == [2, 3]
    assert await first == 1
    assert seen == [[1, 2, 3]]


async def test_a_batch_that_nobody_waits_for_is_cancelled() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    @batch(max_wait=0)
    async def forever(items: list[int]) -> list[int]:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return items

    calls = [asyncio.ensure_future(forever(number)) for number in range(2)]
    async with asyncio.timeout(10):
        await started.wait()
        calls[0].cancel()
        await asyncio.wait([calls[0]])
        assert not cancelled.is_set()
        calls[1].cancel()
        await cancelled.wait()


async def test_the_next_batch_fills_while_one_runs() -> None:
    gate = asyncio.Event()
    sizes: list[int] = []

    @batch(max_size=16, max_wait=0)
    async def slow(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await gate.wait()
        return items

    calls = [asyncio.ensure_future(slow(0))]
    while not sizes:
        await asyncio.sleep(0)
    for number in range(1, 6):
        calls.append(asyncio.ensure_future(slow(number)))
        await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*calls) == list(range(6))
    assert sizes == [1, 5]


async def test_a_batch_logs_under_no_request_s_id() -> None:
    @batch(max_wait=0)
    async def ids(items: list[int]) -> list[Any]:
        return [logs.request_id.get()] * len(items)

    logs.request_id.set("one")
    assert await ids(1) is None


async def test_methods_have_batches_of_their_own() -> None:
    class Model:
        def __init__(self, factor: int) -> None:
            self.factor = factor
            self.sizes: list[int] = []

        @batch(max_wait=0)
        def scale(self, items: list[int]) -> list[int]:
            self.sizes.append(len(items))
            return [item * self.factor for item in items]

        @batch(max_wait=0)
        async def __call__(self, items: list[int]) -> list[int]:
            return [item + self.factor for item in items]

    one, two = Model(1), Model(10)
    assert [*await asyncio.gather(one.scale(1), two.scale(1), one.scale(2))] == [1, 10, 2]
    assert (one.sizes, two.sizes) == ([2], [1])
    assert await gather(two, [1, 2]) == [11, 12]
    assert classify(one).kind is Kind.ASYNC
    assert classify(one.scale).kind is Kind.ASYNC


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 6),
)
def test_every_caller_gets_its_own_result_whatever_is_cancelled_or_fails(
    calls: list[tuple[int, int, bool]], max_size: int
) -> None:
    """Random turns between arrivals, some cancelled, some failing: the others get what is theirs, once."""

    async def scenario() -> None:
        seen: list[int] = []

        @batch(max_size=max_size, max_wait=0, bucket=lambda item: item[1] % 2)
        async def work(items: list[tuple[int, int]]) -> list[Any]:
            await asyncio.sleep(0)
            if any(kind == 4 for _, kind in items):
                raise ValueError("bad")
            seen.extend(number for number, _ in items)
            return [KeyError(number) if kind == 3 else number for number, kind in items]

        tasks = []
        for number, (turns, kind, cancel) in enumerate(calls):
            task = asyncio.ensure_future(work((number, kind)))
            tasks.append((number, kind, cancel, task))
            for _ in range(turns):
                await asyncio.sleep(0)
            if cancel:
                task.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait([task for *_, task in tasks])
        assert len(seen) == len(set(seen))
        for number, kind, cancel, task in tasks:
            if cancel and task.cancelled():
                continue
            if kind in (3, 4):
                assert isinstance(task.exception(), KeyError if kind == 3 else ValueError)
            else:
                assert task.result() == number

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_size": 0}, "max_size"),
        ({"max_size": True}, "max_size"),
        ({"max_wait": "soon"}, "max_wait"),
        ({"max_wait": -1}, "max_wait"),
        ({"size": len}, "max_cost"),
        ({"size": len, "max_cost": 0}, "max_cost"),
        ({"parallel": 0}, "parallel"),
        ({"max_size": len}, "parentheses"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(HandlerError, match=text):
        batch(**arguments)


def test_slots_for_two_batches_are_suggested() -> None:
    @batch(max_size=700, parallel=2)
    def function(items: list[int]) -> list[int]:
        return items

    assert suggested_concurrency() == 2800
    del function
    gc.collect()
    assert suggested_concurrency() < 2800
