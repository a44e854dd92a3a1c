"""C12: whatever a handler raises, its caller gets an answer at once, and the worker goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nvcf_worker import App, Request, SyncRequest, batch
from nvcf_worker.errors import StartupError
from nvcf_worker.function.loading import Loading
from nvcf_worker.testing import TestClient
from nvcf_worker.testing.results import StreamFailed
from tests.contract.worker.conftest import StartProcess
from tests.support.peers.gateway import PeerGateway


class Panic(BaseException):
    """As extensions written in Rust raise it."""


RAISED = (
    GeneratorExit(),
    KeyboardInterrupt(),
    SystemExit(3),
    SystemExit(0),
    asyncio.CancelledError(),
    StopIteration(1),
    StopAsyncIteration(),
    Panic("deep"),
)


def failing(error: BaseException) -> App:  # noqa: C901 - one handler after the other
    """Return handlers of all kinds that raise the error."""
    app = App()

    async def in_a_task(request: Request) -> None:
        async def step() -> None:
            raise error

        await asyncio.gather(step(), asyncio.sleep(0.01))

    async def left_behind(request: Request) -> str:
        async def step() -> None:
            raise error

        task = asyncio.create_task(step())
        await asyncio.wait([task])
        raise RuntimeError("the task has failed")

    @app.route("/sync")
    def sync(request: SyncRequest) -> None:
        raise error

    @app.route("/async")
    async def coroutine(request: Request) -> None:
        raise error

    @app.route("/generator")
    def generator(request: SyncRequest) -> Iterator[str]:
        raise error
        yield ""

    @app.route("/async-generator")
    async def async_generator(request: Request) -> AsyncIterator[str]:
        raise error
        yield ""

    @app.route("/batch")
    @batch()
    def batched(items: list[Any]) -> list[Any]:
        raise error

    @app.route("/async-batch")
    @batch()
    async def async_batched(items: list[Any]) -> list[Any]:
        raise error

    @app.route("/stream")
    def stream(request: SyncRequest) -> Iterator[str]:
        yield "first"
        raise error

    @app.route("/async-stream")
    async def async_stream(request: Request) -> AsyncIterator[str]:
        yield "first"
        raise error

    @app.route("/batch-stream")
    @batch()
    def batch_stream(items: list[Any]) -> Iterator[list[str]]:
        yield ["first"] * len(items)
        raise error

    @app.route("/async-batch-stream")
    @batch()
    async def async_batch_stream(items: list[Any]) -> AsyncIterator[list[str]]:
        yield ["first"] * len(items)
        raise error

    @app.route("/ok")
    async def ok(request: Request) -> str:
        return "ok"

    # A task cannot raise StopIteration; asyncio throws GeneratorExit of a task into whoever awaits it.
    if not isinstance(error, StopIteration | GeneratorExit):
        app.route("/gather")(in_a_task)
        app.route("/task")(left_behind)
    return app


def paths(app: App) -> list[str]:
    return [pattern.text for pattern, *_ in app._routes if pattern.text != "/ok"]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: f"{type(error).__name__}-{error}")
def test_every_kind_of_handler_answers_and_the_next_call_is_served(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    app: Any = failing(error)
    with TestClient(app, timeout=5) as client:
        for path in paths(app):
            caplog.clear()
            if path.endswith("stream"):
                with pytest.raises(StreamFailed):
                    client.post(path)
            else:
                assert client.post(path).status == 500, path
                assert "the handler failed" in caplog.text, path
            assert client.post("/ok").text == "ok", path


@pytest.mark.parametrize("error", RAISED, ids=lambda error: f"{type(error).__name__}-{error}")
def test_asgi_applications_may_raise_anything(error: BaseException) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise KeyError("no lifespan")
        if scope["path"] == "/ok":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        raise error

    with TestClient(asgi=application, timeout=5) as client:
        assert client.post("/").status == 500
        assert client.post("/ok").text == "ok"


@pytest.mark.parametrize("error", RAISED, ids=lambda error: f"{type(error).__name__}-{error}")
async def test_setup_teardown_and_health_may_raise_anything(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self, step: str) -> None:
            setattr(self, step, self.fail)

        async def fail(self) -> None:
            raise error

    async def blocking(call: Any) -> Any:
        return call()

    with pytest.raises(StartupError):
        await Loading(lambda: Broken("setup"), "Broken").begin(blocking)
    teardown = Loading(lambda: Broken("teardown"), "Broken")
    await teardown.begin(blocking)
    await teardown.end(blocking)
    assert "teardown failed" in caplog.text
    health = Loading(lambda: Broken("health"), "Broken")
    await health.begin(blocking)
    assert "health raised" in str(await health.check(blocking))


def test_an_exit_in_setup_is_said_to_be_one() -> None:
    class Exits:
        def setup(self) -> None:
            raise SystemExit("no model here")

        def __call__(self, request: SyncRequest) -> None:
            return None

    with pytest.raises(StartupError, match="could not be set up: SystemExit: no model here"):
        with TestClient(Exits):
            pass


FILE = """
import asyncio, os
from nvcf_worker import App

app = App()

@app.route("/exit")
async def exits(request):
    raise SystemExit(3)

@app.route("/interrupt")
def interrupt(request):
    raise KeyboardInterrupt

@app.route("/task")
async def task(request):
    async def step():
        raise SystemExit(4)
    asyncio.create_task(step())
    await asyncio.sleep(0.1)
    return {"pid": os.getpid()}

@app.route("/ok")
def ok(request):
    return {"pid": os.getpid()}

handler = app
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_worker_process_goes_on(
    isolation: str, gateway: PeerGateway, start_process: StartProcess
) -> None:
    serving = f"\nfrom nvcf_worker import serve\nserve(app, isolation={isolation!r})\n"
    worker = start_process(FILE + serving, concurrency=1)
    await worker.ready()

    async def call(path: str) -> tuple[int, Any]:
        answer = await (await gateway.invoke(b"", path=path)).answer()
        return answer.status, answer.json()

    _, first = await call("/ok")
    for path in ("/exit", "/interrupt", "/exit"):
        assert (await call(path))[0] == 500
    assert await call("/task") == (200, first)
    assert await call("/ok") == (200, first), "the same process serves on"
    worker.send_signal(signal.SIGTERM)
    assert await worker.exit_code() == 0, worker.text()
