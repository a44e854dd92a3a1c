"""How long the oldest waiting request of a queue has waited. Pure; times are Unix seconds.

JetStream tells how many requests were delivered and how many wait, not since when. Requests are delivered in
the order in which they came, so it is enough to remember when the number of those ever stored has grown.
"""

from __future__ import annotations

FINENESS = 512


class QueueAge:
    """One queue. An age is late by at most the time between two samples, or too high by at most one part in
    FINENESS of the longest that anybody has waited.
    """

    def __init__(self) -> None:
        self._grown: list[tuple[float, int]] = []
        self._stored: int | None = None

    def sample(self, now: float, delivered: int, pending: int) -> float | None:
        """One look at the queue: seconds that the oldest waiting request has waited, 0 if none waits.

        None: it came before the first sample, see `began`.
        """
        stored = delivered + pending
        known, self._stored = self._stored, stored
        # Fewer than before: some were taken back while they waited.
        while self._grown and self._grown[-1][1] > stored:
            at, _ = self._grown.pop()
            if not self._grown or self._grown[-1][1] < stored:
                self._grown.append((at, stored))
                break
        if known is not None and stored > known:
            self._came(now, stored)
        first = next((index for index, (_, upto) in enumerate(self._grown) if upto > delivered), None)
        if not pending or first is None:
            self._grown.clear()
            return None if pending else 0.0
        del self._grown[:first]
        return max(0.0, now - self._grown[0][0])

    def began(self, now: float, at: float) -> float:
        """What waits came at `at`, or later."""
        if self._stored is not None:
            self._grown.insert(0, (at, self._stored))
        return max(0.0, now - at)

    def _came(self, now: float, stored: int) -> None:
        if self._grown:
            last = self._grown[-1][0]
            if now - last < (now - self._grown[0][0]) / FINENESS:
                # An hour's backlog need not be known to the second.
                self._grown[-1] = (last, stored)
                return
        self._grown.append((now, stored))
