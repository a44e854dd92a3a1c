"""Functions that together produce data for every metric. The last line of a copy chooses one."""

import asyncio
import os
from collections.abc import AsyncIterator

from nvcf_worker import Request, batch, tokens


async def steady(request: Request) -> dict[str, int]:
    """Respond soon. Every seventh call fails."""
    number = int((await request.json())["number"])
    await asyncio.sleep(0.02)
    if number % 7 == 0:
        raise ValueError("broken on purpose")
    return {"number": number}


async def spiky(request: Request) -> str:
    """Respond. It is called so seldom that each call is a cold start."""
    await asyncio.sleep(0.2)
    return "here"


@batch(max_size=8, max_wait=0.05, prepare=lambda request: request.json())
async def batched(items: list[dict[str, int]]) -> list[dict[str, int]]:
    """Compute several calls at once."""
    return items


async def streamed(request: Request) -> AsyncIterator[dict[str, int]]:
    """Yield some items, one after the other."""
    tokens(12, 40, model="stand-in")
    for number in range(5):
        yield {"item": number}
        await asyncio.sleep(0.02)


async def dying(request: Request) -> str:
    """End the process at every other delivery."""
    if request.attempt == 1:
        os._exit(3)
    return "survived"
