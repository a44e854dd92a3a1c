"""A function in child processes, with one route for each kind of behaviour."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nvcf_worker import App, BadInput, Request, RetryLater, SyncRequest, serve

app = App()
log = logging.getLogger("function")


def note(text: str) -> None:
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{os.getpid()} {text}\n")


@app.setup
def load() -> None:
    if os.environ.get("FAIL_SETUP"):
        raise RuntimeError("no weights")
    note("setup")


@app.teardown
def unload() -> None:
    note("teardown")


@app.route("/plain")
def plain(request: SyncRequest) -> dict[str, Any]:
    log.info("plain handler")
    return {"pid": os.getpid(), "attempt": request.attempt, "body": request.json()}


@app.route("/coroutine")
async def coroutine(request: Request) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"pid": os.getpid(), "caller": request.caller.nca_id, "body": await request.json()}


@app.route("/generator", media_type="text/plain")
def generator(request: SyncRequest) -> Iterator[str]:
    for number in range(int(request.query["count"])):
        yield f"{number}\n"


@app.route("/async_generator", media_type="text/plain")
async def async_generator(request: Request) -> AsyncIterator[str]:
    for number in range(int(request.query["count"])):
        yield f"{number}\n"


@app.route("/endless")
def endless(request: SyncRequest) -> Iterator[bytes]:
    note("start")
    try:
        while True:
            yield bytes(64 * 1024)
    finally:
        note("closed")


@app.route("/upload")
async def upload(request: Request) -> dict[str, Any]:
    size = chunks = 0
    async for chunk in request.stream():
        size += len(chunk)
        chunks += 1
    return {"size": size, "chunks": chunks}


@app.route("/large")
def large(request: SyncRequest) -> bytes:
    return bytes(range(256)) * 4096 * 5


@app.route("/bad")
def bad(request: SyncRequest) -> None:
    raise BadInput("not like this")


class Panic(BaseException):
    """An error as extensions written in Rust raise it."""


@app.route("/panics")
async def panics(request: Request) -> None:
    raise Panic("index out of bounds")


@app.route("/fails")
def fails(request: SyncRequest) -> None:
    raise KeyError("inside")


@app.route("/later")
def later(request: SyncRequest) -> dict[str, int]:
    if request.attempt == 1:
        raise RetryLater(after=0.1)
    return {"attempt": request.attempt}


@app.route("/until_cancelled")
async def until_cancelled(request: Request) -> None:
    note("start")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("cancelled")
        raise


@app.route("/waits")
def waits(request: SyncRequest) -> str:
    note("start")
    request.cancelled.wait(60)
    note("cancelled")
    return "late"


@app.route("/")
def progress(request: SyncRequest) -> dict[str, Any]:
    """Report progress and wait at the gate. The output directory is the worker's."""
    request.progress(40, {"so": "far"})
    while os.path.exists(os.environ["GATE"]) and not request.cancelled:
        time.sleep(0.02)
    return {"pid": os.getpid(), "output": request.output_dir.is_dir()}


@app.route("/hold")
async def hold(request: Request) -> dict[str, Any]:
    note("hold")
    while os.path.exists(os.environ["GATE"]):  # noqa: ASYNC240
        await asyncio.sleep(0.02)
    return {"pid": os.getpid(), "attempt": request.attempt}


@app.route("/die/{how}")
def die(request: SyncRequest) -> dict[str, Any]:
    """Crash at the first delivery, or at each with `?always=1`."""
    note(f"die {request.attempt}")
    if request.attempt == 1 or request.query.get("always"):
        how = request.path_params["how"]
        if how == "segfault":
            ctypes.string_at(0)
        elif how == "kill":
            os.kill(os.getpid(), 9)
        else:
            os._exit(7)
    return {"pid": os.getpid(), "attempt": request.attempt}


@app.route("/die_after_body")
def die_after_body(request: SyncRequest) -> None:
    request.read()
    os._exit(7)


@app.route("/die_in_stream")
def die_in_stream(request: SyncRequest) -> Iterator[str]:
    yield "one"
    time.sleep(0.3)
    os._exit(7)


@app.route("/hog")
def hog(request: SyncRequest) -> dict[str, int]:
    """Hold the interpreter lock for some seconds, like native code that never releases it."""
    note("hog")
    # PyDLL keeps the lock during the call.
    ctypes.PyDLL(None).sleep(int(request.query["seconds"]))
    return {"attempt": request.attempt}


@app.route("/environment")
def environment(request: SyncRequest) -> dict[str, Any]:
    names = ("CUDA_VISIBLE_DEVICES", "ATTACHED_GPU_COUNT", "NVCF_PROCESS_INDEX", "NVCF_WORKER_TOKEN")
    return {name: os.environ.get(name) for name in names}


if __name__ == "__main__":
    serve(
        app,
        isolation="process",
        processes=int(os.environ["PROCESSES"]) if "PROCESSES" in os.environ else None,
        concurrency=int(os.environ.get("SLOTS", "4")),
        retry_crashed="NO_RETRY" not in os.environ,
    )
    sys.exit(0)
