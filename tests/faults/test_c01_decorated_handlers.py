"""C1: handlers that return coroutines though they do not look async, and blocking reads on the loop."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from nvcf_worker import App, Request, Response, SyncRequest, batch
from nvcf_worker.testing import TestClient

BIG = b'{"n": 7, "fill": "' + b"x" * 100_000 + b'"}'
"""A body that the worker has to fetch: larger than what comes with the request."""


async def reads(request: Request) -> Any:
    assert type(request) is Request
    return {"n": (await request.json())["n"], "main": threading.current_thread().name}


async def streams(request: Request) -> AsyncIterator[str]:
    yield str((await request.json())["n"])
    yield "end"


def plain(request: SyncRequest) -> Any:
    return {"n": request.json()["n"]}


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return wrapper


def undeclared(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(request: Any) -> Any:
        return function(request)

    return wrapper


class Decorator:
    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)


class Decorated:
    @logged
    async def __call__(self, request: Request) -> Any:
        return await reads(request)

    @logged
    async def method(self, request: Request) -> Any:
        return await reads(request)

    def untold(self, request: Any) -> Any:
        return reads(request)


class WithSetup(Decorated):
    def setup(self) -> None:
        self.ready = True


def as_task(request: Any) -> Any:
    return asyncio.get_running_loop().create_task(reads(request))


async def forgets_await(request: Request) -> Any:
    return reads(request)


def body_of_response(request: Any) -> Any:
    return Response(streams(request), 201)


AWAITED: dict[str, Any] = {
    "wraps": logged(reads),
    "wraps twice": logged(logged(reads)),
    "lambda": lambda request: reads(request),
    "wraps a lambda": logged(lambda request: reads(request)),
    "undeclared": undeclared(reads),
    "partial": functools.partial(reads),
    "partial of wraps": functools.partial(logged(reads)),
    "wraps of partial": logged(functools.partial(reads)),
    "wraps of undeclared": logged(undeclared(reads)),
    "decorator object": Decorator(reads),
    "decorator object of wraps": Decorator(logged(reads)),
    "class": Decorated,
    "class with setup": WithSetup,
    "instance": Decorated(),
    "method": Decorated().method,
    "undeclared method": Decorated().untold,
    "task": functools.wraps(reads)(as_task),
    "coroutine of a coroutine": forgets_await,
    "cache": functools.lru_cache(reads),
}


@pytest.mark.parametrize("body", [b'{"n": 7}', BIG], ids=["small", "big"])
@pytest.mark.parametrize("name", AWAITED)
def test_coroutines_of_callables_that_do_not_look_async(name: str, body: bytes) -> None:
    with TestClient(AWAITED[name], timeout=10) as client:
        result = client.post(data=iter([body]))
    assert (result.status, result.json()["n"]) == (200, 7), result.text
    assert result.json()["main"] == "nvcf-test-client", "it runs on the loop's thread"


STREAMED: dict[str, Any] = {
    "wraps": logged(streams),
    "lambda": lambda request: streams(request),
    "undeclared": undeclared(streams),
    "partial of undeclared": functools.partial(undeclared(streams)),
    "decorator object": Decorator(streams),
    "in a response": body_of_response,
    "in a wrapped response": functools.wraps(streams)(body_of_response),
}


@pytest.mark.parametrize("body", [b'{"n": 7}', BIG], ids=["small", "big"])
@pytest.mark.parametrize("name", STREAMED)
def test_async_generators_of_callables_that_do_not_look_async(name: str, body: bytes) -> None:
    with TestClient(STREAMED[name], timeout=10) as client:
        assert client.post(data=iter([body])).text == "7end"


def run_here(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        return asyncio.run(function(*arguments, **named))

    return wrapper


def run_in_its_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(request: Any) -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(function(request))
        finally:
            loop.close()

    return wrapper


async def answers(_request: Any) -> Any:
    await asyncio.sleep(0)
    return {"thread": threading.current_thread().name}


@pytest.mark.parametrize("handler", [run_here(answers), run_in_its_loop(answers), logged(run_here(answers))])
def test_wrappers_that_run_the_coroutine_themselves_are_plain(handler: Any) -> None:
    with TestClient(handler, timeout=10) as client:
        result = client.post(data=b"x")
    assert result.status == 200, result.text
    assert result.json()["thread"] != "nvcf-test-client"


@pytest.mark.parametrize("handler", [logged(plain), undeclared(plain), Decorator(plain)])
def test_wrapped_plain_functions_stay_on_threads(handler: Any) -> None:
    with TestClient(handler, timeout=10) as client:
        assert client.post(data=iter([BIG])).json() == {"n": 7}


def test_a_plain_generator_of_a_coroutine_reads_with_blocking_calls() -> None:
    def items(request: Any) -> Iterator[str]:
        yield str(request.json()["n"])

    async def handler(request: Request) -> Any:
        return items(request)

    with TestClient(handler, timeout=10) as client:
        assert client.post(data=iter([BIG])).text == "7"


def test_typed_parameters_behind_decorators() -> None:
    async def double(n: int) -> dict[str, int]:
        return {"n": n * 2}

    for handler in (logged(double), Decorator(double), logged(functools.partial(double))):
        with TestClient(handler, timeout=10) as client:
            assert client(json={"n": 4}) == {"n": 8}


def test_routes_and_batches_behind_decorators() -> None:
    app: Any = App()
    app.route("/wrapped")(logged(reads))
    app.route("/lambda")(lambda request: reads(request))

    async def all_of(items: list[Request]) -> list[Any]:
        return [(await item.json())["n"] for item in items]

    async def prepared(request: Request) -> Any:
        return (await request.json())["n"]

    app.route("/batch")(batch()(logged(all_of)))
    app.route("/batch-lambda")(batch()(lambda items: all_of(items)))
    app.route("/prepare")(batch(prepare=lambda request: prepared(request))(lambda items: items))
    with TestClient(app, timeout=10) as client:
        for path in ("/wrapped", "/lambda"):
            assert client.post(path, data=iter([BIG])).json()["n"] == 7
        for path in ("/batch", "/batch-lambda", "/prepare"):
            assert client.post(path, data=iter([BIG])).json() == 7, path


BLOCKING: dict[str, Any] = {
    "read": (lambda request: request.read(), "await request.read()"),
    "json": (lambda request: request.json(), "await request.json()"),
    "stream": (lambda request: list(request.stream()), "async for chunk in request.stream()"),
    "cancelled.wait": (lambda request: request.cancelled.wait(), "CancelledError"),
}


@pytest.mark.parametrize("body", [b'{"n": 7}', BIG], ids=["small", "big"])
@pytest.mark.parametrize("name", BLOCKING)
def test_a_blocking_read_on_the_loop_raises_and_names_the_async_form(
    name: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    read, words = BLOCKING[name]
    kept: list[Any] = []

    def keep(request: SyncRequest) -> None:
        """Keep the plain request; a callback on the loop reads it later."""
        kept.append(request)
        loop, done = request._loop, threading.Event()

        def on_loop() -> None:
            try:
                kept.append(read(request))
            except RuntimeError as error:
                kept.append(str(error))
            done.set()

        loop.call_soon_threadsafe(on_loop)
        assert done.wait(5), "the loop stands still"

    with TestClient(keep, timeout=10) as client:
        assert client.post(data=iter([body])).status == 204
    assert words in kept[1]


def test_cancelled_wait_in_a_coroutine_raises() -> None:
    async def handler(request: Request) -> None:
        request.cancelled.wait()

    with TestClient(handler, timeout=10) as client:
        assert client.post().status == 500
