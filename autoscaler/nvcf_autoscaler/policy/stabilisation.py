"""Stabilisation: keep each further instance for a while after it was last needed.

The k-th instance is needed while at least k instances are recommended. The instant of its last need falls as
k grows. A stack with one entry per distinct instant therefore describes every k, and a decision costs only
the entries that it changes, however many instances there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Recommendation(NamedTuple):
    """Instances up to number `instances` were last needed at `at`; those of the next entry, later."""

    instances: int
    at: float


Recommendations = tuple[Recommendation, ...]

# A rise over many instances repeats the same gap; this many copies give it enough weight.
_COPIES = 4


def record(past: Recommendations, needed: int, now: float) -> tuple[Recommendations, tuple[float, ...]]:
    """Add that `needed` instances are needed now. The last entry is always the last decision.

    Return the stack, and for how long each instance beyond the first that is needed again was not needed.
    """
    if not past:
        return (Recommendation(needed, now),), ()
    last = past[-1]
    if last.instances >= needed:
        kept = past[:-1] if last.instances == needed else past
        return (*kept, Recommendation(needed, now)), ()
    stack = list(past[:-1])
    gaps: list[float] = []
    floor = max(last.instances, 1)
    while stack and stack[-1].instances <= needed:
        entry = stack.pop()
        _add_gap(gaps, now - entry.at, entry.instances - floor)
        floor = max(floor, entry.instances)
    if stack:
        _add_gap(gaps, now - stack[-1].at, needed - floor)
    return (*stack, Recommendation(needed, now)), tuple(gaps)


def _add_gap(gaps: list[float], seconds: float, instances: int) -> None:
    if seconds > 0 and instances > 0:
        gaps.extend([seconds] * min(instances, _COPIES))


def stabilised(
    past: Sequence[Recommendation], now: float, keep_first: float, keep_further: float
) -> tuple[int, float]:
    """Return the instance count to keep, and the instant at which that ends (infinity if none is kept)."""
    for instances, at in past:
        if instances > 1 and at + keep_further > now:
            return instances, at + keep_further
    for instances, at in reversed(past):
        if instances > 0:
            return (1, at + keep_first) if at + keep_first > now else (0, float("inf"))
    return 0, float("inf")


def expire(past: Recommendations, now: float, age: float) -> Recommendations:
    """Drop entries older than `age`, except the last one: a gap that long teaches nothing."""
    if not past or past[0].at >= now - age:
        return past
    return tuple(entry for entry in past[:-1] if entry.at >= now - age) + past[-1:]
