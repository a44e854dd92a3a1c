"""How often a caller may open a stream only to reset it (rapid reset, CVE-2023-44487). Pure."""

from __future__ import annotations

BURST = 1000.0
PER_SECOND = 33.0
"""The bounds that nghttp2 has: far beyond what clients cancel, far below what keeps a server busy."""


class ResetBudget:
    """A bucket of resets of calls that were still running. Times are seconds of any steady clock."""

    def __init__(self, now: float, burst: float = BURST, per_second: float = PER_SECOND) -> None:
        self._burst = self._left = burst
        self._per_second = per_second
        self._filled = now

    def take(self, now: float) -> bool:
        """Count one reset; False when it is one too many."""
        self._left = min(self._burst, self._left + (now - self._filled) * self._per_second)
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
