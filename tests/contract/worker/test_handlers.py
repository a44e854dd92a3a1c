"""Handlers of every kind, through a real broker to a peer's gateway."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nvcf_worker import BadInput, HTTPError, Request, Response, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway


def plain(request: SyncRequest) -> Any:
    return {"echo": request.json(), "thread": threading.current_thread() is not threading.main_thread()}


async def coroutine(request: Request) -> Any:
    return {"echo": await request.json(), "thread": False}


def generator(request: SyncRequest) -> Iterator[Any]:
    for item in request.json():
        yield {"item": item}


async def async_generator(request: Request) -> AsyncIterator[Any]:
    for item in await request.json():
        yield {"item": item}


class Instance:
    async def __call__(self, request: Request) -> Any:
        return {"echo": await request.json(), "thread": False}


def prefixed(prefix: str, request: SyncRequest) -> str:
    return prefix + request.read().decode()


@pytest.mark.parametrize(("handler", "thread"), [(plain, True), (coroutine, False), (Instance(), False)])
async def test_a_function_answers_with_json(
    gateway: PeerGateway, start_worker: StartWorker, handler: Any, thread: bool
) -> None:
    await start_worker(handler).ready()
    call = await gateway.invoke(b'{"a": 1}')
    answer = await call.answer()
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"echo": {"a": 1}, "thread": thread}
    assert call.via == ["inline"]


@pytest.mark.parametrize("handler", [generator, async_generator])
async def test_a_generator_answers_with_a_stream(
    gateway: PeerGateway, start_worker: StartWorker, handler: Any
) -> None:
    await start_worker(handler).ready()
    call = await gateway.invoke(json.dumps(list(range(1000))).encode())
    answer = await call.answer()
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["item"] for line in answer.body.splitlines()] == list(range(1000))
    assert call.via == ["attach"]


async def test_a_partial_is_looked_through(gateway: PeerGateway, start_worker: StartWorker) -> None:
    await start_worker(functools.partial(prefixed, "hello ")).ready()
    answer = await (await gateway.invoke(b"world")).answer()
    assert answer.body == b"hello world"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_lambda_may_return_a_coroutine_or_a_generator(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def later(request: Any) -> str:
        await asyncio.sleep(0)
        return "later"

    async def pieces() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    results = iter([later(None), pieces(), (item for item in ("c", "d"))])
    await start_worker(lambda request: next(results), concurrency=1).ready()
    bodies = [(await (await gateway.invoke()).answer()).body for _ in range(3)]
    assert bodies == [b"later", b"ab", b"cd"]


RESULTS: list[tuple[Any, int, bytes, str | None]] = [
    (None, 204, b"", None),
    (b"\x00\xff", 200, b"\x00\xff", "application/octet-stream"),
    ("grüße", 200, "grüße".encode(), "text/plain; charset=utf-8"),
    ([1, "ü"], 200, '[1,"ü"]'.encode(), "application/json"),
    (Response({"no": "such"}, status=404), 404, b'{"no":"such"}', "application/json"),
    (Response("<p>", media_type="text/html"), 200, b"<p>", "text/html"),
    (Response(None, status=201, headers={"x-made": "yes"}), 201, b"", None),
    (Response(iter(["x", b"y"]), status=202, media_type="text/x"), 202, b"xy", "text/x"),
    (iter(()), 200, b"", "application/octet-stream"),
]


@pytest.mark.parametrize(("result", "status", "body", "media_type"), RESULTS)
@pytest.mark.parametrize("reply_max_bytes", [262_144, None])
async def test_results(
    gateway: PeerGateway,
    start_worker: StartWorker,
    result: Any,
    status: int,
    body: bytes,
    media_type: str | None,
    reply_max_bytes: int | None,
) -> None:
    made = list(result.body) if isinstance(result, Response) and isinstance(result.body, Iterator) else None

    def handler(request: SyncRequest) -> Any:
        if made is not None:
            return Response(iter(made), result.status, media_type=result.media_type)
        return iter(()) if isinstance(result, Iterator) else result

    await start_worker(handler).ready()
    # As pass-through calls have it: exec and pexec would make a problem document of the 404.
    headers = {"nvcf-feature-disable-worker-compatibility": "true"}
    answer = await (await gateway.invoke(reply_max_bytes=reply_max_bytes, headers=headers)).answer()
    assert (answer.status, answer.body, answer.headers.get("content-type")) == (status, body, media_type)
    if isinstance(result, Response) and result.headers:
        assert answer.headers["x-made"] == "yes"
    if made is not None and isinstance(result, Response):
        result.body = iter(made)


async def test_a_generator_may_yield_its_head_first(gateway: PeerGateway, start_worker: StartWorker) -> None:
    async def handler(request: Request) -> AsyncIterator[Any]:
        yield Response(
            status=203, media_type="text/event-stream", headers=[("x-a", "1"), ("connection", "close")]
        )
        yield "data: 1\n\n"

    await start_worker(handler).ready()
    answer = await (await gateway.invoke()).answer()
    assert answer.status == 203
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-a"] == "1"
    assert "connection" not in answer.headers
    assert answer.body == b"data: 1\n\n"


async def test_the_default_media_type(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler(request: SyncRequest) -> Iterator[str]:
        yield "data: 1\n\n"

    await start_worker(handler, media_type="text/event-stream").ready()
    answer = await (await gateway.invoke()).answer()
    assert answer.headers["content-type"] == "text/event-stream"


async def test_the_request_that_a_handler_sees(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler(request: SyncRequest) -> Any:
        return {
            "id": request.id,
            "method": request.method,
            "path": request.path,
            "query": request.query.get_all("q"),
            "headers": [[name.lower(), value] for name, value in request.headers.pairs()],
            "caller": [request.caller.subject, request.caller.nca_id],
            "function": [request.function_id, request.function_version_id],
            "attempt": request.attempt,
            "left": request.time_left,
            "cancelled": bool(request.cancelled),
        }

    await start_worker(handler).ready()
    call = await gateway.invoke(
        method="PUT",
        path="/a%20b?q=1&q=%C3%BC",
        headers={"X-Own": "1", "NVCF-SUB": "forged", "nvcf-poll-seconds": "30", "Connection": "close"},
    )
    seen = (await call.answer()).json()
    headers = dict(seen["headers"])
    assert seen["id"] == call.request_id
    assert (seen["method"], seen["path"], seen["query"]) == ("PUT", "/a%20b", ["1", "ü"])
    assert seen["caller"] == ["caller-1", "account-1"]
    assert seen["function"] == [gateway.function_id, gateway.version_id]
    assert (seen["attempt"], seen["cancelled"]) == (1, False)
    assert 0 < seen["left"] <= 30
    assert [value for name, value in seen["headers"] if name == "nvcf-sub"] == ["caller-1"]
    assert headers["nvcf-reqid"] == call.request_id
    assert headers["nvcf-function-name"] == "test-function"
    assert 1 <= int(headers["nvcf-poll-seconds"]) <= 30
    assert headers["x-own"] == "1"
    assert "connection" not in headers


def sync_failure(request: SyncRequest) -> Any:
    raise RuntimeError("a secret of the function")


async def async_failure(request: Request) -> Any:
    raise RuntimeError("a secret of the function")


def generator_failure(request: SyncRequest) -> Iterator[Any]:
    if request.method:
        raise RuntimeError("a secret of the function")
    yield 1


async def async_generator_failure(request: Request) -> AsyncIterator[Any]:
    if request.method:
        raise RuntimeError("a secret of the function")
    yield 1


def no_json(request: SyncRequest) -> Any:
    return {"a": object()}


def leaves(request: SyncRequest) -> Any:
    raise SystemExit(3)


async def leaves_async(request: Request) -> Any:
    raise SystemExit(3)


class Panic(BaseException):
    """As extensions written in Rust raise it."""


def panics(request: SyncRequest) -> Any:
    raise Panic("index out of bounds")


async def panics_async(request: Request) -> Any:
    raise Panic("index out of bounds")


async def cancels_itself(request: Request) -> Any:
    raise asyncio.CancelledError


def bad_header(request: SyncRequest) -> Any:
    return Response("x", headers={"a": "b\r\nc: d"})


@pytest.mark.parametrize(
    "handler",
    [
        sync_failure,
        async_failure,
        generator_failure,
        async_generator_failure,
        no_json,
        leaves,
        leaves_async,
        panics,
        panics_async,
        cancels_itself,
        bad_header,
    ],
)
async def test_a_failing_handler_is_a_500_that_tells_only_the_id(
    gateway: PeerGateway, start_worker: StartWorker, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start_worker(handler)
    await worker.ready()
    for _ in range(2):
        call = await gateway.invoke()
        answer = await call.answer()
        assert answer.status == 500
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["type"] == "urn:inference-service:problem-details:internal-server-error"
        assert call.request_id in problem["detail"]
        assert b"secret" not in answer.body
    if handler is sync_failure:
        assert "a secret of the function" in caplog.text
    assert not worker.task.done()


async def test_bad_input_is_a_400_that_says_why(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler(request: SyncRequest) -> Any:
        if request.read() == b"x":
            raise BadInput("x is not welcome")
        return request.json()

    await start_worker(handler).ready()
    answer = await (await gateway.invoke(b"x")).answer()
    assert (answer.status, answer.json()["detail"]) == (400, "x is not welcome")
    answer = await (await gateway.invoke(b"{")).answer()
    assert (answer.status, answer.json()["title"]) == (400, "Bad Request")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Retry-After": 5}, 429),
        ({"Content-Length": "1", "Transfer-Encoding": "chunked"}, 429),
        ({"X-Text": "one\r\ntwo"}, 500),
        ({"X-Text": "\u65e5\u672c"}, 429),
        ({"X-Text": "\ud800"}, 500),
        ({"a name": "x"}, 500),
    ],
)
async def test_an_error_with_any_headers_gets_the_caller_a_response(
    gateway: PeerGateway, start_worker: StartWorker, headers: dict[str, object], status: int
) -> None:
    def handler(request: SyncRequest) -> Any:
        raise HTTPError(429, "later", headers=headers)

    await start_worker(handler).ready()
    answer = await (await gateway.invoke()).answer()
    assert (answer.status, answer.json()["status"]) == (status, status)
