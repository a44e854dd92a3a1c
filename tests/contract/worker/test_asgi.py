"""An ASGI application in the worker's process: scopes, streams, cancellation, lifespan, trouble."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nvcf_worker.errors import NotReady
from nvcf_worker.run.asgi.host import AsgiHost
from tests.contract.worker.conftest import StartProcess, StartWorker
from tests.functions import asgi_app
from tests.support.peers.calls import BrokenResponse
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.workers import LocalWorker
from tests.support.waiting import eventually

SOURCE = Path(asgi_app.__file__).read_text()


@pytest.fixture
async def host() -> AsyncIterator[AsgiHost]:
    asgi_app.NOTES.clear()
    host = AsgiHost(asgi_app.app, root_path="/base")
    await host.start()
    yield host
    await host.stop()


@pytest.fixture
async def worker(host: AsgiHost, start_worker: StartWorker) -> LocalWorker:
    worker = start_worker(host.handle)
    await worker.ready()
    return worker


async def test_the_scope_says_what_was_sent(gateway: PeerGateway, worker: LocalWorker) -> None:
    headers = {"Host": "some.example:8443", "X-Own": "a", "X-Forwarded-Proto": "https"}
    call = await gateway.invoke(b"hello", method="PUT", path="/a%2Fb/%C3%A4?x=1&y=%20", headers=headers)
    answer = await call.answer()
    assert (answer.status, answer.headers["content-type"]) == (201, "application/json")
    scope = answer.json()
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert (scope["type"], scope["http_version"], scope["method"], scope["scheme"]) == (
        "http",
        "1.1",
        "PUT",
        "https",
    )
    assert (scope["path"], scope["raw_path"]) == ("/base/a/b/ä", "/base/a%2Fb/%C3%A4")
    assert (scope["query_string"], scope["root_path"]) == ("x=1&y=%20", "/base")
    assert (scope["client"], scope["server"]) == (None, ["some.example", 8443])
    assert ["x-own", "a"] in scope["headers"]
    assert ["nvcf-reqid", call.request_id] in scope["headers"]
    assert (scope["model"], scope["request"], scope["body"]) == ("loaded", call.request_id, "hello")


async def test_streams_both_ways_with_the_head_at_once(gateway: PeerGateway, worker: LocalWorker) -> None:
    asked: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def rest() -> AsyncIterator[bytes]:
        yield b""  # the gateway's head at once
        while (piece := await asked.get()) is not None:
            yield piece

    call = await gateway.invoke(b"", path="/stream", rest=rest())
    async with asyncio.timeout(20):
        status, headers = await call.head
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        for number in range(20):
            await asked.put(b"piece %d" % number)
            assert await call.chunks.get() == b"piece %d" % number
        await asked.put(None)
        assert [item async for item in call.iterate()] == []


async def test_a_body_of_known_length(gateway: PeerGateway, worker: LocalWorker) -> None:
    answer = await (await gateway.invoke(path="/large")).answer()
    assert answer.headers["content-length"] == "3000000"
    assert answer.body == b"y" * 3_000_000
    head = await (await gateway.invoke(path="/large", method="HEAD")).answer()
    assert (head.headers["content-length"], head.body) == ("3000000", b"")


@pytest.mark.parametrize(
    ("path", "note"), [("/waits", "http.disconnect"), ("/endless", ""), ("/stubborn", "cancelled")]
)
async def test_the_application_hears_that_its_caller_left(
    gateway: PeerGateway, worker: LocalWorker, path: str, note: str
) -> None:
    call = await gateway.invoke(path=path)
    if path == "/endless":
        await asyncio.wait_for(asyncio.shield(call.head), 20)
    else:
        await eventually(lambda: len(asgi_app.NOTES) > 1, "called")
    await gateway.cancel(call)
    await eventually(lambda: worker.worker.in_flight == 0, "ended")
    assert asgi_app.NOTES[-1] in ([note] if note else ["http.disconnect", "CallerLeft"])
    assert worker.worker.free_slots == 4


async def test_work_after_the_answer_holds_nobody_up(
    gateway: PeerGateway, host: AsgiHost, worker: LocalWorker
) -> None:
    assert (await (await gateway.invoke(path="/background")).answer()).body == b"{}"
    await eventually(lambda: worker.worker.in_flight == 0, "acknowledged")
    await host.stop()
    assert asgi_app.NOTES == ["startup", "background done", "shutdown"]


@pytest.mark.parametrize("path", ["/raises", "/silent"])
async def test_an_application_that_fails(gateway: PeerGateway, worker: LocalWorker, path: str) -> None:
    call = await gateway.invoke(path=path)
    answer = await call.answer()
    assert answer.status == 500
    assert call.request_id in answer.json()["detail"]
    assert b"secret" not in answer.body


async def test_an_application_that_fails_in_the_middle(gateway: PeerGateway, worker: LocalWorker) -> None:
    with pytest.raises(BrokenResponse):
        await (await gateway.invoke(path="/raises-late")).answer()


async def test_lifespan_of_all_kinds() -> None:
    async def none(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    async def refuses(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no model"})

    async def breaks(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        raise ValueError("no disk")

    host = AsgiHost(none)
    await host.start()
    await host.stop()
    for app, reason in ((refuses, "no model"), (breaks, "no disk")):
        host = AsgiHost(app)
        with pytest.raises(NotReady, match=reason):
            await host.start()
        await host.stop()


async def test_served_by_its_signature_started_and_shut_down_in_order(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    process = start_process(SOURCE, environment={"NOTES": str(notes)})
    await process.ready()
    scope = (await (await gateway.invoke(b"x")).answer()).json()
    assert (scope["model"], scope["root_path"], scope["server"]) == ("loaded", "", ["localhost", 80])
    call = await gateway.invoke(path="/background")
    await call.answer()
    process.send_signal(signal.SIGTERM)
    assert await process.exit_code() == 0
    assert notes.read_text().split("\n")[:-1] == ["startup", "background done", "shutdown"]
