"""A function in a child process. It starts when the test opens a gate, and serves two requests in a batch."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import cast

from opentelemetry import trace

from nvcf_worker import App, Request, batch, serve

app = App()
log = logging.getLogger("function")
tracer = trace.get_tracer("function")


@app.setup
def load() -> None:
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.02)


@batch(max_size=2, max_wait="30s")
def model(numbers: list[int]) -> list[int]:
    with tracer.start_as_current_span("forward"):
        return [number * 2 for number in numbers]


@app.route("/")
async def double(request: Request) -> dict[str, int]:
    number = int((await request.read()).decode())
    with tracer.start_as_current_span("think"):
        log.warning("thinking of %d", number)
        doubled = cast(int, await model(number))
    return {"doubled": doubled, "pid": os.getpid(), "parent": os.getppid()}


if __name__ == "__main__":
    serve(app, isolation="process", processes=1, concurrency=2)
