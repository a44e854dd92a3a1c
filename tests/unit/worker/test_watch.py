"""What is said when the loop or the interpreter stands still."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import time
from collections.abc import Callable

import pytest

from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.run.stall_detector import LagWatch, LoopWatch


def test_a_warning_once_and_at_each_doubling() -> None:
    watch = LagWatch(2.0, 0.0)
    told = []
    for tick in range(1, 41):
        now = tick * 0.5
        found = watch.look(now)
        if found is not None:
            told.append((now, found.interpreter))
    assert told == [(2.0, False), (4.0, False), (8.0, False), (16.0, False)]
    assert watch.beat(20.5) == (20.5, False, True)
    assert watch.beat(21.0) is None
    assert watch.look(21.5) is None


def test_a_watching_thread_that_was_kept_from_running_knows_the_lock_was_held() -> None:
    watch = LagWatch(2.0, 0.0)
    assert watch.look(0.5) is None
    assert watch.look(30.5) == (30.5, True, False)


def test_the_loop_tells_when_it_runs_again_before_the_thread() -> None:
    watch = LagWatch(2.0, 0.0)
    assert watch.beat(30.0) == (30.0, True, False)
    assert watch.look(30.1) is None


def block() -> None:
    time.sleep(0.5)


def hog() -> None:
    # PyDLL keeps the interpreter lock during the call.
    ctypes.PyDLL(None).usleep(600_000)


@pytest.mark.parametrize(
    ("act", "words"), [(block, "blocked the event loop"), (hog, "held the interpreter lock")]
)
async def test_the_handler_and_its_request_are_named(
    act: Callable[[], None], words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvcf_worker.run.stall_detector.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("nvcf_worker.run.stall_detector.BEAT_SECONDS", 0.02)

    class Work:
        request_id = "the-request"

    class Delivered:
        work = Work()
        scope = CancelScope()

    delivery = Delivered()
    watch = LoopWatch("Model.predict", lambda: [delivery], threshold=0.2)  # type: ignore[list-item]
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0.1)

    async def request() -> None:
        if act is hog:
            await asyncio.to_thread(act)
        else:
            act()

    with caplog.at_level(logging.WARNING, "nvcf_worker"):
        delivery.scope.task = asyncio.create_task(request())
        await delivery.scope.task
        async with asyncio.timeout(20):
            while words not in caplog.text:
                await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait([running])
    assert words in caplog.text
    assert "Model.predict" in caplog.text
    assert "the-request" in caplog.text
    assert 'isolation="process"' in caplog.text
    if act is block:
        assert "in block" in caplog.text
