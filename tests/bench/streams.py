"""50 streams of 1,000 items at once: time to the first item, and items per second."""

from __future__ import annotations

import asyncio
import statistics
import time

import aiohttp

from tests.bench.modes import Mode, modes

STREAMS = 50
ITEMS = 1000
ITEM_BYTES = 16


async def _one(mode: Mode, session: aiohttp.ClientSession, path: str) -> float:
    started = time.perf_counter()
    url = f"{mode.url(path)}?count={ITEMS}"
    async with session.post(url, headers=mode.headers()) as response:
        first = await response.content.readexactly(ITEM_BYTES)
        latency = time.perf_counter() - started
        rest = await response.read()
    assert len(first) + len(rest) == ITEMS * ITEM_BYTES, len(rest)
    return latency


async def run() -> None:
    """Measure after one round to warm up. The reader runs on the same machine."""
    async with modes({"SLOTS": "64"}, {"SLOTS": "64", "PROCESSES": "1"}) as (thread, process):
        cases = [
            ("async generator", thread, "/items"),
            ("generator", thread, "/sync_items"),
            ("async, process", process, "/items"),
            ("generator, process", process, "/sync_items"),
        ]
        rates: dict[str, float] = {}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            for name, mode, path in cases:
                await asyncio.gather(*(_one(mode, session, path) for _ in range(STREAMS)))
                started = time.perf_counter()
                firsts = await asyncio.gather(*(_one(mode, session, path) for _ in range(STREAMS)))
                elapsed = time.perf_counter() - started
                rates[name] = STREAMS * ITEMS / elapsed
                print(
                    f"{name:>19}: first item p50 {statistics.median(firsts) * 1000:5.1f} ms, "
                    f"max {max(firsts) * 1000:5.1f} ms; {rates[name]:8.0f} items/s"
                )
        print(
            f"process / thread: {rates['async, process'] / rates['async generator']:.2f} of the items (async)"
        )
