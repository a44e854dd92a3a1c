"""`nvcf_worker.testing.TestClient`: what a function's own tests rely on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nvcf_worker import BadInput, Request, Response, SyncRequest
from nvcf_worker.errors import Fatal, HandlerError, RetryLater, StartupError
from nvcf_worker.local.request import Progress
from nvcf_worker.testing import CallFailed, StreamFailed, TestClient
from tests.functions import asgi_app


def greet(request: SyncRequest) -> dict[str, Any]:
    body = request.json()
    if "name" not in body:
        raise BadInput("name is missing")
    return {"greeting": f"Hello, {body['name']}!", "attempt": request.attempt}


async def describe(request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "query": request.query["q"],
        "own": request.headers["x-own"],
        "id": request.headers["nvcf-reqid"],
        "caller": list(request.caller),
        "left": request.time_left > 50,
        "body": (await request.read()).decode(),
    }


def test_unary_calls_of_plain_functions_and_coroutines() -> None:
    with TestClient(greet) as client:
        assert client({"name": "Ada"}) == {"greeting": "Hello, Ada!", "attempt": 1}
        assert client.post(json={"name": "Ada"}, attempt=3).json()["attempt"] == 3
        result = client.post(json={})
        assert (result.status, result.ok) == (400, False)
        assert result.json()["detail"] == "name is missing"
        with pytest.raises(CallFailed, match="name is missing"):
            client({})
        assert client.post(data="not json").status == 400
    with TestClient(describe) as client:
        result = client.request("PUT", "/a%20b?q=1", data=b"raw", headers={"X-Own": "o"}, subject="me")
        assert result.json() == {
            "method": "PUT", "path": "/a%20b", "query": "1", "own": "o", "id": result.request_id,
            "caller": ["me", "local"], "left": True, "body": "raw",
        }  # fmt: skip
        assert result.headers["nvcf-reqid"] == result.request_id


def test_results_of_all_kinds() -> None:
    answers: dict[str, Any] = {
        "/none": None,
        "/text": "words",
        "/bytes": b"\x00",
        "/own": Response({"a": 1}, status=201, headers={"X-A": "1"}),
    }
    with TestClient(lambda request: answers[request.path]) as client:
        assert client.get("/none").status == 204
        assert (client.get("/text").text, client.get("/bytes").body) == ("words", b"\x00")
        own = client.get("/own")
        assert (own.status, own.headers["x-a"], own.json()) == (201, "1", {"a": 1})
        failed = client.get("/unknown")
        assert failed.status == 500
        assert failed.request_id in failed.json()["detail"]


def test_streams_are_read_while_they_are_made() -> None:
    produced = []

    def count(request: SyncRequest) -> Iterator[dict[str, int]]:
        for number in range(1000):
            produced.append(number)
            yield {"number": number}

    async def echo(request: Request) -> AsyncIterator[bytes]:
        async for chunk in request.stream():
            yield chunk.upper()

    with TestClient(count) as client:
        assert client.post().json() == [{"number": number} for number in range(1000)]
    with TestClient(echo) as client:
        source = (b"a%d" % number for number in range(5))
        with client.stream(data=source) as stream:
            assert (stream.status, stream.headers["content-type"]) == (200, "application/octet-stream")
            assert b"".join(stream) == b"A0A1A2A3A4"
        assert client.post(data=iter([b"x", b"y"])).chunks == [b"X", b"Y"]


def test_leaving_a_stream_cancels_its_handler() -> None:
    closed = threading.Event()

    def endless(request: SyncRequest) -> Iterator[str]:
        try:
            while True:
                yield "line\n"
        finally:
            closed.set()

    with TestClient(endless) as client:
        with client.stream() as stream:
            lines = stream.lines()
            assert [next(lines), next(lines)] == ["line", "line"]
        assert closed.is_set()


def test_leaving_a_stream_that_is_complete_already() -> None:
    with TestClient(lambda request: iter(["one\n", "two\n"])) as client, client.stream() as stream:
        assert next(stream.lines()) == "one"


def test_cancellation_reaches_threads_and_coroutines() -> None:
    seen: list[object] = []
    running = threading.Event()

    def thread(request: SyncRequest) -> None:
        running.set()
        seen.append(request.cancelled.wait(20))

    async def coroutine(request: Request) -> None:
        running.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    for handler in (thread, coroutine):
        running.clear()
        with TestClient(handler) as client:
            pending = client.start()
            assert running.wait(20)
            assert not pending.done
            pending.cancel()
            assert pending.done
            with pytest.raises(CallFailed, match="cancelled"):
                pending.result()
    assert seen == [True, "cancelled"]


def test_progress_and_result_files() -> None:
    def work(request: SyncRequest) -> dict[str, bool]:
        request.progress(25)
        request.progress(50, {"lines": 2})
        (request.output_dir / "sub").mkdir()
        (request.output_dir / "sub" / "a.txt").write_text("file")
        return {"done": True}

    with TestClient(work) as client:
        result = client.post()
        assert result.json() == {"done": True}
        assert result.files == {"sub/a.txt": b"file"}
        # Two reports in quick succession may arrive as one, as at a caller who polls.
        assert result.progress[-1] == Progress(50.0, {"lines": 2})


def test_many_calls_at_once() -> None:
    together = threading.Barrier(8, timeout=20)

    def meet(request: SyncRequest) -> int:
        together.wait()
        return int(request.json()) * 2

    with TestClient(meet) as client:
        assert [result.json() for result in client.batch(range(8))] == [number * 2 for number in range(8)]


class Model:
    def __init__(self) -> None:
        self.steps = ["made"]

    def setup(self) -> None:
        self.steps.append("setup")

    async def warmup(self) -> None:
        self.steps.append("warmup")

    def __call__(self, request: SyncRequest) -> list[str]:
        return self.steps

    def teardown(self) -> None:
        TORN_DOWN.append(self)


TORN_DOWN: list[Model] = []


def test_classes_are_set_up_and_torn_down() -> None:
    with TestClient(Model) as client:
        assert client() == ["made", "setup", "warmup"]
    assert len(TORN_DOWN) == 1

    class Broken(Model):
        def setup(self) -> None:
            raise OSError("no weights")

    with pytest.raises(StartupError, match="no weights"), TestClient(Broken):
        pass


def test_an_asgi_application() -> None:
    asgi_app.NOTES.clear()
    with TestClient(asgi_app.app) as client:
        result = client.get("/x?y=1")
        assert result.status == 201
        assert (result.json()["query_string"], result.json()["model"]) == ("y=1", "loaded")
        with client.stream("POST", "/stream", data=iter([b"a", b"b"])) as stream:
            assert list(stream) == [b"a", b"b"]
    assert asgi_app.NOTES == ["startup", "shutdown"]


def test_trouble_of_all_kinds() -> None:
    def breaks(request: SyncRequest) -> Iterator[str]:
        yield "one"
        raise ValueError("inside")

    def later(request: SyncRequest) -> None:
        raise RetryLater("warming", after=7)

    def fatal(request: SyncRequest) -> None:
        raise Fatal("the GPU is gone")

    with TestClient(breaks) as client, pytest.raises(StreamFailed):
        client.post()
    with TestClient(later) as client:
        result = client.post()
        assert (result.status, result.headers["retry-after"]) == (503, "7")
    with TestClient(fatal) as client:
        assert client.post().status == 500
        assert client.broken == "the GPU is gone"
    with pytest.raises(HandlerError):
        TestClient(3)  # type: ignore[arg-type]
    with TestClient(lambda request: time.sleep(0.4), timeout=0.1) as client:
        with pytest.raises(TimeoutError, match="no response"):
            client.post()
        client._timeout = 20
