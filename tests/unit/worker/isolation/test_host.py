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
from nvcf_worker.run.processes.channel import Frame
from nvcf_worker.run.processes.host import ProcessHost
from nvcf_worker.run.processes.packing import PackedResponse
from nvcf_worker.run.processes.remote import RemoteRequest
from tests.support.waiting import eventually


class Child:
    """A stand-in for a process: takes requests, ends when a test ends it."""

    launched: list[Child]
    refuses: list[Exception]

    def __init__(self, index: int) -> None:
        self.index = index
        self.requests: dict[int, RemoteRequest] = {}
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

    def begin(self, request: RemoteRequest) -> None:
        self.requests[request.number] = request
        request.begun.set()

    async def disconnected(self) -> None:
        await self.cut.wait()

    async def exit_code(self) -> int:
        await self.exited.wait()
        return -9

    async def stop(self, patience: float) -> None:
        self.exited.set()

    def respond(self) -> None:
        for request in tuple(self.requests.values()):
            request.on_frame(Frame.REPLY, PackedResponse(200, [], b"").pack())


class Admission:
    """The worker, as the host sees it."""

    def pause(self) -> None:
        return None

    def resume(self) -> None:
        return None

    def limit_slots(self, source: str, limit: int) -> None:
        self.limit = limit


def asked(name: str) -> Any:
    return SimpleNamespace(id=name, attempt=1, _whole_body=b"", _context=None)


@pytest_asyncio.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[ProcessHost, Admission]]:
    """A host of two children."""
    monkeypatch.setattr(host_module, "ChildProcess", Child)
    monkeypatch.setattr(Child, "launched", [], raising=False)
    monkeypatch.setattr(Child, "refuses", [], raising=False)
    host, admission = ProcessHost(["x"], [{}, {}], 2), Admission()
    await host.start()
    watching = asyncio.create_task(host.watch(admission))
    try:
        yield host, admission
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_disconnected_child_gets_no_requests_while_it_dies(
    running: tuple[ProcessHost, Admission],
) -> None:
    host, admission = running
    dying, other = Child.launched
    dying.cut.set()
    await eventually(lambda: admission.limit == 2)
    outcome = asyncio.create_task(host.handle(asked("innocent")))
    await eventually(lambda: dying.requests or other.requests)
    assert not dying.requests
    other.respond()
    assert isinstance(await outcome, Reply)


async def test_what_was_in_a_child_that_dies_is_repeated_when_it_is_dead(
    running: tuple[ProcessHost, Admission],
) -> None:
    host, _ = running
    dying, other = Child.launched
    outcome = asyncio.create_task(host.handle(asked("first")))
    await eventually(lambda: dying.requests)
    dying.cut.set()
    await asyncio.sleep(0)
    assert not other.requests
    dying.exited.set()
    await eventually(lambda: other.requests)
    other.respond()
    assert isinstance(await outcome, Reply)


async def test_requests_of_a_child_that_dies_do_not_keep_a_worker_from_leaving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_module, "ChildProcess", Child)
    monkeypatch.setattr(Child, "launched", [], raising=False)
    monkeypatch.setattr(Child, "refuses", [], raising=False)
    host, admission = ProcessHost(["x"], [{}], 2), Admission()
    await host.start()
    watching = asyncio.create_task(host.watch(admission))
    outcome = asyncio.create_task(host.handle(asked("first")))
    await eventually(lambda: Child.launched[0].requests)
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
    running: tuple[ProcessHost, Admission], error: WorkerError | OSError
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
    reported: list[Any] = []
    request = SimpleNamespace(id="one", progress=lambda *what: reported.append(what))
    remote = RemoteRequest(1, request, 1, lambda _: None)  # type: ignore[arg-type]
    remote.on_frame(Frame.PROGRESS, pickle.dumps((10.0, Unknown())))
    remote.on_frame(Frame.PROGRESS, pickle.dumps((20.0, None)))
    assert reported == [(20.0, None)]
