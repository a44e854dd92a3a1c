"""What bodies that are parsed may cost: memory of all of them together, and time on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

from nvcf_gateway.errors import HttpProblem

FREE_BYTES = 64 * 1024
"""Bodies up to this size are not counted: limits on connections bound them."""
TOTAL_BYTES = 256 * 1024 * 1024
ACCOUNT_BYTES = TOTAL_BYTES // 2
LARGE_PARSE = 16 * 1024
REST = 3.0

T = TypeVar("T")
Grow = Callable[[int], None]


class BodyBudget:
    """Memory for bodies that are buffered and parsed; one account gets no more than half of it."""

    def __init__(self, total: int = TOTAL_BYTES, per_account: int = ACCOUNT_BYTES) -> None:
        self._total = total
        self._per_account = per_account
        self._used = 0
        self._accounts: Counter[str] = Counter()
        self._parsing = asyncio.Lock()

    @contextlib.contextmanager
    def room(self, account: str) -> Iterator[Grow]:
        """Return what counts a body as it grows: call it with the size so far.

        It raises HttpProblem 503 when there is no room. All is given back at the end of the context.
        """
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            more = size - held
            if size <= FREE_BYTES or more <= 0:
                return
            if self._used + more > self._total or self._accounts[account] + more > self._per_account:
                whose = "this account" if self._used + more <= self._total else "all accounts"
                detail = f"too many large bodies of {whose} are in transit: try again, or use pexec"
                raise HttpProblem(503, detail, headers={"Retry-After": "1"})
            self._used += more
            self._accounts[account] += more
            held = size

        try:
            yield grow
        finally:
            self._used -= held
            self._accounts[account] -= held
            if not self._accounts[account]:
                del self._accounts[account]

    async def parsed(self, body: bytes, parse: Callable[[bytes], T]) -> T:
        """Parse a body: large ones one after the other, on at most a quarter of the event loop's time.

        A thread would not help: the parsers hold the interpreter's lock.
        """
        if len(body) <= LARGE_PARSE:
            return parse(body)
        async with self._parsing:
            began = time.perf_counter()
            try:
                return parse(body)
            finally:
                await asyncio.sleep((time.perf_counter() - began) * REST)
