"""PullPlanner: what is asked for, and what status messages mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvcf_worker.queue.planner import PullPlanner, Slots


def test_asks_for_all_slots_first() -> None:
    planner = PullPlanner(8)
    assert planner.ask(8, 0.0) == 8
    assert planner.ask(8, 0.0) == 0


@pytest.mark.parametrize(
    ("arrived", "free", "asked"), [(3, 8, 0), (4, 8, 4), (4, 4, 0), (8, 1, 1), (8, 0, 0)]
)
def test_tops_up_when_half_is_left(arrived: int, free: int, asked: int) -> None:
    planner = PullPlanner(8)
    planner.ask(8, 0.0)
    for _ in range(arrived):
        planner.delivered(0.0)
    assert planner.ask(free, 0.0) == asked


@pytest.mark.parametrize(
    ("code", "text", "pending", "outstanding", "look_up", "warns"),
    [
        (100, "Idle Heartbeat", None, 4, False, False),
        (404, "No Messages", None, 0, False, False),
        (408, "Request Timeout", 3, 1, False, False),
        (408, "Request Timeout", None, 0, False, False),
        (409, "Exceeded MaxRequestBatch of 2", None, 0, False, True),
        (409, "Consumer Deleted", None, 0, True, False),
        (409, "Leadership Change", None, 0, True, False),
        (409, "Server Shutdown", None, 0, True, False),
        (409, "Exceeded MaxWaiting", None, 0, False, False),
        (409, "Batch Completed", 1, 3, False, False),
        (409, "Exceeded MaxRequestExpires of 1s", None, 0, False, True),
        (400, "Bad Request", None, 0, False, True),
        (503, "", None, 0, True, False),
        (0, "what is this", None, 0, False, True),
    ],
)
def test_status_messages(
    code: int, text: str, pending: int | None, outstanding: int, look_up: bool, warns: bool
) -> None:
    planner = PullPlanner(4)
    planner.ask(4, 0.0)
    verdict = planner.status(code, text, pending=pending, batch=4, now=1.0)
    assert planner.outstanding == outstanding
    assert verdict.look_up is look_up
    assert (verdict.warning is not None) is warns


def test_a_limit_on_the_batch_is_kept() -> None:
    planner = PullPlanner(8)
    planner.ask(8, 0.0)
    planner.status(409, "Exceeded MaxRequestBatch of 3", pending=None, batch=8, now=0.0)
    assert planner.ask(8, 0.0) == 3
    # Half of the slots may be outstanding before the next is asked for.
    assert planner.ask(8, 0.0) == 3
    assert planner.ask(8, 0.0) == 0


def test_too_many_waiting_pulls_pause_for_a_second() -> None:
    planner = PullPlanner(2)
    planner.ask(2, 0.0)
    planner.status(409, "Exceeded MaxWaiting", pending=None, batch=2, now=10.0)
    assert planner.ask(2, 10.5) == 0
    assert planner.ask(2, 11.1) == 2


def test_silence_for_two_heartbeats_is_noticed() -> None:
    planner = PullPlanner(2)
    assert not planner.stale(1e6)
    planner.ask(2, 100.0)
    assert not planner.stale(109.0)
    assert planner.stale(110.1)
    planner.status(100, "Idle Heartbeat", pending=None, batch=0, now=110.0)
    assert not planner.stale(119.0)
    planner.delivered(119.0)
    planner.delivered(119.0)
    assert not planner.stale(1e6)


class BrokerAndWorker(RuleBasedStateMachine):
    """A model broker that serves pulls, and a worker with slots between it and its requests."""

    TOTAL = 6

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.planner = PullPlanner(self.TOTAL)
        self.slots = Slots(self.TOTAL, lambda: None)
        self.pulls: list[int] = []  # what the broker still owes for each pull request

    @rule()
    def ask(self) -> None:
        free = self.slots.free
        batch = self.planner.ask(free, self.now)
        assert batch >= 0
        if batch:
            self.pulls.append(batch)
            assert sum(self.pulls) <= free

    @precondition(lambda self: self.pulls)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.pulls) - 1))
        self.pulls[at] -= 1
        if not self.pulls[at]:
            del self.pulls[at]
        self.planner.delivered(self.now)
        assert self.slots.acquire(), "a request arrived without a slot"

    @precondition(lambda self: self.slots.busy)
    @rule()
    def finish(self) -> None:
        self.slots.release()

    @precondition(lambda self: self.pulls)
    @rule(data=st.data(), code=st.sampled_from([(408, "Request Timeout"), (409, "Batch Completed")]))
    def expire(self, data: st.DataObject, code: tuple[int, str]) -> None:
        rest = self.pulls.pop(data.draw(st.integers(0, len(self.pulls) - 1)))
        self.planner.status(*code, pending=rest, batch=self.TOTAL, now=self.now)

    @rule()
    def consumer_deleted(self) -> None:
        self.pulls.clear()
        assert self.planner.status(409, "Consumer Deleted", pending=None, batch=0, now=self.now).look_up

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def counts_agree(self) -> None:
        assert self.planner.outstanding == sum(self.pulls)
        assert 0 <= self.slots.busy <= self.TOTAL

    @invariant()
    def an_idle_worker_asks(self) -> None:
        if not self.pulls and self.slots.free:
            copy = PullPlanner(self.TOTAL)
            assert copy.ask(self.slots.free, self.now) == self.slots.free


TestBrokerAndWorker = BrokerAndWorker.TestCase


@given(st.integers(1, 100), st.lists(st.booleans(), max_size=300))
def test_slots_never_go_below_zero_or_above_their_total(total: int, steps: list[bool]) -> None:
    freed: list[int] = []
    slots = Slots(total, lambda: freed.append(1))
    taken = 0
    for take in steps:
        if take:
            assert slots.acquire() is (taken < total)
            taken = min(total, taken + 1)
        elif taken:
            slots.release()
            taken -= 1
        assert (slots.busy, slots.free) == (taken, total - taken)
    if not taken:
        with pytest.raises(RuntimeError):
            slots.release()
