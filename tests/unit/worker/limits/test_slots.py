"""Slots under any order of taking, giving back, pausing and limits that come and go."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvcf_worker.queue.planner import Slots


class SlotMachine(RuleBasedStateMachine):
    TOTAL = 5

    def __init__(self) -> None:
        super().__init__()
        self.woken = 0
        self.slots = Slots(self.TOTAL, self.wake)
        self.busy = 0
        self.limits: dict[str, int] = {}
        self.paused = False

    def wake(self) -> None:
        self.woken += 1

    @property
    def limit(self) -> int:
        return min([self.TOTAL, *self.limits.values()])

    @rule()
    def take(self) -> None:
        expected = not self.paused and self.busy < self.limit
        assert self.slots.acquire() is expected
        self.busy += expected

    @precondition(lambda self: self.busy)
    @rule()
    def release(self) -> None:
        before = self.woken
        self.slots.release()
        self.busy -= 1
        assert self.woken == before + 1

    @rule(source=st.sampled_from(["latency", "processes"]), limit=st.integers(0, 8))
    def set_limit(self, source: str, limit: int) -> None:
        before, woken = self.limit, self.woken
        self.slots.set_limit(source, limit)
        self.limits[source] = limit
        # Who pulls is told when there may be room, and not when there is less.
        assert (self.woken > woken) == (self.limit > before)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.slots.paused = self.paused = paused

    @invariant()
    def accounts_agree(self) -> None:
        assert self.slots.busy == self.busy <= self.TOTAL
        assert self.slots.free == (0 if self.paused else max(0, self.limit - self.busy))


TestSlots = SlotMachine.TestCase


def test_more_cannot_be_given_back_than_was_taken() -> None:
    with pytest.raises(RuntimeError):
        Slots(1, lambda: None).release()
