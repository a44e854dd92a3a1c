"""How often the agent of one cluster may call: one gone wrong must not take the gateway's time. Pure."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_CLUSTERS = 10_000


class CallRates:
    """One bucket of calls a cluster: `burst` at once, then `per_second`."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, cluster_id: str) -> float:
        """Count a call; return 0, or the seconds after which it may be made, when it does not count."""
        now = self._clock()
        left, at = self._left.pop(cluster_id, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        allowed = left >= 1.0
        self._left[cluster_id] = (left - 1.0 if allowed else left, now)
        if len(self._left) > MOST_CLUSTERS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._per_second
