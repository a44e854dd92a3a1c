"""Handlers for the benchmarks of batching, isolation and streams."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nvcf_worker import App, Request, Response, SyncRequest, batch, serve

KERNEL_SECONDS = 0.01

app = App()
device = threading.Lock()


def kernel(items: list[Any]) -> list[Any]:
    """Take 10 ms for any number of items, one call at a time, like a GPU."""
    with device:
        time.sleep(KERNEL_SECONDS)
    return items


@app.route("/single")
def single(request: SyncRequest) -> Any:
    return kernel([request.json()])[0]


@app.route("/batched")
@batch(max_size=32, max_wait="5ms", prepare=lambda request: request.json())
def batched(items: list[Any]) -> list[Any]:
    return kernel(items)


@app.route("/echo")
async def echo(request: Request) -> Response:
    return Response(await request.read(), media_type="application/json")


@app.route("/items", media_type="text/plain")
async def items(request: Request) -> AsyncIterator[str]:
    for number in range(int(request.query["count"])):
        yield f"{number:>15}\n"


@app.route("/sync_items", media_type="text/plain")
def sync_items(request: SyncRequest) -> Iterator[str]:
    for number in range(int(request.query["count"])):
        yield f"{number:>15}\n"


if __name__ == "__main__":
    serve(
        app,
        concurrency=int(os.environ["SLOTS"]),
        isolation="process" if "PROCESSES" in os.environ else "thread",
        processes=int(os.environ["PROCESSES"]) if "PROCESSES" in os.environ else None,
    )
