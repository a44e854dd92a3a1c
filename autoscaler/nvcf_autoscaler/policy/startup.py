"""Start-up times from creation to ready, and which start-ups are late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# The prior counts as this many measurements.
_PRIOR_WEIGHT = 1.0
_PRIOR_SPREAD = 0.2
_MIN_SECONDS = 0.05
# By how many standard deviations the first of n start-ups is faster than the mean (n from 1).
_FIRST_OF = (0.0, 0.564, 0.846, 1.029, 1.163, 1.267, 1.352, 1.424)


@dataclass(frozen=True, slots=True)
class Startup:
    """Usual start-up time, the age at which a start-up is overdue, and the deviation of the logarithm."""

    usual: float
    overdue: float
    spread: float


@lru_cache(maxsize=4096)
def estimate(recent: tuple[float, ...], prior: float, overdue_factor: float) -> Startup:
    """Estimate from measured start-up times.

    The usual time is their geometric mean, so that one very slow start does not double it. Overdue is the
    larger of `overdue_factor` times that, and the mean of the logarithms plus two deviations.
    """
    if not recent:
        return Startup(prior, prior * overdue_factor * 2.0, _PRIOR_SPREAD)
    logs = [math.log(max(seconds, _MIN_SECONDS)) for seconds in recent]
    weight = len(logs) + _PRIOR_WEIGHT * (len(logs) < 3)
    prior_part = math.log(max(prior, _MIN_SECONDS)) if len(logs) < 3 else 0.0
    mean = (sum(logs) + prior_part) / weight
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs))
    usual = math.exp(mean)
    return Startup(usual, max(usual * overdue_factor, math.exp(mean + 2.0 * spread)), spread)


def overdue(starting: Sequence[float], now: float, limit: float) -> int:
    """Return how many of these creation instants are more than `limit` seconds ago."""
    return sum(1 for created in starting if now - created > limit)


def hedged_starts(waiting: int, startup: Startup, price: float) -> int:
    """Return how many instances to start from zero at once, so that the first one is ready sooner.

    A further start pays if it saves the `waiting` requests enough waiting time in total, valued at `price`.
    """
    count = 1
    while count < len(_FIRST_OF):
        gain = startup.spread * (_FIRST_OF[count] - _FIRST_OF[count - 1])
        if price * waiting * gain < 1.0:
            break
        count += 1
    return min(count, max(1, waiting))
