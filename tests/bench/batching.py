"""A 10 ms kernel behind `@batch`, compared with one kernel call for each request."""

from __future__ import annotations

from tests.bench.modes import modes, rate

CALLERS = 64


async def run() -> None:
    """Measure with 64 callers. The kernel takes 10 ms for any number of items, one call at a time."""
    async with modes({"SLOTS": "64"}) as (mode,):
        single = await rate(mode, "/single", CALLERS)
        batched = await rate(mode, "/batched", CALLERS)
        for name, result in (("single", single), ("batched", batched)):
            print(f"{name:>8}: {result}")
        print(f"batched / single: {batched.per_second / single.per_second:.1f} times the requests")
