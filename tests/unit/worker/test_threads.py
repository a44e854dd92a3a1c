"""Threads for blocking handlers and the hand-over of their items."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from nvcf_worker.errors import HandlerFailed
from nvcf_worker.function.cancellation import Cancellation
from nvcf_worker.run.threads import ThreadPool, ThreadStream


@pytest.fixture
async def pool() -> ThreadPool:
    return ThreadPool(asyncio.get_running_loop())


async def test_results_errors_and_context(pool: ThreadPool) -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    assert await pool.start(lambda announce: variable.get()) == 5

    def fail(announce: object) -> None:
        raise KeyError("x")

    def stop(announce: object) -> None:
        raise StopIteration

    with pytest.raises(KeyError):
        await pool.start(fail)
    with pytest.raises(HandlerFailed, match="StopIteration"):
        await pool.start(stop)
    pool.close()


async def test_as_many_jobs_run_as_are_started_and_threads_are_used_again(pool: ThreadPool) -> None:
    barrier = threading.Barrier(10)
    async with asyncio.timeout(10):
        await asyncio.gather(*(pool.start(lambda announce: barrier.wait(10)) for _ in range(10)))
        idents = {await pool.start(lambda announce: threading.get_ident()) for _ in range(50)}
    assert len(idents) <= 10
    pool.close()


async def test_closing_ends_the_wait_for_jobs_that_never_end(pool: ThreadPool) -> None:
    release = threading.Event()
    future = pool.start(lambda announce: release.wait(10))
    pool.close()
    with pytest.raises(asyncio.CancelledError):
        await future
    release.set()


async def test_every_chunk_arrives_in_order_and_the_producer_waits(pool: ThreadPool) -> None:
    stream = ThreadStream(asyncio.get_running_loop())
    ahead = 0
    most = 0
    count = 2000

    def produce(announce: object) -> None:
        nonlocal ahead, most
        for number in range(count):
            chunk = b"%08d" % number * 128
            ahead += len(chunk)
            most = max(most, ahead)
            assert stream.put(chunk)
        stream.finish()

    done = pool.start(produce)
    received = b""
    async for chunk in stream:
        ahead -= len(chunk)
        received += chunk
        await asyncio.sleep(0)
    await done
    assert received == b"".join(b"%08d" % number * 128 for number in range(count))
    # The limit, one chunk more, and what the consumer holds at the moment.
    assert most <= 2 * ThreadStream.LIMIT + 2 * 1024
    pool.close()


async def test_closing_waits_for_the_producer_through_cancellation(pool: ThreadPool) -> None:
    stream = ThreadStream(asyncio.get_running_loop())
    release = threading.Event()

    def produce(announce: object) -> None:
        while stream.put(b"x" * ThreadStream.LIMIT):
            pass
        release.wait(10)
        stream.finish()

    pool.start(produce)
    await anext(stream)
    closing = asyncio.create_task(stream.aclose())
    await asyncio.sleep(0.05)
    closing.cancel()
    await asyncio.sleep(0.05)
    assert not closing.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    pool.close()


async def test_a_producers_error_reaches_the_consumer_after_its_chunks(pool: ThreadPool) -> None:
    stream = ThreadStream(asyncio.get_running_loop())

    def produce(announce: object) -> None:
        stream.put(b"a")
        stream.finish(KeyError("late"))

    await pool.start(produce)
    assert await anext(stream) == b"a"
    with pytest.raises(KeyError):
        await anext(stream)
    pool.close()


def test_the_cancellation_flag() -> None:
    flag = Cancellation()
    assert not flag
    assert not flag.wait(0.01)
    waiter = threading.Thread(target=flag.wait)
    waiter.start()
    flag.set()
    waiter.join(5)
    assert not waiter.is_alive()
    assert flag
    assert flag.is_set()
    assert Cancellation().wait(0.0) is False
