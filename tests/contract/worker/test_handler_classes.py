"""Handler classes: set-up, tear-down, health; errors that return requests or end the worker."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvcf_broker.process import free_port
from nvcf_worker import App, Fatal, NotFound, Request, RetryLater, SyncRequest
from nvcf_worker.errors import InstanceBroken, StartupError
from tests.contract.worker.conftest import StartProcess, StartWorker
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import WAIT, eventually


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


# --- lives ---------------------------------------------------------------------------------------------


async def test_a_class_is_made_set_up_warmed_up_and_torn_down(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    steps: list[str] = []
    gate = asyncio.Event()

    class Model:
        def __init__(self) -> None:
            steps.append("made")

        def setup(self) -> None:
            steps.append("set up")
            self.factor = 3

        async def warmup(self) -> None:
            steps.append("warm")
            await gate.wait()

        def __call__(self, request: SyncRequest) -> Any:
            return request.json() * self.factor

        async def teardown(self) -> None:
            steps.append("torn down")

    await gateway.provision()
    worker = start_worker(Model)
    call = await gateway.invoke(b"5")
    await eventually(lambda: steps == ["made", "set up", "warm"], "warming up")
    assert not worker.worker.ready
    assert not call.head.done()
    gate.set()
    await worker.ready()
    assert (await call.answer()).json() == 15
    assert (await (await gateway.invoke(b"2")).answer()).json() == 6
    await worker.stop()
    assert steps == ["made", "set up", "warm", "torn down"]


async def test_an_instance_may_have_a_life_and_be_a_coroutine(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    class Model:
        def __init__(self, name: str) -> None:
            self.name, self.loaded = name, False

        async def setup(self) -> None:
            self.loaded = True

        async def __call__(self, request: Request) -> Any:
            return [self.name, self.loaded]

    await start_worker(Model("mine")).ready()
    assert (await (await gateway.invoke()).answer()).json() == ["mine", True]


async def test_a_failed_setup_ends_the_worker(gateway: PeerGateway, start_worker: StartWorker) -> None:
    class Model:
        def setup(self) -> None:
            raise OSError("no weights")

        def __call__(self, request: SyncRequest) -> Any: ...

    worker = start_worker(Model)
    with pytest.raises(StartupError, match="Model could not be set up: OSError: no weights"):
        await asyncio.wait_for(worker.task, WAIT)


# --- errors --------------------------------------------------------------------------------------------


async def test_retry_later_gives_the_request_to_another_worker(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    refused: list[int] = []

    async def busy(request: Request) -> Any:
        refused.append(request.attempt)
        raise RetryLater("out of memory", after=0.3)

    first = start_worker(busy, instance="first", concurrency=1)
    await first.ready()
    call = await gateway.invoke()
    await eventually(lambda: bool(refused), "refused once")
    assert not call.head.done()
    await first.stop()
    await start_worker(lambda request: f"attempt {request.attempt}", instance="second").ready()
    answer = await call.answer()
    assert answer.status == 200
    assert answer.body == f"attempt {len(refused) + 1}".encode()


async def test_retry_later_ends_at_the_last_try(gateway: PeerGateway, start_worker: StartWorker) -> None:
    attempts: list[int] = []

    def busy(request: SyncRequest) -> Any:
        attempts.append(request.attempt)
        raise RetryLater(after=0)

    await start_worker(busy).ready()
    answer = await (await gateway.invoke()).answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert attempts == [1, 2, 3, 4, 5]
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_fatal_drains_the_worker_and_the_request_goes_to_another(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    gate = asyncio.Event()

    async def handler(request: Request) -> Any:
        if await request.read() == b"break":
            raise Fatal("the GPU has fallen off the bus")
        await gate.wait()
        return "finished"

    worker = start_worker(handler)
    await worker.ready()
    other = await gateway.invoke(b"other")
    await eventually(lambda: worker.worker.in_flight == 1, "another request is in flight")
    call = await gateway.invoke(b"break")
    await eventually(lambda: not worker.worker.ready, "not ready any more")
    gate.set()
    assert (await other.answer()).body == b"finished"
    with pytest.raises(InstanceBroken, match="fallen off the bus"):
        await asyncio.wait_for(worker.task, WAIT)
    assert not call.head.done()
    await start_worker(lambda request: "healthy", instance="second").ready()
    assert (await call.answer()).body == b"healthy"


async def test_fatal_is_the_exit_code_and_the_reason(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    source = """
from nvcf_worker import Fatal

def handler(request):
    raise Fatal("broken for good")
"""
    process = start_process(source)
    await process.ready()
    await gateway.invoke()
    assert await process.exit_code() == 3
    reason = json.loads((tmp_path / "instance-1" / "nvcf-worker-exit.json").read_text())
    assert (reason["code"], reason["category"], reason["text"]) == (3, "fatal", "broken for good")


async def test_a_request_that_kills_every_worker_is_answered_in_the_end(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path
) -> None:
    """The caller gets a problem and no further worker dies; successors hand back what killed the last one."""
    source = f"""
import os, signal

def handler(request):
    if request.read() == b"kill":
        with open({str(tmp_path / "killed")!r}, "a") as file:
            file.write(str(request.attempt))
        os.kill(os.getpid(), signal.SIGKILL)
    return "fine"
"""
    await gateway.provision()
    await gateway.invoke(b"kill")
    for _ in range(5):
        process = start_process(source)
        assert await process.exit_code() == -signal.SIGKILL
    last = start_process(source)
    assert (await (await gateway.invoke(b"x")).answer()).body == b"fine"
    assert last.process.poll() is None
    assert (tmp_path / "killed").read_text() == "12345"


async def test_not_found(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler(request: SyncRequest) -> Any:
        raise NotFound("no voice of that name")

    await start_worker(handler).ready()
    answer = await (await gateway.invoke()).answer()
    assert answer.status == 404
    assert answer.json() == {
        "type": "urn:inference-service:problem-details:not-found",
        "title": "Not Found",
        "status": 404,
        "detail": "no voice of that name",
    }


# --- routes --------------------------------------------------------------------------------------------


def _app(steps: list[str]) -> App:
    app = App()

    @app.setup
    def load() -> None:
        steps.append("set up")

    @app.teardown
    async def unload() -> None:
        steps.append("torn down")

    @app.route("/v1/embed")
    def embed(request: SyncRequest) -> Any:
        return {"embed": request.json()}

    @app.route("/v1/items/{item}", methods=["GET", "DELETE"])
    async def item(request: Request, item: int, limit: int = 10, tag: list[str] | None = None) -> Any:
        return {"item": item, "limit": limit, "method": request.method, "path": request.path_params}

    @app.route("/files/{name:path}", methods=["GET"], media_type="text/x")
    async def files(name: str) -> str:
        return name

    @app.route("/model", methods=["POST"])
    class Model:
        def setup(self) -> None:
            steps.append("model")

        def __call__(self, request: SyncRequest) -> Any:
            yield "a"
            yield "b"

    return app


async def test_routes(gateway: PeerGateway, start_worker: StartWorker) -> None:
    steps: list[str] = []
    worker = start_worker(_app(steps))
    await worker.ready()
    assert steps == ["set up", "model"]
    off = {"nvcf-feature-disable-worker-compatibility": "true"}

    async def ask(method: str, path: str, body: bytes = b"") -> Any:
        return await (await gateway.invoke(body, method=method, path=path, headers=off)).answer()

    assert (await ask("POST", "/v1/embed", b"[1]")).json() == {"embed": [1]}
    found = await ask("GET", "/v1/items/7?limit=3")
    assert found.json() == {"item": 7, "limit": 3, "method": "GET", "path": {"item": "7"}}
    file = await ask("GET", "/files/a/b%20c.txt")
    assert (file.body, file.headers["content-type"]) == (b"a/b c.txt", "text/x")
    assert (await ask("HEAD", "/files/x")).status == 200
    assert (await ask("POST", "/model")).body == b"ab"
    missing = await ask("GET", "/nothing")
    assert (missing.status, missing.headers["content-type"]) == (404, "application/problem+json")
    wrong = await ask("PUT", "/v1/items/7")
    assert (wrong.status, wrong.headers["allow"]) == (405, "DELETE, GET")
    bad = await ask("GET", "/v1/items/seven?limit=x")
    assert bad.status == 422
    assert [error["field"] for error in bad.json()["errors"]] == ["item", "limit"]
    await worker.stop()
    assert steps == ["set up", "model", "torn down"]


# --- context -------------------------------------------------------------------------------------------


async def test_what_a_request_knows(
    gateway: PeerGateway, start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def handler(request: SyncRequest) -> Any:
        request.log.info("seen by %s", "the function")
        return {
            "key": request.idempotency_key,
            "trace": dict(request.trace_context),
            "params": dict(request.path_params),
            "left": request.time_left > 1000,
        }

    await start_worker(handler).ready()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"Idempotency-Key": "one", "NVCF-POLL-SECONDS": "2000"}
    call = await gateway.invoke(headers=headers, trace=trace)
    assert (await call.answer()).json() == {
        "key": "one",
        "trace": {"traceparent": trace},
        "params": {},
        "left": True,
    }
    record = next(record for record in caplog.records if record.name == "function")
    assert record.getMessage() == "seen by the function"
    assert record.__dict__["request_id"] == call.request_id


UNHEALTHY = """
import asyncio, os, pathlib
from nvcf_worker import serve
class Model:
    def health(self):
        return not pathlib.Path(os.environ["BROKEN"]).exists()
    async def __call__(self, request):
        pathlib.Path(os.environ["BROKEN"]).touch()
        while not pathlib.Path(os.environ["GATE"]).exists():
            await asyncio.sleep(0.05)
        return "finished"
if __name__ == "__main__":
    serve(Model, isolation=os.environ["ISOLATION"])
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_an_unhealthy_instance_finishes_its_requests_and_leaves(
    gateway: PeerGateway, start_process: StartProcess, tmp_path: Path, isolation: str
) -> None:
    gate = tmp_path / "gate"
    port = free_port()
    variables = {"BROKEN": str(tmp_path / "broken"), "GATE": str(gate), "ISOLATION": isolation}
    variables["HEALTH_PORT"] = str(port)
    process = start_process(UNHEALTHY, environment=variables)
    await process.ready()
    call = await gateway.invoke()
    await eventually(lambda: "leaving: 1 requests in flight" in process.text(), "drains")
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/v1/health/ready") as response:
            assert response.status == 503
    assert not call.head.done()
    gate.touch()
    assert (await call.answer()).body == b"finished"
    assert await process.exit_code() == 3
    reason = json.loads((tmp_path / "instance-1" / "nvcf-worker-exit.json").read_text())
    assert (reason["code"], reason["category"]) == (3, "unhealthy")
    assert reason["text"].endswith("Model: health returned False")
