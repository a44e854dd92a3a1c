"""Where the worker sends requests while a child dies, and what it survives."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from nvcf_worker.errors import ConfigurationError, WorkerError
from nvcf_worker.function.response import Reply
from nvcf_worker.run.processes import host as host_module
from nvcf_worker.run.processes.call import Call
from nvcf_worker.run.processes.frames import Frame
from nvcf_worker.run.processes.host import ProcessHost
from nvcf_worker.run.processes.packing import Answer
from tests.support.waiting import eventually


class Child:
    """In place of a process: takes calls, ends when it is told to."""

    launched: list[Child]
    refuses: list[Exception]

    def __init__(self, index: int) -> None:
        self.index = index
        self.calls: dict[int, Call] = {}
        self.process = SimpleNamespace(pid=1000 + len(self.launched))
        self.started_at = 0.0
        self.cut = asyncio.Event()
        self.exited = asyncio.Event()

    @classmethod
    async def launch(cls, index: int, *_: object) -> Child:
        if cls.refuses:
            raise cls.refuses.pop()
        child = cls(index)
        cls.launched.append(child)
        return child

    def begin(self, call: Call) -> None:
        self.calls[call.number] = call
        call.begun.set()

    async def cut_off(self) -> None:
        await self.cut.wait()

    async def exit_code(self) -> int:
        await self.exited.wait()
        return -9

    async def stop(self, patience: float) -> None:
        self.exited.set()

    def answer(self) -> None:
        for call in tuple(self.calls.values()):
            call.on_frame(Frame.REPLY, Answer(200, [], b"").pack())


class Door:
    """The worker, as the host tells it of its capacity."""

    def pause(self) -> None:
        return None

    def resume(self) -> None:
        return None

    def limit_slots(self, source: str, limit: int) -> None:
        self.limit = limit


def asked(name: str) -> Any:
    return SimpleNamespace(id=name, attempt=1, _whole_body=b"", _context=None)


@pytest_asyncio.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[ProcessHost, Door]]:
    """A host of two children."""
    monkeypatch.setattr(host_module, "ChildProcess", Child)
    monkeypatch.setattr(Child, "launched", [], raising=False)
    monkeypatch.setattr(Child, "refuses", [], raising=False)
    host, door = ProcessHost(["x"], [{}, {}], 2), Door()
    await host.start()
    watching = asyncio.create_task(host.watch(door))
    try:
        yield host, door
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_child_that_hears_nothing_gets_nothing_while_it_dies(
    running: tuple[ProcessHost, Door],
) -> None:
    host, door = running
    dying, other = Child.launched
    dying.cut.set()
    await eventually(lambda: door.limit == 2)
    outcome = asyncio.create_task(host.handle(asked("innocent")))
    await eventually(lambda: dying.calls or other.calls)
    assert not dying.calls
    other.answer()
    assert isinstance(await outcome, Reply)


async def test_what_was_in_a_child_that_dies_is_repeated_when_it_is_dead(
    running: tuple[ProcessHost, Door],
) -> None:
    host, _ = running
    dying, other = Child.launched
    outcome = asyncio.create_task(host.handle(asked("first")))
    await eventually(lambda: dying.calls)
    dying.cut.set()
    await asyncio.sleep(0)
    assert not other.calls
    dying.exited.set()
    await eventually(lambda: other.calls)
    other.answer()
    assert isinstance(await outcome, Reply)


async def test_requests_of_a_child_that_dies_do_not_keep_a_worker_from_leaving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_module, "ChildProcess", Child)
    monkeypatch.setattr(Child, "launched", [], raising=False)
    monkeypatch.setattr(Child, "refuses", [], raising=False)
    host, door = ProcessHost(["x"], [{}], 2), Door()
    await host.start()
    watching = asyncio.create_task(host.watch(door))
    outcome = asyncio.create_task(host.handle(asked("first")))
    await eventually(lambda: Child.launched[0].calls)
    Child.launched[0].cut.set()
    await asyncio.sleep(0)
    watching.cancel()
    outcome.cancel()
    await asyncio.wait([watching])
    await host.stop()
    done, _ = await asyncio.wait([outcome], timeout=10)
    assert done == {outcome}


@pytest.mark.parametrize(
    "error", [ConfigurationError("cannot start a child process: Cannot allocate memory"), OSError(24, "fds")]
)
async def test_a_child_that_cannot_be_started_now_is_started_later(
    running: tuple[ProcessHost, Door], error: WorkerError | OSError
) -> None:
    Child.refuses.append(error)
    dying = Child.launched[0]
    dying.cut.set()
    dying.exited.set()
    await eventually(lambda: len(Child.launched) == 3)
    assert Child.launched[2].index == 0


class Unknown:
    """Made by the child only."""

    def __reduce__(self) -> Any:
        return (_fail, ())


def _fail() -> None:
    raise ImportError("no such module here")


async def test_progress_that_only_the_child_can_make_breaks_nothing() -> None:
    told: list[Any] = []
    request = SimpleNamespace(id="one", progress=lambda *what: told.append(what))
    call = Call(1, request, 1, SimpleNamespace(call_ended=lambda call: None))  # type: ignore[arg-type]
    call.on_frame(Frame.PROGRESS, pickle.dumps((10.0, Unknown())))
    call.on_frame(Frame.PROGRESS, pickle.dumps((20.0, None)))
    assert told == [(20.0, None)]
