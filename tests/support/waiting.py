"""Wait for conditions. The time-outs are long enough for a busy machine."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

WAIT = 60.0
"""Seconds to wait for what happens at once on a quiet machine."""


async def eventually(
    condition: Callable[[], object],
    what: str = "the condition holds",
    timeout: float = WAIT,
    *,
    story: Callable[[], str] = str,
    interval: float = 0.01,
) -> None:
    """Wait at most `timeout` seconds until `condition()`, checked every `interval` seconds, is true.

    The condition may be a coroutine function. Raises AssertionError with `what` and `story()`.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if await result if inspect.isawaitable(result) else result:
            return
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}\n{story()}".rstrip())
        await asyncio.sleep(interval)
