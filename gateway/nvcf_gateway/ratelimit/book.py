"""All windows that one replica knows, and the decision over several limits at once. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nvcf_gateway.ratelimit.policy import Limit
from nvcf_gateway.ratelimit.window import HOLD, Window, slot_at, slot_begin

# Bounds how long the sweep may take: a key has up to a hundred slots.
FORGET_AT_ONCE = 1000

Counts = dict[str, tuple[int, dict[int, int]]]
"""By key: the window's length in seconds, and grants by slot."""


@dataclass(frozen=True)
class Grant:
    """`granted` calls may pass.

    If that is less than was wanted, `violated` says why and `retry_after` (seconds) when there will be room.
    """

    granted: int
    violated: Limit | None = None
    retry_after: float = 0.0


class Book:
    """Counts by key. Times are Unix seconds and passed in."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[int, Window]] = {}
        self._changed: dict[str, set[int]] = {}
        self._to_sweep: list[str] = []

    def __len__(self) -> int:
        return len(self._windows)

    def take(self, limits: Sequence[Limit], wanted: int, now: float) -> Grant:
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
            # A limit of 0 never has room; the window's length is as good as any answer.
            wait = limit.seconds if free is None else slot_begin(free, limit.seconds) - now
            if free != slot:
                latest = max(latest, wait)
        return latest

    def changes(self) -> Counts:
        """This replica's grants in the slots that changed since the last call."""
        changed, self._changed = self._changed, {}
        told: Counts = {}
        for key, slots in changed.items():
            if key in self._windows:
                seconds, window = self._windows[key]
                told[key] = (seconds, {slot: window.own[slot] for slot in slots if slot in window.own})
        return told

    def everything(self) -> Iterator[Counts]:
        """All grants that this replica knows of itself, in portions of one key."""
        for key, (seconds, window) in self._windows.items():
            if window.own:
                yield {key: (seconds, dict(window.own))}

    def merge(self, replica: str, counts: Mapping[str, tuple[int, Mapping[int, int]]]) -> None:
        """Take in another replica's grants."""
        for key, (seconds, slots) in counts.items():
            known = self._windows.get(key)
            if known is None:
                known = self._windows[key] = (seconds, Window())
            if known[0] == seconds:
                known[1].merge(replica, slots)

    def forget(self, now: float) -> None:
        """Drop what no longer counts, of `FORGET_AT_ONCE` keys; to be called again and again."""
        if not self._to_sweep:
            self._to_sweep = list(self._windows)
        for _ in range(min(FORGET_AT_ONCE, len(self._to_sweep))):
            key = self._to_sweep.pop()
            seconds, window = self._windows[key]
            window.forget_before(slot_at(now, seconds) - HOLD + 1)
            if window.is_empty:
                del self._windows[key]
                self._changed.pop(key, None)
