"""Sliding windows over time slots, and the decision over several limits at once. Pure: times are passed in.

A window is cut into `SLOTS` slots. A grant counts in its own slot and in the `HOLD` - 1 slots after it: the
window itself, one slot because a grant may lie at the very end of its slot, and one because a grant may be
used up to one slot after it was made (see `permits`). So no interval of the window's length sees more calls
than the limit allows, wherever it begins. The price: a limit that is always used up refills about 2 % more
slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nvcf_gateway.ratelimit.policy import Limit

SLOTS = 100
HOLD = SLOTS + 2
# Bounds the time of one sweep: a key has up to a hundred slots.
KEYS_PER_SWEEP = 1000

Counts = dict[str, tuple[int, dict[int, int]]]
"""By key: the window's length in seconds, and grants by slot."""


def slot_length(seconds: int) -> float:
    """Return the length of a slot in seconds."""
    return seconds / SLOTS


def slot_at(now: float, seconds: int) -> int:
    """Return the slot of Unix time `now`."""
    return math.floor(now * SLOTS / seconds)


@dataclass(frozen=True)
class Grant:
    """The decision that `granted` calls may pass.

    If fewer were granted than wanted, `violated` is the limit that was reached and `retry_after` the
    seconds until there is room again.
    """

    granted: int
    violated: Limit | None = None
    retry_after: float = 0.0


class Window:
    """Counts of one key.

    The grants of each replica are counted separately and only grow (a G-counter): the state of a slot is the
    largest number received from each replica. Messages may therefore arrive twice, late or out of order.
    """

    __slots__ = ("_at", "_used", "own", "peers", "totals")

    def __init__(self) -> None:
        self.own: dict[int, int] = {}
        self.peers: dict[str, dict[int, int]] = {}
        self.totals: dict[int, int] = {}
        self._at: int | None = None
        self._used = 0

    def used(self, slot: int) -> int:
        """Return how much is in use at `slot`."""
        if slot != self._at:
            self.forget_before(slot - HOLD + 1)
            self._forget_after(slot + HOLD)
            self._used = sum(self.totals.values())
            self._at = slot
        return self._used

    def add(self, slot: int, count: int) -> None:
        """Count grants of this replica."""
        self.own[slot] = self.own.get(slot, 0) + count
        self._add_total(slot, count)

    def merge(self, replica: str, counts: Mapping[int, int]) -> None:
        """Add the grants of another replica."""
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
        """Return the first slot with room for one more call, if nothing else is granted; None = never."""
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
        """Drop all counts before `slot`."""
        for counts in (self.totals, self.own, *self.peers.values()):
            for old in [each for each in counts if each < slot]:
                del counts[old]
        self.peers = {replica: counts for replica, counts in self.peers.items() if counts}
        self._at = None

    def _forget_after(self, slot: int) -> None:
        """Drop all counts after `slot`: no clock is so much faster, this one was set back."""
        if any(each > slot for each in self.totals):
            for counts in (self.totals, self.own, *self.peers.values()):
                for early in [each for each in counts if each > slot]:
                    del counts[early]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is counted any more."""
        return not self.totals


class Counters:
    """All windows that one replica knows, by key. Times are Unix seconds."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[int, Window]] = {}
        self._changed: dict[str, set[int]] = {}
        self._to_sweep: list[str] = []

    def __len__(self) -> int:
        return len(self._windows)

    def acquire(self, limits: Sequence[Limit], wanted: int, now: float) -> Grant:
        """Grant as many of `wanted` calls as all limits allow; each granted call counts for each limit."""
        granted = wanted
        violated: Limit | None = None
        for limit in limits:
            window = self._window(limit)
            room = max(0, limit.calls - window.used(slot_at(now, limit.seconds)))
            if room < granted:
                granted, violated = room, limit
        if granted:
            for limit in limits:
                slot = slot_at(now, limit.seconds)
                self._window(limit).add(slot, granted)
                self._changed.setdefault(limit.key, set()).add(slot)
        if violated is None:
            return Grant(granted)
        return Grant(granted, violated, self._retry_after(limits, now))

    def _window(self, limit: Limit) -> Window:
        found = self._windows.get(limit.key)
        if found is None:
            found = self._windows[limit.key] = (limit.seconds, Window())
        return found[1]

    def _retry_after(self, limits: Sequence[Limit], now: float) -> float:
        latest = 0.0
        for limit in limits:
            slot = slot_at(now, limit.seconds)
            free = self._window(limit).free_slot(slot, limit.calls)
            # A limit of 0 never has room: report the window's length.
            wait = limit.seconds if free is None else free * limit.seconds / SLOTS - now
            if free != slot:
                latest = max(latest, wait)
        return latest

    def changes(self) -> Counts:
        """Return this replica's grants in the slots that changed since the last call."""
        changed, self._changed = self._changed, {}
        found: Counts = {}
        for key, slots in changed.items():
            if key in self._windows:
                seconds, window = self._windows[key]
                found[key] = (seconds, {slot: window.own[slot] for slot in slots if slot in window.own})
        return found

    def everything(self) -> Iterator[Counts]:
        """Yield all grants of this replica, one key at a time."""
        for key, (seconds, window) in self._windows.items():
            if window.own:
                yield {key: (seconds, dict(window.own))}

    def merge(self, replica: str, counts: Mapping[str, tuple[int, Mapping[int, int]]]) -> None:
        """Add the grants of another replica."""
        for key, (seconds, slots) in counts.items():
            known = self._windows.setdefault(key, (seconds, Window()))
            if known[0] == seconds:
                known[1].merge(replica, slots)

    def forget(self, now: float) -> None:
        """Drop expired counts of the next `KEYS_PER_SWEEP` keys. Call it regularly."""
        if not self._to_sweep:
            self._to_sweep = list(self._windows)
        for _ in range(min(KEYS_PER_SWEEP, len(self._to_sweep))):
            key = self._to_sweep.pop()
            seconds, window = self._windows[key]
            window.forget_before(slot_at(now, seconds) - HOLD + 1)
            if window.is_empty:
                del self._windows[key]
                self._changed.pop(key, None)
