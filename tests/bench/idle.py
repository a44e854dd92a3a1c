"""Memory of an unused slot."""

from __future__ import annotations

import asyncio

from tests.bench.modes import modes

FEW, MANY = 1, 10_000


async def run() -> None:
    """Compare the resident memory of a worker with 10,000 free slots and of one with a single slot."""
    async with modes({"SLOTS": str(FEW)}, {"SLOTS": str(MANY)}) as (few, many):
        # Let both workers become idle.
        await asyncio.sleep(2)
        small, large = few.worker.resident_mib(), many.worker.resident_mib()
        print(
            f"{FEW} slot: {small:.1f} MiB, {MANY} slots: {large:.1f} MiB; "
            f"{(large - small) * 1024 * 1024 / (MANY - FEW):.0f} bytes a slot"
        )
