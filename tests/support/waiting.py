"""Waiting for conditions. A failed wait says what it waited for; the times are for a busy machine."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

WAIT = 60.0
"""Seconds to wait for what happens at once on a quiet machine."""

_INTERVAL = 0.01


async def eventually(
    condition: Callable[[], object],
    what: str = "the condition holds",
    timeout: float = WAIT,
    *,
    story: Callable[[], str] = str,
) -> None:
    """Wait at most `timeout` seconds until `condition()`, awaited if need be, is true.

    Raises AssertionError that says `what` was awaited, with `story()`.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if await result if inspect.isawaitable(result) else result:
            return
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}\n{story()}".rstrip())
        await asyncio.sleep(_INTERVAL)
