"""Queues in front of a backend: they never block, hold a bounded number, and count what they drop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from nvcf_otel.delivery import SAY_AGAIN, Delivery, Drops, Reports
from nvcf_otel.settings import QueueSettings
from tests.unit.otel.clocks import Clock


class Result(NamedTuple):
    name: str


class Backend:
    """An exporter that can be held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.result = "SUCCESS"
        self.closed = False

    def export(self, batch: Sequence[int], /) -> Result:
        self.open.wait(20)
        if self.result == "RAISE":
            raise OSError("broken")
        self.batches.append(list(batch))
        return Result(self.result)

    def shutdown(self) -> None:
        self.closed = True
        self.open.set()


def delivery(backend: Backend, drops: Drops, size: int = 10, batch: int = 4) -> Delivery[int]:
    reports = Reports("traces", "nowhere")
    return Delivery("traces", lambda: backend, QueueSettings(size, batch, 0.01), drops, reports)


def test_everything_arrives_in_order_and_in_batches() -> None:
    backend, drops = Backend(), Drops()
    queue = delivery(backend, drops, size=100)
    for number in range(10):
        queue.put(number)
    assert queue.flush(10)
    assert [number for batch in backend.batches for number in batch] == list(range(10))
    assert all(len(batch) <= 4 for batch in backend.batches)
    assert not drops.all()
    queue.close(5)


def test_a_backend_that_hangs_makes_the_queue_drop_and_never_wait() -> None:
    backend, drops = Backend(), Drops()
    backend.open.clear()
    queue = delivery(backend, drops)
    for number in range(100):
        queue.put(number)
    # At most a batch is being sent and a queue waits.
    assert 100 - 14 <= drops.all()["traces"] <= 90
    assert not queue.flush(0.05)
    began = time.monotonic()
    queue.close(0.2)
    assert time.monotonic() - began < 10
    assert backend.closed
    queue.put(1)
    assert drops.all()["traces"] >= 91


@pytest.mark.parametrize("result", ["FAILURE", "RAISE"])
def test_what_a_backend_refuses_is_counted(result: str) -> None:
    backend, drops = Backend(), Drops()
    backend.result = result
    queue = delivery(backend, drops)
    for number in range(3):
        queue.put(number)
    assert queue.flush(10)
    assert drops.all() == {"traces": 3}
    backend.result = "SUCCESS"
    queue.put(4)
    assert queue.flush(10)
    assert backend.batches[-1] == [4]
    queue.close(5)


def test_a_forked_child_has_a_thread_of_its_own_and_sends_nothing_of_its_parent() -> None:
    backend, drops = Backend(), Drops()
    backend.open.clear()
    queue = delivery(backend, drops, size=100)
    for number in range(3):
        queue.put(number)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run here.
        try:
            backend.open = threading.Event()
            backend.open.set()
            backend.batches = []
            queue.put(42)
            arrived = queue.flush(10)
            names = [each.name for each in threading.enumerate()]
            told = f"{arrived} {backend.batches} {names.count('nvcf-telemetry-traces')}"
            os.write(writer, told.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).decode() == "True [[42]] 1"
    backend.open.set()
    assert queue.flush(10)
    assert [number for batch in backend.batches for number in batch] == [0, 1, 2]
    queue.close(5)


def test_a_backend_that_is_away_is_told_of_once_and_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    reports = Reports("traces", "http://c:4317", clock)
    reports.reason = "connection refused"
    for _ in range(5):
        reports.failed()
    assert [record.message for record in caplog.records] == [
        "traces cannot be sent to http://c:4317 and are dropped: connection refused"
    ]
    clock.now += SAY_AGAIN
    reports.failed()
    reports.succeeded()
    reports.succeeded()
    assert [record.message for record in caplog.records][2:] == ["traces arrive at http://c:4317 again"]
