"""A sliding window over slots of time, counted by several replicas. Pure: the time is a slot number.

A window is cut into `SLOTS` slots. What was granted in a slot counts in that slot and the `HOLD` - 1 after
it: the window itself, one slot because a grant may lie at the slot's very end, and one because a grant may
be used up to a slot later than it was made (see `budget`). So there is no interval of the window's length,
wherever it begins, in which more calls pass than the limit says; the price is that a limit which is used to
the full turns around 2 % slower than it could.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

SLOTS = 100
HOLD = SLOTS + 2


def slot_length(seconds: int) -> float:
    """Length of a slot in seconds."""
    return seconds / SLOTS


def slot_at(now: float, seconds: int) -> int:
    """The slot of Unix time `now`."""
    return math.floor(now * SLOTS / seconds)


def slot_begin(slot: int, seconds: int) -> float:
    """Unix time at which a slot begins."""
    return slot * seconds / SLOTS


class Window:
    """Counts of one key.

    Every replica's grants are counted apart and only grow, so that telling them twice, late or out of order
    changes nothing: the state of a slot is the largest number heard of each replica (a G-counter).
    """

    __slots__ = ("_at", "_used", "own", "peers", "totals")

    def __init__(self) -> None:
        self.own: dict[int, int] = {}
        self.peers: dict[str, dict[int, int]] = {}
        self.totals: dict[int, int] = {}
        self._at: int | None = None
        self._used = 0

    def used(self, slot: int) -> int:
        """How much is in use at `slot`."""
        if slot != self._at:
            self.forget_before(slot - HOLD + 1)
            self._used = sum(self.totals.values())
            self._at = slot
        return self._used

    def add(self, slot: int, count: int) -> None:
        """Count grants of this replica."""
        self.own[slot] = self.own.get(slot, 0) + count
        self._add_total(slot, count)

    def merge(self, replica: str, counts: Mapping[int, int]) -> None:
        """Take in what another replica has granted."""
        known = self.peers.setdefault(replica, {})
        for slot, count in counts.items():
            more = count - known.get(slot, 0)
            if more > 0:
                known[slot] = count
                self._add_total(slot, more)

    def _add_total(self, slot: int, count: int) -> None:
        self.totals[slot] = self.totals.get(slot, 0) + count
        # Slots ahead of this replica's clock count too: another clock may be a little faster.
        if self._at is not None and slot > self._at - HOLD:
            self._used += count

    def free_slot(self, slot: int, calls: int) -> int | None:
        """The first slot at which another grant fits under `calls`, given no more grants; None = never."""
        if calls < 1:
            return None
        used = self.used(slot)
        if used < calls:
            return slot
        for granted in sorted(self.totals):
            used -= self.totals[granted]
            if used < calls:
                return granted + HOLD
        return None

    def forget_before(self, slot: int) -> None:
        """Drop what no longer counts at `slot` + HOLD - 1."""
        for counts in (self.totals, self.own, *self.peers.values()):
            for old in [each for each in counts if each < slot]:
                del counts[old]
        self.peers = {replica: counts for replica, counts in self.peers.items() if counts}
        self._at = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing counts any more."""
        return not self.totals
