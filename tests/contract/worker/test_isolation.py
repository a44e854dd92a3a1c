"""Handlers in child processes: everything a handler can do in one process works there, too."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import psutil
import pytest

from tests.contract.worker.conftest import StartProcess
from tests.contract.worker.isolated_worker import StartIsolated, ask
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


async def test_all_kinds_of_handlers_answer_from_another_process(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated(PROCESSES="2")
    await worker.ready(2)
    pids = {child.pid for child in worker.children()}
    assert len(pids) == 2
    assert set(worker.notes("setup")) == pids
    for path in ("/plain", "/coroutine"):
        answer = await ask(gateway, path, b'{"a":1}')
        assert answer.status == 200
        assert answer.json()["body"] == {"a": 1}
        assert answer.json()["pid"] in pids
    expected = "".join(f"{number}\n" for number in range(3000)).encode()
    for path in ("/generator", "/async_generator"):
        answer = await ask(gateway, f"{path}?count=3000")
        assert answer.body == expected
        assert answer.headers["content-type"] == "text/plain"
    assert (await ask(gateway, "/large")).body == bytes(range(256)) * 4096 * 5
    # What a child logs carries the request's id.
    assert any(
        '"plain handler"' in line and "request_id" in line for line in worker.process.text().splitlines()
    )
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.process.exit_code() == 0
    assert set(worker.notes("teardown")) == pids
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_errors_cross_over_as_what_they_are(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated()
    await worker.ready()
    assert (await ask(gateway, "/bad")).json()["detail"] == "not like this"
    assert (await ask(gateway, "/nothing")).status == 404
    assert (await ask(gateway, "/plain", method="DELETE")).status == 405
    failed = await ask(gateway, "/fails")
    assert failed.status == 500
    assert b"KeyError" not in failed.body
    assert "KeyError: 'inside'" in worker.process.text()
    assert "in fails" in worker.process.text()
    assert (await ask(gateway, "/later")).json() == {"attempt": 2}
    assert (await ask(gateway, "/panics")).status == 500
    assert "Panic: index out of bounds" in worker.process.text()


async def test_a_body_is_streamed_to_the_child(gateway: PeerGateway, start_isolated: StartIsolated) -> None:
    worker = start_isolated()
    await worker.ready()
    piece = os.urandom(100_000)

    async def rest() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield piece

    answer = await ask(gateway, "/upload", piece, rest=rest())
    assert answer.json()["size"] == 201 * len(piece)
    assert answer.json()["chunks"] > 10


async def test_a_slow_reader_slows_the_child_and_leaving_stops_it(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated()
    await worker.ready()
    call = await gateway.invoke(path="/endless")
    await call.head
    parts = call.iterate()
    await anext(parts)
    processes = [psutil.Process(worker.process.process.pid), *worker.children()]
    before = [process.memory_info().rss for process in processes]
    for _ in range(20):
        await asyncio.sleep(0.1)
        for process, size in zip(processes, before, strict=True):
            assert process.memory_info().rss - size < 32 * 2**20
    await gateway.cancel(call)
    await eventually(lambda: len(worker.notes("closed")) == 1, "the generator was closed")


@pytest.mark.parametrize("path", ["/until_cancelled", "/waits"])
async def test_cancellation_reaches_the_child(
    gateway: PeerGateway, start_isolated: StartIsolated, path: str
) -> None:
    worker = start_isolated(SLOTS="1")
    await worker.ready()
    call = await gateway.invoke(path=path)
    await eventually(lambda: len(worker.notes("start")) == 1, "the handler runs")
    await gateway.cancel(call)
    await eventually(lambda: len(worker.notes("cancelled")) == 1, "it was cancelled")
    assert (await ask(gateway, "/plain")).status == 200


async def test_a_held_interpreter_lock_costs_no_request(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    """Held for longer than the ack wait: signals go on, so it is delivered once, and others are served."""
    gateway._ack_wait = 1.0
    worker = start_isolated(PROCESSES="2")
    await worker.ready(2)
    hog = asyncio.create_task(ask(gateway, "/hog?seconds=4"))
    await eventually(lambda: len(worker.notes("hog")) == 1, "the lock is held")
    for _ in range(10):
        assert (await ask(gateway, "/plain")).status == 200
    assert not hog.done()
    assert (await hog).json() == {"attempt": 1}
    assert len(worker.notes("hog")) == 1


HOGGING = """
import asyncio, ctypes, time
def hog(request):
    ctypes.PyDLL(None).sleep(3)
    return {"attempt": request.attempt}
async def block(request):
    time.sleep(3)
    return {"attempt": request.attempt}
"""


@pytest.mark.parametrize(
    ("handler", "told"), [("hog", "hog held the interpreter lock"), ("block", "block blocked the event loop")]
)
async def test_in_one_process_a_held_lock_is_warned_about(
    gateway: PeerGateway, start_process: StartProcess, handler: str, told: str
) -> None:
    process = start_process(HOGGING, handler)
    await process.ready()
    call = await gateway.invoke()
    assert (await call.answer()).json() == {"attempt": 1}
    await eventually(lambda: told in process.text(), "the warning")
    line = next(line for line in process.text().splitlines() if told in line)
    assert call.request_id in line
    assert "isolation=" in line


async def test_a_setup_that_fails_ends_the_worker_with_a_reason(start_isolated: StartIsolated) -> None:
    worker = start_isolated(FAIL_SETUP="1")
    assert await worker.process.exit_code() == 4
    assert "no weights" in worker.process.text()
    assert "ended before it was ready (exit code 1)" in worker.process.text()


async def test_each_process_sees_its_own_gpus_and_no_credentials(
    gateway: PeerGateway, start_isolated: StartIsolated
) -> None:
    worker = start_isolated(ATTACHED_GPU_COUNT="2")
    await worker.ready(2)
    assert len(worker.children()) == 2
    calls = await asyncio.gather(*(ask(gateway, "/environment") for _ in range(8)))
    seen = {tuple(answer.json().values()) for answer in calls}
    assert seen == {("0", "1", "0", None), ("1", "1", "1", None)}


async def test_no_child_outlives_a_killed_worker(gateway: PeerGateway, start_isolated: StartIsolated) -> None:
    worker = start_isolated(PROCESSES="2")
    await worker.ready(2)
    children = worker.children()
    assert len(children) == 2
    worker.process.kill()
    await eventually(lambda: not any(child.is_running() for child in children), "the children have ended")
