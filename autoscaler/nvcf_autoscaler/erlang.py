"""How many slots a load needs so that few requests wait long: Erlang's delay formula (M/M/n)."""

from __future__ import annotations

import math
from functools import lru_cache

# Loads are rounded up to this grid, so that the cache hits and noise in the load does not move the answer.
_GRID = 1.02
_EXACT_UP_TO = 400.0


def slots_for(load: float, patience: float, miss_share: float) -> int:
    """The least number of slots with which at most `miss_share` of requests wait longer than `patience`.

    `load` is arrivals per second times seconds of service; `patience` is in units of the service time.
    Grows with the load. Zero for no load.
    """
    if load <= 1e-3:
        return 0
    step = math.ceil(math.log(load) / math.log(_GRID))
    return _slots(step, round(min(patience, 50.0), 2), miss_share)


@lru_cache(maxsize=65536)
def _slots(step: int, patience: float, miss_share: float) -> int:
    load = _GRID**step
    if load > _EXACT_UP_TO:
        # Square-root staffing: the exact sum has nothing to add at this size.
        return math.ceil(load + 2.5 * math.sqrt(load))
    blocking = 1.0
    slots = 0
    while True:
        slots += 1
        blocking = load * blocking / (slots + load * blocking)
        if slots <= load:
            continue
        waits = blocking / (1.0 - load / slots * (1.0 - blocking))
        if waits * math.exp(-(slots - load) * patience) <= miss_share:
            return slots
