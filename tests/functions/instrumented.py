"""A function with spans and logs of its own, a batch, a stream and token counts."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, cast

from opentelemetry import trace

from nvcf_worker import App, Request, SyncRequest, batch, serve, tokens

app = App()
log = logging.getLogger("function")
tracer = trace.get_tracer("function")


@app.setup
def load() -> None:
    with tracer.start_as_current_span("read weights"):
        log.info("loaded")


@app.route("/plain")
def plain(request: SyncRequest) -> dict[str, Any]:
    with tracer.start_as_current_span("think"):
        log.warning("password=correct-horse-battery")
    tokens(input=7, output=3, model="tiny", provider="own")
    return {"traceparent": request.headers.get("traceparent")}


@app.route("/fails")
async def fails(request: Request) -> None:
    raise RuntimeError("no luck")


@app.route("/stream", media_type="text/plain")
async def stream(request: Request) -> AsyncIterator[str]:
    for number in range(3):
        with tracer.start_as_current_span("item"):
            await asyncio.sleep(0)
        yield f"{number}\n"


@app.route("/generator", media_type="text/plain")
def generator(request: SyncRequest) -> Iterator[str]:
    for number in range(3):
        with tracer.start_as_current_span("item"):
            pass
        yield f"{number}\n"


@batch(max_size=2, max_wait="5s")
def together(items: list[int]) -> list[int]:
    with tracer.start_as_current_span("model"):
        log.info("batch of %d", len(items))
    return [item * 2 for item in items]


@app.route("/batched")
async def batched(request: Request) -> int:
    return cast(int, await together(int((await request.read()).decode())))


if __name__ == "__main__":
    isolation = cast(Literal["thread", "process"], os.environ.get("ISOLATION", "thread"))
    serve(app, isolation=isolation, concurrency=4)
