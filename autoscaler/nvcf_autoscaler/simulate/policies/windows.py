"""Averages over sliding windows of cumulative counters, for the comparison policies."""

from __future__ import annotations

from collections import deque


class CumulativeWindow:
    """Remembers a growing counter for `span` seconds and tells its mean growth over the last seconds."""

    def __init__(self, span: float) -> None:
        self._span = span
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        """One more reading; they come at regular intervals."""
        samples = self._samples
        samples.append((now, value))
        while len(samples) > 2 and samples[1][0] <= now - self._span:
            samples.popleft()

    def mean(self, seconds: float) -> float:
        """Growth per second over the last `seconds`, or over what is known if that is less."""
        samples = self._samples
        if len(samples) < 2:
            return 0.0
        now, value = samples[-1]
        then, before = samples[0]
        if seconds < self._span:
            for at, reading in reversed(samples):
                then, before = at, reading
                if at <= now - seconds:
                    break
        return (value - before) / (now - then) if now > then else 0.0

    def clear(self) -> None:
        """Forget everything."""
        self._samples.clear()
