"""All kinds of batches, one for each route. Results have the size of their batch."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nvcf_worker import (
    Adaptive,
    App,
    BadInput,
    Finished,
    Limit,
    Request,
    SyncRequest,
    batch,
    continuous_batch,
    serve,
)

app = App()


def number_of(request: SyncRequest) -> int:
    body = request.json()
    if not isinstance(body, dict) or not isinstance(body.get("n"), int):
        raise BadInput("n must be a whole number")
    return int(body["n"])


@app.route("/square")
@batch(max_size=8, max_wait="20ms", prepare=number_of)
def square(numbers: list[int]) -> list[dict[str, int]]:
    """Compute one batch at a time in 20 ms. The number 13 fails the whole batch."""
    time.sleep(0.02)
    if 13 in numbers:
        raise ValueError("13")
    return [{"square": number * number, "batch": len(numbers)} for number in numbers]


@app.route("/requests")
@batch(max_size=8, max_wait="20ms", bucket=lambda request: request.query["kind"])
async def of_requests(requests: list[Request]) -> list[dict[str, Any]]:
    await asyncio.sleep(0.01)
    kinds = {request.query["kind"] for request in requests}
    return [{"body": await request.json(), "kinds": sorted(kinds)} for request in requests]


@app.route("/steps", media_type="text/plain")
@batch(max_size=4, max_wait="20ms", prepare=number_of)
def steps(numbers: list[int]) -> Iterator[list[Any]]:
    """Yield as many lines in each stream as its number."""
    for step in range(max(numbers)):
        yield [f"{step}\n" if step < number else Finished() for number in numbers]


@app.route("/iterators", media_type="text/plain")
@batch(max_size=4, max_wait="20ms", prepare=number_of)
async def iterators(numbers: list[int]) -> list[AsyncIterator[str]]:
    async def lines(count: int) -> AsyncIterator[str]:
        for line in range(count):
            yield f"{line}\n"

    return [lines(number) for number in numbers]


@continuous_batch(max_active=4, prepare=number_of)
class Counter:
    """Counts to the number of each request, one step for all active requests."""

    def start(self, number: int) -> list[int]:
        if number < 0:
            raise BadInput("n must not be negative")
        return [0, number]

    def step(self, active: list[list[int]]) -> list[Any]:
        time.sleep(0.002)
        return [self.next(state, len(active)) for state in active]

    def next(self, state: list[int], together: int) -> Any:
        state[0] += 1
        line = f"{state[0]} {together}\n"
        return line if state[0] < state[1] else Finished(line)

    def finish(self, state: list[int]) -> None:
        with open(os.environ["NOTES"], "a") as file:
            file.write(f"finished {state[0]}\n")


app.route("/count", media_type="text/plain")(Counter)

busy = {"now": 0, "most": 0}


@app.route("/narrow", limit=Limit(2))
async def narrow(request: Request) -> dict[str, int]:
    """Run at most two at once, with any number of slots."""
    busy["now"] += 1
    busy["most"] = max(busy["most"], busy["now"])
    await asyncio.sleep(0.02)
    busy["now"] -= 1
    return dict(busy)


if __name__ == "__main__":
    serve(
        app,
        concurrency=Adaptive(min=1, max=32) if "ADAPTIVE" in os.environ else None,
        isolation="process" if "PROCESSES" in os.environ else "thread",
        processes=int(os.environ["PROCESSES"]) if "PROCESSES" in os.environ else None,
    )
