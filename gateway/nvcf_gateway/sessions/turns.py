"""Fair turns on the event loop for connections that have much to process."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

REST = 1.0
"""How long the loop serves others after each turn, in lengths of that turn."""


class Turns:
    """Runs the work of busy connections one after the other, on at most half of the loop's time.

    A connection whose bytes are processed within one turn never waits here.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], bool]] = deque()
        self._scheduled = False

    def add(self, work: Callable[[], bool]) -> None:
        """Call `work` when it is its turn, and again as long as it returns True."""
        self._waiting.append(work)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        work = self._waiting.popleft()
        began = time.perf_counter()
        again = False
        try:
            again = work()
        finally:
            if again:
                self._waiting.append(work)
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                rest = (time.perf_counter() - began) * REST
                asyncio.get_running_loop().call_later(rest, self._run)
