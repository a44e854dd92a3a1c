"""Handlers in child processes: everything a handler can do, and everything that can happen to its process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.contract.worker.conftest import StartProcess
from tests.support.nats_server import NatsServer
from tests.support.peer_gateway import BrokenResponse, PeerGateway
from tests.support.worker_host import WorkerProcess, eventually

FUNCTION = Path(__file__).parent.parent.parent / "functions" / "isolated.py"


class Isolated:
    """A worker of tests/functions/isolated.py, and what its handlers noted."""

    def __init__(self, process: WorkerProcess, notes: Path, gate: Path) -> None:
        self.process = process
        self.path = notes
        self.gate = gate

    def notes(self, text: str) -> list[int]:
        """Process ids that noted this."""
        if not self.path.exists():
            return []
        lines = [line.split(" ", 1) for line in self.path.read_text().splitlines()]
        return [int(pid) for pid, noted in lines if noted == text]

    async def ready(self, processes: int = 1) -> None:
        """Wait until requests can arrive and be run."""
        await self.process.ready()
        await eventually(lambda: self.process.text().count("is ready (pid") == processes, "processes ready")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.process.pid).children()


StartIsolated = Callable[..., Isolated]


@pytest.fixture
async def start(gateway: PeerGateway, broker: NatsServer, tmp_path: Path) -> AsyncIterator[StartIsolated]:
    started: list[WorkerProcess] = []

    def begin(**environment: str) -> Isolated:
        number = len(started)
        notes, gate = tmp_path / f"notes-{number}", tmp_path / f"gate-{number}"
        variables = {"NOTES": str(notes), "GATE": str(gate), **environment}
        process = WorkerProcess(
            str(FUNCTION), gateway, broker, tmp_path, instance=f"instance-{number}", environment=variables
        )
        started.append(process)
        return Isolated(process, notes, gate)

    yield begin
    for process in started:
        process.kill()


async def ask(gateway: PeerGateway, path: str, body: bytes = b"{}", **options: Any) -> Any:
    async with asyncio.timeout(30):
        return await (await gateway.invoke(body, path=path, **options)).answer()


async def test_all_kinds_of_handlers_answer_from_another_process(
    gateway: PeerGateway, start: StartIsolated
) -> None:
    worker = start(PROCESSES="2")
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


async def test_errors_cross_over_as_what_they_are(gateway: PeerGateway, start: StartIsolated) -> None:
    worker = start()
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


async def test_a_body_is_streamed_to_the_child(gateway: PeerGateway, start: StartIsolated) -> None:
    worker = start()
    await worker.ready()
    piece = os.urandom(100_000)

    async def rest() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield piece

    answer = await ask(gateway, "/upload", piece, rest=rest())
    assert answer.json()["size"] == 201 * len(piece)
    assert answer.json()["chunks"] > 10


async def test_a_slow_reader_slows_the_child_and_leaving_stops_it(
    gateway: PeerGateway, start: StartIsolated
) -> None:
    worker = start()
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
async def test_cancellation_reaches_the_child(gateway: PeerGateway, start: StartIsolated, path: str) -> None:
    worker = start(SLOTS="1")
    await worker.ready()
    call = await gateway.invoke(path=path)
    await eventually(lambda: len(worker.notes("start")) == 1, "the handler runs")
    await gateway.cancel(call)
    await eventually(lambda: len(worker.notes("cancelled")) == 1, "it was cancelled")
    assert (await ask(gateway, "/plain")).status == 200


@pytest.mark.parametrize(
    ("how", "told"),
    [("segfault", "SIGSEGV"), ("kill", "SIGKILL"), ("exit", "exit code 7")],
)
async def test_a_crash_is_tried_once_more_and_then_named_in_the_error(
    gateway: PeerGateway, start: StartIsolated, how: str, told: str
) -> None:
    worker = start()
    await worker.ready()
    (first,) = worker.children()
    answer = await ask(gateway, f"/die/{how}")
    assert answer.json()["attempt"] == 2
    assert answer.json()["pid"] != first.pid
    failed = await ask(gateway, f"/die/{how}?always=1")
    assert failed.status == 500
    assert told in failed.json()["detail"]
    assert failed.json()["type"].endswith(":function-process-died")
    assert len(worker.notes("die 2")) == 2
    assert worker.notes("die 3") == []
    assert told in worker.process.text()
    # The worker itself never lost its connection, and goes on.
    assert worker.process.text().count("connected to the broker") == 1
    assert (await ask(gateway, "/plain")).status == 200


async def test_without_retry_a_crash_fails_at_once(gateway: PeerGateway, start: StartIsolated) -> None:
    worker = start(NO_RETRY="1")
    await worker.ready()
    assert (await ask(gateway, "/die/exit")).status == 500
    assert worker.notes("die 2") == []


async def test_a_crash_costs_the_other_process_nothing(gateway: PeerGateway, start: StartIsolated) -> None:
    worker = start(PROCESSES="2", SLOTS="8")
    worker.gate.touch()
    await worker.ready(2)
    calls = [await gateway.invoke(path="/hold") for _ in range(4)]
    await eventually(lambda: len(worker.notes("hold")) == 4, "both processes have work")
    victim, survivor = sorted(set(worker.notes("hold")))
    assert worker.notes("hold").count(victim) == 2
    os.kill(victim, signal.SIGKILL)
    # Whoever was in a crash runs alone the next time: the second waits for an empty process.
    await eventually(lambda: len(worker.notes("hold")) == 5, "the first lost one runs again")
    worker.gate.unlink()
    async with asyncio.timeout(20):
        answers = [(await call.answer()).json() for call in calls]
    assert sorted(answer["attempt"] for answer in answers) == [1, 1, 2, 2]
    assert all(answer["pid"] != victim for answer in answers)
    assert [answer["pid"] for answer in answers if answer["attempt"] == 1] == [survivor] * 2


async def test_a_crash_in_the_middle_of_a_stream_breaks_it(
    gateway: PeerGateway, start: StartIsolated
) -> None:
    worker = start()
    await worker.ready()
    with pytest.raises(BrokenResponse):
        await ask(gateway, "/die_in_stream")
    assert (await ask(gateway, "/plain")).status == 200


async def test_a_held_interpreter_lock_costs_no_request(gateway: PeerGateway, start: StartIsolated) -> None:
    """Held for longer than the ack wait: signals go on, so it is delivered once, and others are served."""
    gateway._ack_wait = 1.0
    worker = start(PROCESSES="2")
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


async def test_a_setup_that_fails_ends_the_worker_with_a_reason(start: StartIsolated) -> None:
    worker = start(FAIL_SETUP="1")
    assert await worker.process.exit_code() == 4
    assert "no weights" in worker.process.text()
    assert "ended before it was ready (exit code 1)" in worker.process.text()


async def test_each_process_sees_its_own_gpus_and_no_credentials(
    gateway: PeerGateway, start: StartIsolated
) -> None:
    worker = start(ATTACHED_GPU_COUNT="2")
    await worker.ready(2)
    assert len(worker.children()) == 2
    calls = await asyncio.gather(*(ask(gateway, "/environment") for _ in range(8)))
    seen = {tuple(answer.json().values()) for answer in calls}
    assert seen == {("0", "1", "0", None), ("1", "1", "1", None)}


async def test_no_child_outlives_a_killed_worker(gateway: PeerGateway, start: StartIsolated) -> None:
    worker = start(PROCESSES="2")
    await worker.ready(2)
    children = worker.children()
    assert len(children) == 2
    worker.process.kill()
    await eventually(lambda: not any(child.is_running() for child in children), "the children have ended")
