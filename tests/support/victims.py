"""What others feel while somebody attacks: callers that count what they get, before and during."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import aiohttp

SECONDS = 1.5
CALLERS = 8
ATTEMPTS = 4


@dataclass(frozen=True)
class Felt:
    """Calls in a second, and the slowest of them."""

    rate: float
    slowest: float

    def __str__(self) -> str:
        return f"{self.rate:.0f}/s, slowest {self.slowest * 1000:.0f} ms"


async def felt(url: str, seconds: float = SECONDS, headers: Mapping[str, str] | None = None) -> Felt:
    """Call `url` from some callers for some time."""
    count, slowest = 0, 0.0
    end = time.monotonic() + seconds

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal count, slowest
        while (began := time.monotonic()) < end:
            async with session.get(url) as response:
                await response.read()
                assert response.status == 200
            slowest = max(slowest, time.monotonic() - began)
            count += 1

    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        await asyncio.gather(*(caller(session) for _ in range(CALLERS)))
    return Felt(count / seconds, slowest)


async def compared(
    url: str,
    what: str,
    attack: Callable[[float], Awaitable[object]],
    least: float = 0.5,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Assert that an attack leaves others at least `least` of their rate, and print what they felt.

    The machine may do other things: a bad ratio counts when it comes again.
    """
    ratio = 0.0
    for _ in range(ATTEMPTS):
        before = await felt(url, headers=headers)
        attacking = asyncio.ensure_future(attack(SECONDS + 1.0))
        await asyncio.sleep(0.5)
        during = await felt(url, headers=headers)
        await attacking
        ratio = during.rate / before.rate
        print(  # noqa: T201 # the figures belong into the report
            f"{what}: before {before}; during {during}; ratio {ratio:.2f}"
        )
        if ratio >= least:
            return
    raise AssertionError(f"{what}: others fell to {ratio:.2f} of their rate")
