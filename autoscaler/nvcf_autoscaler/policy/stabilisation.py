"""Stickiness: each level of the instance count is held for a while after it was last needed.

Level k is "at least k instances are needed". The instants at which levels were last needed fall with the
height, so a stack with one entry per distinct instant holds them all, and one look costs the entries that
it changes, however many instances there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Level(NamedTuple):
    """The levels up to `height` were last needed at `at`; those up to the next entry's height, later."""

    height: int
    at: float


# One rise over many levels says the same thing many times; that much weight is enough.
_COPIES = 4


def touch(levels: tuple[Level, ...], needed: int, now: float) -> tuple[tuple[Level, ...], tuple[float, ...]]:
    """Note that `needed` instances are needed now. The last entry is always the last look.

    Returns the levels, and for levels above the first that were unneeded and are needed again, for how long.
    """
    if not levels:
        return (Level(needed, now),), ()
    last = levels[-1]
    if last.height == needed:
        return (*levels[:-1], Level(needed, now)), ()
    if last.height > needed:
        return (*levels, Level(needed, now)), ()
    kept = list(levels[:-1])
    gaps: list[float] = []
    floor = max(last.height, 1)
    while kept and kept[-1].height <= needed:
        level = kept.pop()
        _add_gap(gaps, now - level.at, level.height - floor)
        floor = max(floor, level.height)
    if kept:
        _add_gap(gaps, now - kept[-1].at, needed - floor)
    kept.append(Level(needed, now))
    return tuple(kept), tuple(gaps)


def _add_gap(gaps: list[float], seconds: float, levels: int) -> None:
    if seconds > 0 and levels > 0:
        gaps.extend([seconds] * min(levels, _COPIES))


def held(levels: Sequence[Level], now: float, keep_first: float, keep_further: float) -> tuple[int, float]:
    """The highest level still held, and the instant at which that ends (infinity if none is)."""
    for height, at in levels:
        if height > 1 and at + keep_further > now:
            return height, at + keep_further
    for height, at in reversed(levels):
        if height > 0:
            return (1, at + keep_first) if at + keep_first > now else (0, float("inf"))
    return 0, float("inf")


def forget(levels: tuple[Level, ...], now: float, age: float) -> tuple[Level, ...]:
    """Drop what was last needed longer ago than `age`: the next rise to it teaches nothing."""
    if not levels or levels[0].at >= now - age:
        return levels
    return tuple(level for level in levels[:-1] if level.at >= now - age) + levels[-1:]
